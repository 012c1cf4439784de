"""Synthetic textbooks from the built-in teacher: sections on a topic for an audience.

Section 2.2 of the paper: "natural language heavy text interleaved with relevant code snippets",
diverse by constraints on topic and audience. Cells (topic x audience) take turns, so they stay
balanced. Every function in a section passed its tests; none has a held-out signature.

    from hornbook.generate import textbooks; textbooks("runs/textbooks", characters=10**6, seed=0)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from hornbook import corpus
from hornbook.errors import ConfigError
from hornbook.generate.curriculum import load
from hornbook.generate.pool import size_of
from hornbook.generate.procedural import LEVELS, check_levels, sample
from hornbook.generate.prose import section
from hornbook.manifest import Outcome, Report, StrPath, run_stage

_SALT = 0x74657874
_REPEATS = 1_000


def textbooks(
    out: StrPath,
    *,
    characters: int | None = None,
    count: int | None = None,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    curriculum: StrPath | None = None,
) -> Report:
    """Writes textbook sections.

    Args:
        out: The stage's folder.
        characters: How many characters at least; or
        count: how many sections.
        levels: Levels of the procedural teacher; topics of other levels are left out.
        seed: Decides every byte.
        curriculum: A curriculum file; the package's own if None.

    Returns:
        The manifest; `details.cells` counts sections by topic and audience.

    Raises:
        ConfigError: If the sizes or levels make no sense, or no topic has one of the levels.
        InputError: If the curriculum cannot be read.
    """
    chosen = check_levels(levels)
    size_of(count, characters)
    plan = load(curriculum)
    topics = [topic for topic in plan.topics if topic.level in chosen]
    if not topics:
        raise ConfigError(f"{plan.name}: no topic has one of the levels {list(chosen)}")
    config = {
        "characters": characters,
        "count": count,
        "levels": chosen,
        "seed": seed,
        "curriculum": plan,
    }

    def work(folder: Path) -> Outcome:
        cells: Counter[str] = Counter()
        total = 0
        repeats = 0

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal total, repeats
            seen: set[str] = set()
            slot = 0
            stale = 0
            while True:
                rng = Random(f"textbooks/{seed}/{slot}")
                topic = topics[slot % len(topics)]
                audience = plan.audiences[slot // len(topics) % len(plan.audiences)]
                samples = [
                    sample(
                        seed=seed ^ _SALT,
                        index=slot * 8 + place,
                        level=topic.level,
                        about=frozenset(topic.operations),
                    )
                    for place in range(rng.choice((1, 2, 2, 3)))
                ]
                text = section(rng, topic, audience, samples)
                slot += 1
                if text in seen:
                    repeats, stale = repeats + 1, stale + 1
                    if stale >= _REPEATS:
                        raise ConfigError("textbooks: the grammar has no more new sections to give")
                    continue
                stale = 0
                seen.add(text)
                cells[f"{topic.id} / {audience.id}"] += 1
                total += len(text)
                yield {
                    "text": text,
                    "topic": topic.id,
                    "audience": audience.id,
                    "level": topic.level,
                    "signatures": "\n".join(made.signature for made in samples),
                    "source": f"textbooks: {plan.name}",
                    "teacher": "procedural",
                    "slot": slot - 1,
                    "seed": seed,
                }
                if (count is not None and cells.total() >= count) or (
                    characters is not None and total >= characters
                ):
                    return

        schema = {
            "topic": "string",
            "audience": "string",
            "level": "int64",
            "signatures": "string",
            "source": "string",
            "teacher": "string",
            "slot": "int64",
            "seed": "int64",
        }
        parts = corpus.write(folder, rows(), schema)
        return Outcome(
            parts=parts,
            rows_in=cells.total() + repeats,
            kept=cells.total(),
            dropped={"repeated": repeats} if repeats else {},
            details={"characters": total, "cells": dict(sorted(cells.items()))},
        )

    return run_stage("textbooks", out, inputs=[], config=config, work=work, seed=seed)
