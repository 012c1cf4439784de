"""The raw pool: whatever the recipe names, gathered as one stage with a `source` column: the
documents' own if there are few, or else the name of their file.

Three names are built in: `stdlib`, the running interpreter's own library (about 12 MB of real
code), `installed`, the packages installed beside it, and `pool`, procedural repository-like files.
Everything else is a file or folder.
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook import corpus
from hornbook.files import StrPath
from hornbook.manifest import Outcome, Report, run_stage

# Tests of the library are no library, and some of its folders are other people's packages.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# Tests hold benchmarks' problems; this package holds what makes the held-out ones.
_NOT_PACKAGES = {"test", "tests", "testing", "__pycache__", "hornbook"}


BUILT_IN = ("stdlib", "installed", "pool")
MOST_SOURCES = 1000
"""Values of a `source` column that are still taken for sources."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The raw pool."""

    raw: tuple[str, ...] = ()
    """Files and folders. Three names are built in: `stdlib` (the running interpreter's library),
    `installed` (the packages installed beside it, but for their tests) and `pool` (procedural
    repository-like files with the paper's four defects)."""
    extensions: tuple[str, ...] = ("py",)
    """Source files to take from folders, without the dot."""
    pool_files: int = 2000
    """Files in the procedural pool, where `raw` names it."""
    pool_levels: tuple[int, ...] = (1,)
    """Levels of the functions hidden in it."""


def standard_library() -> list[Path]:
    """The `.py` files of the running interpreter's standard library, by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(
        path
        for path in root.rglob("*.py")
        if not _NOT_LIBRARY.intersection(path.relative_to(root).parts)
    )


def installed_packages() -> list[tuple[Path, str]]:
    """The `.py` files of installed packages and what they are called, by name."""
    roots = {Path(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib")}
    return sorted(
        (path, path.relative_to(root).as_posix())
        for root in roots
        for path in root.rglob("*.py")
        if not _NOT_PACKAGES.intersection(path.relative_to(root).parts)
    )


def gather(out: StrPath, config: SourceConfig, *, seed: int = 0, pool: StrPath = "") -> Report:
    """Gathers the raw pool into one folder of Parquet parts.

    Args:
        out: The stage's folder.
        config: What to gather.
        seed: Recorded; the procedural pool is made with it beforehand.
        pool: The folder of the procedural pool, where `config.raw` names `pool`.

    Returns:
        The manifest; unusable files are in `rejected/`.
    """
    found = {name: _inputs(name, pool) for name in config.raw}
    inputs = [path for name in config.raw for path, _ in found[name]]
    columns: dict[str, str] = {}
    mixed: set[str] = set()
    """Columns of several types, kept as text."""
    theirs: set[str] = set()
    """Those of `raw` whose documents say themselves where they are from."""
    rejected: list[tuple[Path, int, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for name in config.raw:
            for path, label in found[name]:
                documents = corpus.read([path], config.extensions)
                for row in documents:
                    if label:
                        row["path"] = label
                    for column in mixed:
                        if row.get(column) is not None:
                            row[column] = str(row[column])
                    own = row.get("source") if name in theirs else None
                    where = name if name in BUILT_IN else path.name
                    yield {**row, "source": where if own in (None, "") else str(own)}
                rejected.extend(documents.rejected)

    def work(folder: Path) -> Outcome:
        for name in config.raw:
            paths = [path for path, _ in found[name]]
            if name not in BUILT_IN and _has_sources(paths, config.extensions):
                theirs.add(name)
            for column, kind in corpus.read(paths, config.extensions).schema:
                known = columns.setdefault(column, kind)
                if known != kind:
                    numbers = {known, kind} == {"int64", "float64"}
                    columns[column] = "float64" if numbers else "string"
                    if not numbers:
                        mixed.add(column)
        extra = {name: kind for name, kind in columns.items() if name not in ("id", "text")}
        parts = corpus.write(folder, rows(), {**extra, "source": "string"})
        corpus.write_rejected(folder, rejected)
        count = sum(part["rows"] for part in parts)
        return Outcome(parts=parts, rows_in=count, kept=count, rejected=len(rejected))

    return run_stage("source", out, inputs=inputs, config=config, work=work, seed=seed)


def _has_sources(paths: list[Path], extensions: tuple[str, ...]) -> bool:
    """Whether a `source` column names where documents are from, and not each of them by itself: a
    sample is spread over sources, and reports have a row for each."""
    if "source" not in dict(corpus.read(paths, extensions).schema):
        return False
    seen: set[str] = set()
    for batch in corpus.read(paths, extensions).batches():
        seen.update(map(str, batch.get("source", ())))
        if len(seen) > MOST_SOURCES:
            return False
    return True


def _inputs(name: str, pool: StrPath) -> list[tuple[Path, str]]:
    """Inputs, and what their `path` column says where that is not up to the reader."""
    if name == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        files = standard_library()
        return [(path, f"stdlib/{path.relative_to(root).as_posix()}") for path in files]
    if name == "installed":
        return [(path, f"installed/{label}") for path, label in installed_packages()]
    return [(Path(pool) if name == "pool" else Path(name), "")]
