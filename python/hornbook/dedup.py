"""Removes duplicate documents: exact copies by hash, near copies by verified MinHash.

Guarantees: a document is removed only if a document that stays has the same text, or a true Jaccard
similarity of word n-grams of at least the threshold; `evidence/removed.json` names that document.
There is no transitive closure: a chain of similar documents is not one cluster. The thread count
never changes a byte. Costs: about 60 MB of Python a CPU second, JSON in and zstd Parquet out; about
400 bytes of memory a document, and 8 bytes a distinct n-gram where a near copy is possible.

    hornbook.dedup(["data/"], "clean/")
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hornbook import _core
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.errors import ConfigError
from hornbook.manifest import Outcome, Report, StrPath, run_stage

Method = Literal["minhash", "exact"]
Keep = Literal["longest", "first"]

MAX_SIGNATURE = 4096


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What decides the result of `dedup`."""

    method: Method = "minhash"
    """`exact`: whole texts only. `minhash`: those first, then near copies."""
    threshold: float = 0.7
    """Least Jaccard similarity of a removed document to a kept one."""
    ngram: int = 5
    """Words in a shingle. Documents of fewer words are compared as whole texts only."""
    keep: Keep = "longest"
    """Which of several near copies stays: the one with most bytes (of equals the first), or the
    first. Of exact copies the first stays."""
    bands: int = 32
    """More bands find more pairs and cost more comparisons."""
    rows: int = 5
    """Hash values in a band. A pair of similarity J is found with probability
    1 - (1 - J^rows)^bands: 0.997 at 0.7 with 32 x 5."""
    seed: int = 0
    """Decides the hash functions: from 0 to 2^64 - 1."""

    def __post_init__(self) -> None:
        _choice("method", self.method, get_args(Method))
        _choice("keep", self.keep, get_args(Keep))
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold: {self.threshold} is not above 0 and at most 1")
        for name in ("ngram", "bands", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is less than 1")
        if self.bands * self.rows > MAX_SIGNATURE:
            raise ConfigError(
                f"bands x rows: {self.bands * self.rows:,} values a signature; "
                f"at most {MAX_SIGNATURE:,} make sense"
            )
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: {self.seed} is not from 0 to 2^64 - 1")


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: `{value}` is not one of {', '.join(choices)}")


def paths_of(inputs: StrPath | Sequence[StrPath]) -> list[Path]:
    """One path or several as a list.

    Raises:
        ConfigError: If there is none.
    """
    several = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    if not several:
        raise ConfigError("inputs: name at least one file or folder")
    return [Path(path) for path in several]


def check_threads(threads: int | None) -> None:
    """Refuses a thread count below 1.

    Raises:
        ConfigError: If it is.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: {threads} is less than 1; leave it out to use every core")


def dedup(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    method: Method = "minhash",
    threshold: float = 0.7,
    ngram: int = 5,
    keep: Keep = "longest",
    bands: int = 32,
    rows: int = 5,
    seed: int = 0,
    threads: int | None = None,
) -> Report:
    """Copies documents without their duplicates into the folder `out`.

    Words are maximal runs of `[A-Za-z0-9_]` and non-ASCII alphanumerics, lower-cased; shingles are
    runs of `ngram` words, as a set, by 64-bit hash. Candidates share one of `bands` MinHash bands;
    every candidate is verified by its true Jaccard similarity. Documents are taken in the order of
    `keep` and removed if they reach the threshold with one that was kept before them.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        out: Folder for the result: Parquet parts with every column in input order, `manifest.json`,
            `evidence/removed.json` (one JSON object a removed row: `removed_id`, `removed_row`,
            `kept_id`, `kept_row`, `jaccard`, `rule`; rows count usable input rows from 0).
        method: `exact` or `minhash`; the options below are for `minhash`.
        threshold: Least similarity of a removed document to a kept one, above 0 and at most 1.
        ngram: Words in a shingle; documents of fewer words are only compared as whole texts.
        keep: `longest` (of text in UTF-8 bytes, ties by position) or `first`.
        bands: Bands of the signature.
        rows: Hash values in a band.
        seed: Decides the hash functions.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        The manifest. `counts.dropped` holds `exact` (copies of an earlier text) and, for `minhash`,
        `near`; `details` the pairs compared and verified, the expected recall at the threshold and
        the documents too short for a shingle.

    Raises:
        ConfigError: If an option makes no sense.
        InputError: If an input is missing or cannot be read.
        ResumeError: If `out` holds something else.
        StorageError: If the disk is full or not writable.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    config = DedupConfig(
        method=method,
        threshold=threshold,
        ngram=ngram,
        keep=keep,
        bands=bands,
        rows=rows,
        seed=seed,
    )
    near = (threshold, ngram, keep == "longest", bands, rows, seed) if method == "minhash" else None

    def work(folder: Path) -> Outcome:
        done = _core.dedup_corpus(paths, list(SOURCE_EXTENSIONS), folder, near, threads)
        dropped: dict[str, int] = {"exact": done["exact"]}
        details: dict[str, Any] = {"evidence": done["evidence"]}
        if near is not None:
            dropped["near"] = done["near"]
            details |= {
                "candidate_pairs": done["compared"],
                "verified_pairs": done["near"],
                "documents_too_short": done["short"],
                "bands": bands,
                "rows": rows,
                "expected_recall": done["expected_recall"],
                "token_rule": done["token_rule"],
            }
        return Outcome(
            parts=done["parts"],
            rows_in=done["rows"],
            kept=done["rows"] - sum(dropped.values()),
            dropped=dropped,
            rejected=done["rejected"],
            details=details,
        )

    identity = asdict(config) if near is not None else {"method": method}
    return run_stage(
        "dedup",
        out,
        inputs=paths,
        config=identity,
        work=work,
        seed=seed if near is not None else None,
    )
