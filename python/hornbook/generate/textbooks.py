"""Synthetic textbooks from the built-in teacher: sections on a topic for an audience.

Section 2.2 of the paper: "natural language heavy text interleaved with relevant code snippets",
diverse by constraints on topic and audience. Cells (topic x audience) take turns, so they stay
balanced. Every function in a section passed its tests; none has a held-out signature.

    from hornbook.generate import textbooks; textbooks("runs/textbooks", characters=10**6, seed=0)
"""

import itertools
from collections.abc import Iterator, Sequence
from random import Random

from hornbook.errors import ConfigError
from hornbook.files import StrPath
from hornbook.generate.curriculum import load
from hornbook.generate.procedural import LEVELS, check_levels, sample
from hornbook.generate.prose import section
from hornbook.generate.stage import Row, run
from hornbook.manifest import Report

_SALT = 0x74657874
_MOST = 3
"""Functions of a section, at most."""


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
    plan = load(curriculum)
    topics = [topic for topic in plan.topics if topic.level in chosen]
    if not topics:
        raise ConfigError(f"{plan.name}: no topic has one of the levels {list(chosen)}")

    def rows() -> Iterator[Row]:
        for slot in itertools.count():
            rng = Random(f"textbooks/{seed}/{slot}")
            topic = topics[slot % len(topics)]
            audience = plan.audiences[slot // len(topics) % len(plan.audiences)]
            samples = [
                sample(
                    seed=seed ^ _SALT,
                    index=slot * _MOST + place,
                    level=topic.level,
                    about=frozenset(topic.operations),
                )
                for place in range(rng.choice((1, 2, 2, _MOST)))
            ]
            yield {
                "text": section(rng, topic, audience, samples),
                "topic": topic.id,
                "audience": audience.id,
                "level": topic.level,
                "signatures": "\n".join(made.signature for made in samples),
                "source": f"textbooks: {plan.name}",
                "teacher": "procedural",
                "slot": slot,
                "seed": seed,
            }

    return run(
        "textbooks",
        out,
        rows=rows,
        schema={
            "topic": "string",
            "audience": "string",
            "level": "int64",
            "signatures": "string",
            "source": "string",
            "teacher": "string",
            "slot": "int64",
            "seed": "int64",
        },
        config={
            "count": count,
            "characters": characters,
            "levels": chosen,
            "seed": seed,
            "curriculum": plan,
        },
        group=lambda row: f"{row['topic']} / {row['audience']}",
        groups="cells",
    )
