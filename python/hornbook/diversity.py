"""How varied a corpus is: what the paper lacked "a good methodology" for (section 6).

- `structure`: functions that differ in more than names, values, comments, docstrings, annotations
  and layout, counted by the signature of their syntax tree: Hill numbers (richness, exp of the
  Shannon entropy, inverse Simpson), Good-Turing coverage, the most frequent ones.
- `words`: distinct-1, -2 and -4 over words (runs of letters, digits, `_` and non-ASCII).
- `compression`: text over compressed text, zstd with long matching over blocks of 64 MiB.
- `duplicates`: documents that repeat another one exactly.

All of them change with the size of the corpus: compare corpora of equal size. One pass; memory is
one batch, about 300 MB of tables at most, and 100 bytes for each distinct structure. Costs about
0.3 s of one core for each MB of text.

    print(hb.diversity(["exercises/"]))
"""

import json
from collections.abc import Sequence
from pathlib import Path

from hornbook import _core, progress
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.files import StrPath
from hornbook.manifest import Report

METRICS: tuple[str, ...] = tuple(_core.DIVERSITY_METRICS)
"""What can be asked for."""


def diversity(
    inputs: Sequence[StrPath], *, metrics: Sequence[str] | None = None, top: int = 10
) -> Report:
    """Measures how varied documents are.

    Args:
        inputs: Documents.
        metrics: Some of `METRICS`; all if not given.
        top: How many of the most frequent structures to list.

    Returns:
        A report: `sample` (documents, bytes, rejected) and one entry for each metric. Counts of
        distinct things are exact up to 4 million (`exact` says so), and estimates beyond.

    Raises:
        ConfigError: If a metric is unknown.
        InputError: If an input is missing or unreadable.
    """
    wanted = list(METRICS if metrics is None else metrics)
    paths = [Path(path) for path in inputs]

    def advance(label: str, done: int, total: int | None) -> None:
        progress.advance(f"diversity: {label}", done, total)

    found = _core.diversity_json(paths, list(SOURCE_EXTENSIONS), wanted, top, advance)
    return Report(json.loads(found))


def signature(text: str) -> str:
    """The structural signature of the first function in a text, as 32 hexadecimal digits.

    Two functions have the same one when they differ at most in names (of called functions too),
    literal values, comments, docstrings, type annotations, layout and redundant parentheses.

    Raises:
        ConfigError: If the text has no function definition, or it does not parse.
    """
    return _core.signature(text)
