"""Exercises and held-out problems from the built-in teacher.

An exercise is a function to complete from its signature and docstring, with its solution: what
finetuning reads (section 2.2 of the paper, CodeExercises). A problem is the same thing in
HumanEval's form, with a signature that no training source holds.

    from hornbook.generate import exercises; exercises("runs/exercises", count=4_000, seed=0)
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hornbook import corpus
from hornbook.errors import ConfigError
from hornbook.generate.pool import size_of
from hornbook.generate.procedural import LEVELS, Sample, Split, check_levels, sample
from hornbook.manifest import Outcome, Report, StrPath, file_part, run_stage, write_text

_SALT = 0x65786572
_REPEATS = 1_000


def exercises(
    out: StrPath,
    *,
    count: int | None = None,
    characters: int | None = None,
    levels: Sequence[int] = LEVELS,
    examples: float = 0.0,
    seed: int = 0,
) -> Report:
    """Writes exercises, each with its solution.

    Args:
        out: The stage's folder.
        count: How many exercises; or
        characters: how many characters at least.
        levels: Levels of the procedural teacher; they take turns.
        examples: Share of docstrings with a doctest example, printed from execution.
        seed: Decides every byte.

    Returns:
        The manifest; `details` holds the characters and counts by level.

    Raises:
        ConfigError: If the sizes or levels make no sense or there are no more new exercises.
    """
    chosen = check_levels(levels)
    size_of(count, characters)
    check_share(examples)
    config = {
        "count": count,
        "characters": characters,
        "levels": chosen,
        "examples": examples,
        "seed": seed,
    }

    def work(folder: Path) -> Outcome:
        by_level: Counter[str] = Counter()
        total = 0
        repeats = 0

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal total, repeats
            seen: set[str] = set()
            stale = slot = 0
            while True:
                made = sample(
                    seed=seed ^ _SALT,
                    index=slot,
                    level=chosen[slot % len(chosen)],
                    examples=examples,
                )
                slot += 1
                if made.code in seen:
                    repeats, stale = repeats + 1, stale + 1
                    if stale >= _REPEATS:
                        raise ConfigError("exercises: the grammar has no more new ones to give")
                    continue
                stale = 0
                seen.add(made.code)
                by_level[str(made.level)] += 1
                total += len(made.code)
                yield {
                    "text": made.code,
                    "prompt_chars": len(made.prompt),
                    "entry_point": made.name,
                    "level": made.level,
                    "signature": made.signature,
                    "tests": made.test,
                    "source": "exercises",
                    "teacher": "procedural",
                    "slot": slot - 1,
                    "seed": seed,
                }
                if (count is not None and by_level.total() >= count) or (
                    characters is not None and total >= characters
                ):
                    return

        schema = {
            "prompt_chars": "int64",
            "entry_point": "string",
            "level": "int64",
            "signature": "string",
            "tests": "string",
            "source": "string",
            "teacher": "string",
            "slot": "int64",
            "seed": "int64",
        }
        parts = corpus.write(folder, rows(), schema)
        return Outcome(
            parts=parts,
            rows_in=by_level.total() + repeats,
            kept=by_level.total(),
            dropped={"repeated": repeats} if repeats else {},
            details={"characters": total, "levels": dict(sorted(by_level.items()))},
        )

    return run_stage("exercises", out, inputs=[], config=config, work=work, seed=seed)


def heldout(
    out: StrPath,
    *,
    count: int = 300,
    levels: Sequence[int] = LEVELS,
    split: Split = "test",
    examples: float = 0.0,
    seed: int = 0,
) -> Report:
    """Writes `problems.jsonl`: problems whose composition no training source holds.

    Each has a signature of its own, and tests that fail for a constant, for an argument returned
    as it is, and for the solution without one of its steps.

    Args:
        out: The stage's folder.
        count: How many problems.
        levels: Levels of the procedural teacher; they take turns.
        split: `test` to report, `dev` to tune on; their signatures are disjoint.
        examples: Share of docstrings with a doctest example.
        seed: Decides every byte.

    Returns:
        The manifest; `details` counts problems by level.

    Raises:
        ConfigError: If the options make no sense, or the levels have too few compositions.
    """
    chosen = check_levels(levels)
    size_of(count, None)
    check_share(examples)
    if split not in ("dev", "test"):
        raise ConfigError(f"split: `{split}`; held-out problems are of the split `dev` or `test`")
    config = {
        "count": count,
        "levels": chosen,
        "split": split,
        "examples": examples,
        "seed": seed,
    }

    def work(folder: Path) -> Outcome:
        problems: list[Sample] = []
        seen: set[str] = set()
        slot = stale = 0
        while len(problems) < count:
            made = sample(
                seed=seed,
                index=slot,
                level=chosen[len(problems) % len(chosen)],
                split=split,
                examples=examples,
                strict=True,
            )
            slot += 1
            stale += 1
            if made.signature not in seen:
                seen.add(made.signature)
                problems.append(made)
                stale = 0
            elif stale >= _REPEATS:
                raise ConfigError(
                    f"heldout: levels {list(chosen)} have only about {len(seen)} compositions in "
                    f"the split `{split}`; lower `count` from {count} or add levels"
                )
        lines = [_problem(split, place, made) for place, made in enumerate(problems)]
        write_text(folder / "problems.jsonl", "".join(lines))
        levels_seen = Counter(str(made.level) for made in problems)
        return Outcome(
            parts=[file_part(folder, "problems.jsonl", rows=count)],
            rows_in=slot,
            kept=count,
            dropped={"same signature": slot - count} if slot > count else {},
            details={"levels": dict(sorted(levels_seen.items()))},
        )

    return run_stage("heldout", out, inputs=[], config=config, work=work, seed=seed)


def _problem(split: str, place: int, made: Sample) -> str:
    problem = {
        "task_id": f"heldout/{split}/{place}",
        "prompt": made.prompt,
        "canonical_solution": made.solution,
        "test": made.test,
        "entry_point": made.name,
        "level": made.level,
        "signature": made.signature,
    }
    return json.dumps(problem) + "\n"


def check_share(examples: float) -> None:
    """Checks a share.

    Raises:
        ConfigError: If it is not between 0 and 1.
    """
    if not 0 <= examples <= 1:
        raise ConfigError(f"examples: {examples}; it is a share, between 0 and 1")
