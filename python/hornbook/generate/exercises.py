"""Exercises and held-out problems from the built-in teacher.

An exercise is a function to complete from its signature and docstring, with its solution: what
finetuning reads (section 2.2 of the paper, CodeExercises). A problem is the same thing in
HumanEval's form, with a signature that no training source holds.

    from hornbook.generate import exercises; exercises("runs/exercises", count=4_000, seed=0)
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hornbook.errors import ConfigError
from hornbook.files import StrPath, write_text
from hornbook.generate import verify
from hornbook.generate.procedural import (
    LEVELS,
    Sample,
    Split,
    check_levels,
    check_share,
    sample,
)
from hornbook.generate.stage import REPEATS, Row, run
from hornbook.manifest import Outcome, Report, file_part, run_stage

_SALT = 0x65786572


def exercises(
    out: StrPath,
    *,
    count: int | None = None,
    characters: int | None = None,
    levels: Sequence[int] = LEVELS,
    examples: float = 0.0,
    seed: int = 0,
) -> Report:
    """Writes exercises, each with its solution (`text` up to `prompt_chars` is the prompt).

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
    check_share("examples", examples)

    def rows() -> Iterator[Row]:
        for slot in itertools.count():
            made = sample(
                seed=seed ^ _SALT,
                index=slot,
                level=chosen[slot % len(chosen)],
                examples=examples,
            )
            yield {
                "text": made.code,
                "prompt_chars": len(made.prompt),
                "entry_point": made.name,
                "level": made.level,
                "signature": made.signature,
                "tests": made.test,
                "source": "exercises",
                "teacher": "procedural",
                "slot": slot,
                "seed": seed,
            }

    return run(
        "exercises",
        out,
        rows=rows,
        schema={
            "prompt_chars": "int64",
            "entry_point": "string",
            "level": "int64",
            "signature": "string",
            "tests": "string",
            "source": "string",
            "teacher": "string",
            "slot": "int64",
            "seed": "int64",
        },
        config={
            "count": count,
            "characters": characters,
            "levels": chosen,
            "examples": examples,
            "seed": seed,
        },
        group=lambda row: str(row["level"]),
        groups="levels",
    )


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
    check_share("examples", examples)
    if count <= 0:
        raise ConfigError(f"heldout: `count` is {count}; it must be positive")
    if split not in ("dev", "test"):
        raise ConfigError(f"split: `{split}`; held-out problems are of the split `dev` or `test`")
    config = {
        "tests": verify.VERSION,
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
            elif stale >= REPEATS:
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
