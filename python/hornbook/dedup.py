"""Removes duplicate documents: exact copies, near copies, repeated spans.

Guarantees: a document is removed only if a document that stays has the same text, or a true Jaccard
similarity of word n-grams of at least the threshold; `evidence/removed.json` names that document.
There is no transitive closure: a chain of similar documents is not one cluster. Threads, shards and
memory never change what is kept and why (with `memory_mb`, recall is measured on a smaller sample).
Costs: about 110 MB of Python a CPU second, JSON in and zstd Parquet
out; memory about the size of the text (the text itself is read a second time, not kept), a fifth of
it for `exact`, or what `memory_mb` allows and 100 bytes a document.

    hornbook.dedup(["data/"], "clean/")
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from hornbook import _core, progress
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.dedup_page import write_page
from hornbook.errors import ConfigError
from hornbook.files import StrPath, hash_json
from hornbook.manifest import Outcome, Report, check_threads, file_part, input_hash, run_stage

Method = Literal["minhash", "exact-join", "exact", "substring"]
Keep = Literal["longest", "first", "highest"]

MAX_SIGNATURE = 4096
CHOSEN_SIGNATURE = 256
"""Most values in a signature whose bands are chosen from a wanted recall."""
LEAST_MEMORY_MB = 16
MOST_MEMORY_MB = 1 << 30


_COMMON = {"normalize", "keep", "column", "source", "warn_share"}
_JOIN = _COMMON | {"threshold", "ngram", "components"}
_USED: dict[str, set[str]] = {
    "exact": _COMMON,
    "substring": {"length"},
    "exact-join": _JOIN,
    "minhash": _JOIN | {"bands", "rows", "recall", "seed"},
}
"""The options that decide something with each method."""
_IDLE = {"method", "threshold", "ngram", "bands", "rows", "seed", "warn_share"}
"""Those that may be given all the same, as to methods that are tried in turn."""


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """What decides the result of `dedup`."""

    method: Method = "minhash"
    """`exact`: whole texts only. `minhash`: those first, then near copies that share a band.
    `exact-join`: those first, then every near copy. `substring`: repeated runs of words."""
    threshold: float = 0.7
    """Least Jaccard similarity of a removed document to a kept one."""
    ngram: int = 5
    """Words in a shingle. Documents of fewer words are compared as whole texts only."""
    keep: Keep = "longest"
    """Which of several copies stays: the one with most bytes, the first, or the one with the
    highest number in `column`; of equals the first."""
    column: str | None = None
    """For `keep = "highest"`: a column of numbers. Null and NaN are lowest."""
    bands: int = 32
    """More bands find more pairs and cost more comparisons."""
    rows: int = 5
    """Hash values in a band. A pair of similarity J is found with probability
    1 - (1 - J^rows)^bands: 0.997 at 0.7 with 32 x 5."""
    recall: float | None = None
    """Choose bands and rows so that a pair at the threshold is found with this probability."""
    seed: int = 0
    """Decides the hash functions: from 0 to 2^64 - 1."""
    normalize: bool = False
    """Texts that differ in white space alone are exact copies."""
    length: int = 50
    """For `substring`: a run of so many words that stands in the result already is cut."""
    source: str | None = None
    """Count removals by this column; by input if left out."""
    warn_share: float = 0.5
    """Warn of sources that lose more than this share of at least 20 documents."""
    components: bool = False
    """Also write the connected components of all verified pairs, for looking at."""

    def __post_init__(self) -> None:
        _choice("method", self.method, get_args(Method))
        _choice("keep", self.keep, get_args(Keep))
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold: {self.threshold} is not above 0 and at most 1")
        for name in ("ngram", "bands", "rows", "length"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ConfigError(f"{name}: {getattr(self, name)} is not from 1 to 2^31 - 1")
        if self.bands * self.rows > MAX_SIGNATURE:
            raise ConfigError(
                f"bands x rows: {self.bands * self.rows:,} values a signature; "
                f"at most {MAX_SIGNATURE:,} make sense"
            )
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: {self.seed} is not from 0 to 2^64 - 1")
        if (self.keep == "highest") != (self.column is not None):
            raise ConfigError('column: goes with keep = "highest", and only with it')
        if self.recall is not None and not 0 < self.recall < 1:
            raise ConfigError(f"recall: {self.recall} is not between 0 and 1")
        for option in fields(self):
            given = getattr(self, option.name) != option.default
            if given and option.name not in _USED[self.method] | _IDLE:
                raise ConfigError(f"{option.name}: does nothing with method {self.method}")
        if not 0 < self.warn_share <= 1:
            raise ConfigError(f"warn_share: {self.warn_share} is not above 0 and at most 1")
        self.layout()

    def layout(self) -> tuple[int, int]:
        """Bands and rows, chosen if `recall` asks for it.

        Raises:
            ConfigError: If no signature of a sensible size reaches `recall`.
        """
        if self.recall is None:
            return self.bands, self.rows
        chosen = _core.choose_bands(self.threshold, self.recall, CHOSEN_SIGNATURE)
        if chosen is None:
            raise ConfigError(
                f"recall: {self.recall} at threshold {self.threshold} needs more than "
                f"{CHOSEN_SIGNATURE} values a signature; method exact-join misses nothing"
            )
        return chosen


def recall_curve(bands: int, rows: int) -> dict[str, float]:
    """The chance that a pair shares a band, by its Jaccard similarity from 0.3 to 1."""
    steps = [step / 20 for step in range(6, 21)]
    return {f"{j:.2f}": round(_core.band_recall(j, bands, rows), 4) for j in steps}


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


def dedup(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    method: Method = "minhash",
    threshold: float = 0.7,
    ngram: int = 5,
    keep: Keep = "longest",
    column: str | None = None,
    bands: int = 32,
    rows: int = 5,
    recall: float | None = None,
    seed: int = 0,
    normalize: bool = False,
    length: int = 50,
    source: str | None = None,
    warn_share: float = 0.5,
    components: bool = False,
    against: StrPath | Sequence[StrPath] = (),
    index: StrPath | None = None,
    memory_mb: int | None = None,
    threads: int | None = None,
) -> Report:
    """Copies documents without their duplicates into the folder `out`.

    Words are maximal runs of `[A-Za-z0-9_]` and non-ASCII alphanumerics, lower-cased; shingles are
    runs of `ngram` words, as a set, by 64-bit hash. Candidates share one of `bands` MinHash bands,
    or with `exact-join` an n-gram
    that every similar document must share; each is verified by its true
    Jaccard similarity. Documents are taken in the order of `keep` and removed if they reach the
    threshold with one that was kept before them.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        out: Folder for the result: Parquet parts with every column in input order, `manifest.json`,
            and in `evidence/`: `removed.json` (one JSON object a removed row: `removed_id`,
            `removed_row`, `kept_id`, `kept_row`, `kept_in` unless that is the input, `jaccard`,
            `rule`, which is `exact` for a copy of an earlier text even if that one went for being
            near `kept_id`; rows count usable input rows from 0), `clusters.json` (what went against
            each kept document), `pairs.json` and `pairs.html` (some pairs side by side), and
            `components.json` if asked for.
        method: `minhash`, `exact-join`, `exact` or `substring`.
        threshold: Least similarity of a removed document to a kept one, above 0 and at most 1.
        ngram: Words in a shingle; documents of fewer words are only compared as whole texts.
        keep: `longest` (of text in UTF-8 bytes), `first`, or `highest` in `column`; ties by place.
        column: A column of numbers, for `highest`.
        bands: Bands of the signature.
        rows: Hash values in a band.
        recall: Choose bands and rows that find a pair at the threshold with this probability.
        seed: Decides the hash functions.
        normalize: Texts that differ in white space alone are exact copies.
        length: For `substring`: a run of so many words is cut that stands before it, uncut and not
            overlapping it. So all that is cut stands in the result once more.
        source: Count removals by this column; by input if left out.
        warn_share: Warn of sources that lose more than this share of at least 20 documents.
        components: Write the connected components of all verified pairs that a document of `inputs`
            has a part in, for looking at.
        against: Documents, or indexes of earlier runs, that stay: only `inputs` lose documents.
            They are read twice and never held in memory.
        index: Folder of an index: compared against, and what is kept is added to it. Refused if it
            was made with another ngram, layout, seed or version of the hashes; the method may
            differ. A repeated run replaces what it added.
        memory_mb: Megabytes (2^20 bytes) for sorting and buffers: texts and n-grams then stay on
            disk, and the input is read three times (`exact`: once or twice). About 100 bytes a
            document come on top.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        The manifest. `counts.dropped` holds `exact` (copies of another text) and `near`;
        `details` the pairs compared and verified, the recall expected and measured, removals by
        source, warnings, and the documents too short for a shingle.

    Raises:
        ConfigError: If an option makes no sense.
        InputError: If an input is missing or cannot be read.
        ResumeError: If `out` holds something else, or `index` was made in another way.
        StorageError: If the disk is full or not writable.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    others = paths_of(against) if against else []
    config = DedupConfig(
        method=method,
        threshold=threshold,
        ngram=ngram,
        keep=keep,
        column=column,
        bands=bands,
        rows=rows,
        recall=recall,
        seed=seed,
        normalize=normalize,
        length=length,
        source=source,
        warn_share=warn_share,
        components=components,
    )
    if memory_mb is not None and not LEAST_MEMORY_MB <= memory_mb <= MOST_MEMORY_MB:
        raise ConfigError(
            f"memory_mb: {memory_mb} is not from {LEAST_MEMORY_MB} to {MOST_MEMORY_MB:,}"
        )
    if method == "substring":
        if others or index is not None or memory_mb is not None:
            raise ConfigError("against, index and memory_mb do not go with method substring")
        return _substring(paths, out, config, threads)
    bands, rows = config.layout()
    identity = _identity(config)
    where = Path(index) if index is not None else None
    if where is not None:
        # The index itself is no part of the identity: this run changes it.
        identity["index"] = str(where.resolve())
        hashes = [input_hash(path) for path in [*paths, *others]]
        segment = hash_json([identity, hashes])

    def work(folder: Path) -> Outcome:
        job = {
            **asdict(config),
            "bands": bands,
            "rows": rows,
            "paths": paths,
            "extensions": list(SOURCE_EXTENSIONS),
            "out": folder,
            "against": others,
            "index": (where, segment) if where is not None else None,
            "memory": memory_mb << 20 if memory_mb is not None else None,
        }
        done = _core.dedup_corpus(job, threads, _advance)
        return _outcome(folder, config, done)

    return run_stage(
        "dedup",
        out,
        inputs=[*paths, *others],
        config=identity,
        work=work,
        seed=seed if method == "minhash" else None,
        hashes_inputs=True,
        still=lambda: where is None or _core.dedup_index_lists(where, segment),
    )


def _advance(label: str, done: int, total: int | None) -> None:
    progress.advance(f"dedup: {label}", done, total)


def _identity(config: DedupConfig) -> dict[str, Any]:
    """The options that decide the result of this method."""
    used = _USED[config.method]
    return {name: value for name, value in asdict(config).items() if name in used | {"method"}}


def _outcome(folder: Path, config: DedupConfig, done: dict[str, Any]) -> Outcome:
    dropped: dict[str, int] = {"exact": done["exact"]}
    evidence = {part["name"]: part for part in done["evidence"]}
    sources = {name: {"rows": rows, "removed": removed} for name, rows, removed in done["sources"]}
    warnings = [
        f"{name or '(none)'} lost {removed:,} of {rows:,} documents ({removed / rows:.0%})"
        for name, rows, removed in done["sources"]
        if rows >= 20 and removed / rows > config.warn_share
    ]
    details: dict[str, Any] = {
        "evidence": evidence.pop("evidence/removed.json"),
        "against": done["against"],
        "sources": sources,
        "warnings": warnings,
    }
    if config.method != "exact":
        dropped["near"] = done["near"]
        details |= {
            "candidate_pairs": done["compared"],
            "verified_pairs": done["near"],
            "documents_too_short": done["short"],
            "token_rule": done["token_rule"],
        }
    if config.method == "exact-join":
        details["expected_recall"] = 1.0
    if config.method == "minhash":
        bands, rows = config.layout()
        details |= {
            "bands": bands,
            "rows": rows,
            "expected_recall": _core.band_recall(config.threshold, bands, rows),
            "recall_curve": recall_curve(bands, rows),
            "measured_recall": _measured(done["recall"]),
        }
    write_page(folder, details)
    evidence["evidence/pairs.html"] = file_part(folder, "evidence/pairs.html")
    details["more_evidence"] = list(evidence.values())
    return Outcome(
        parts=done["parts"],
        rows_in=done["rows"],
        kept=done["rows"] - sum(dropped.values()),
        dropped=dropped,
        rejected=done["rejected"],
        details=details,
        hashes=dict(done["hashes"]),
    )


def _measured(recall: tuple[int, int, int, tuple[float, float, float] | None]) -> dict[str, Any]:
    """The recall of the bands on a sample, held against the exact join."""
    documents, pairs, found, estimate = recall
    measured: dict[str, Any] = {
        "sampled_documents": documents,
        "similar_pairs": pairs,
        "pairs_found": found,
    }
    if estimate is not None:
        share, low, high = estimate
        measured |= {"recall": share, "low": low, "high": high}
    return measured


def _substring(paths: list[Path], out: StrPath, config: DedupConfig, threads: int | None) -> Report:
    def work(folder: Path) -> Outcome:
        done = _core.dedup_substring(
            paths, list(SOURCE_EXTENSIONS), folder, config.length, threads, _advance
        )
        read, cut = done["bytes"]
        return Outcome(
            parts=done["parts"],
            rows_in=done["rows"],
            kept=done["rows"] - done["emptied"],
            dropped={"emptied": done["emptied"]},
            rejected=done["rejected"],
            details={
                "evidence": done["evidence"],
                "cuts": done["cuts"],
                "shortened": done["shortened"],
                "bytes_read": read,
                "bytes_cut": cut,
                "token_rule": done["token_rule"],
            },
        )

    return run_stage("dedup", out, inputs=paths, config=_identity(config), work=work)
