"""Stages on disk: `inputs + config -> folder`, and the manifest that says what the folder is.

A stage's folder holds its parts and, written last, `manifest.json`. So a folder with a manifest is
whole, and one without is not. The same inputs, config and version give the same `key`, and a stage
whose folder already has that key is skipped. Nothing here overwrites what another stage made.

    hornbook verify runs/demo/dedup
"""

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hornbook import __version__, _core
from hornbook.errors import ConfigError, InputError, ResumeError, StorageError
from hornbook.files import StrPath, as_json, hash_json, json_lines, locked, read_json, write_text

MANIFEST = "manifest.json"
STARTED = "started.json"
MOST_THREADS = 4096
_NAMED = ("name", "bytes", "xxh3")
"""What a manifest says of each part."""


class Report(Mapping[str, Any]):
    """What a stage did: a mapping that prints as a table and saves as JSON."""

    def __init__(self, data: Mapping[str, Any], *, reused: bool = False) -> None:
        self._data = dict(data)
        self.reused = reused
        """Whether this is the result of an earlier run, found and not made again."""

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"Report({self._data!r})"

    def __str__(self) -> str:
        rows = list(_flatten(self._data))
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self._data, indent=1, ensure_ascii=False)

    def save(self, path: StrPath) -> None:
        """Writes the report as a JSON file, atomically.

        Raises:
            StorageError: If it cannot be written.
        """
        write_text(Path(path), self.to_json() + "\n")


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list) and len(value) > 8:
            yield name, f"[{len(value)} entries]"
        elif isinstance(value, float):
            yield name, f"{value:,.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, f"{value:,}"
        else:
            yield name, str(value)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage's work returns for its manifest."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    """Files made: name (relative to the folder), rows, bytes, xxh3."""
    rows_in: int = 0
    """Usable rows read."""
    kept: int = 0
    """Rows written."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows not written, by reason."""
    rejected: int = 0
    """Unusable rows, set aside in `rejected/`."""
    details: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping."""
    hashes: Mapping[Path, str] = field(default_factory=dict)
    """What `input_hash` would say of files among the inputs, if the work hashed them as it read."""
    partial: bool = False
    """The parts are whole, but the work stopped early: the same call goes on with it. It never
    replaces a finished result."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a stage's manifest says.

    Raises:
        InputError: If it is missing or torn.
    """
    return _read(folder / MANIFEST)


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, remedy=f"remove {file.parent} to begin again")


def input_hash(path: StrPath, known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """What an input is, as one hash: a stage's manifest if it has one, else the bytes of its files.

    Args:
        path: A file or folder.
        known: Hashes of files that need not be read for it.

    Raises:
        InputError: If it does not exist, or is the folder of a stage that lacks a part.
    """
    path = Path(path)
    if path.is_file():
        return known.get(path) or _core.hash_file(path)
    made = _stage_parts(path)
    if made is not None:
        damage = _damage(path, made)
        if damage is not None:
            raise InputError(f"{damage}: run the stage that made {path} again")
        return hash_json([[part["name"], part["xxh3"]] for part in made])
    return hash_json(
        [[str(file.relative_to(path)), input_hash(file, known)] for file in _files(path)]
    )


def _files(path: Path) -> list[Path]:
    """The files of an input, in order. Links to files count as what they lead to: a model as the
    Hugging Face cache keeps it is nothing else."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        what = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {what}")
    return sorted(
        file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of an input."""
    made = _stage_parts(path)
    # What stands beside a stage's parts is no input: training keeps its plans there.
    files = _files(path) if made is None else [path / part["name"] for part in made]
    states = [(str(file), file.stat()) for file in files if file.exists()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _stage_parts(folder: Path) -> list[dict[str, Any]] | None:
    """Name, size and hash of a stage's parts; None for a folder that no stage made.

    Other software keeps files of this name too, so it must look like ours in every respect.
    """
    try:
        return _parts_of(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _parts_of(manifest: Any) -> list[dict[str, Any]] | None:
    """The parts that a manifest names; None for one of another shape."""
    try:
        ours = manifest["schema"] == 1 and isinstance(manifest["stage"], str)
        if ours and isinstance(manifest["key"], str):
            return [{name: part[name] for name in _NAMED} for part in manifest["parts"]]
    except (KeyError, TypeError):
        pass
    return None


def _damage(folder: Path, parts: Iterable[Mapping[str, Any]]) -> str | None:
    """What is wrong with the first part that is not there, or not as large as it was."""
    for part in parts:
        path = folder / part["name"]
        try:
            size = path.stat().st_size
        except OSError:
            return f"{path}: missing, though the manifest names it"
        if size != part["bytes"]:
            return f"{path}: {size:,} bytes, but the manifest says {part['bytes']:,}"
    return None


def file_part(folder: Path, name: str, rows: int = 0) -> dict[str, Any]:
    """A manifest's entry for a file that was written outside the Rust core."""
    file = folder / name
    return {
        "name": name,
        "rows": rows,
        "bytes": file.stat().st_size,
        "xxh3": _core.hash_file(file),
    }


def stage_key(stage: str, config: Any, inputs: Iterable[StrPath]) -> str:
    """The identity of a stage's result: stage, config, inputs and this package's version."""
    return _key(stage, config, [input_hash(path) for path in inputs])


def _key(stage: str, config: Any, hashes: list[str]) -> str:
    return hash_json({"stage": stage, "config": config, "in": hashes, "version": __version__})


def completed(out: StrPath, stage: str, key: str) -> Report | None:
    """The report of a finished run with this key, if `out` holds one whose parts are all there."""
    folder = Path(out)
    if not (folder / MANIFEST).is_file():
        return None
    data = read_manifest(folder)
    parts = _parts_of(data)
    same = (data.get("stage"), data.get("key")) == (stage, key)
    whole = parts is not None and _damage(folder, parts) is None
    return Report(data, reused=True) if same and whole else None


def run_stage(
    stage: str,
    out: StrPath,
    *,
    inputs: Iterable[StrPath],
    config: Any,
    work: Callable[[Path], Outcome],
    seed: int | None = None,
    resumable: bool = False,
    precious: bool = False,
    hashes_inputs: bool = False,
    still: Callable[[], bool] = lambda: True,
) -> Report:
    """Runs `work(folder)` unless its result is already there; writes the manifest last.

    A result of the same stage with another key is replaced, but only once the new one is whole: if
    `work` fails, it is put back, and what `resumable` work left waits beside it.

    Args:
        stage: The stage's name.
        out: Its folder.
        inputs: Files and folders it reads; their contents are part of its identity.
        config: Everything else that decides its bytes: a dataclass or anything JSON can hold.
        work: Writes the parts into the folder it is given.
        seed: Recorded in the manifest (and part of `config` where it matters).
        resumable: `work` can go on from what an interrupted run of the same key left.
        precious: Never replace what another key made: that took too long. What an unfinished run
            of another key left, `work` goes on from or refuses by itself.
        hashes_inputs: `work` hashes what it reads, so that inputs are read once less where there is
            no earlier result that could be the same.
        still: Whether all else is there that an earlier run of this key made; else it runs again.

    Returns:
        The manifest, as a report.

    Raises:
        ResumeError: If `out` holds something that this stage did not make, or that is precious, or
            if another process is at work on it.
        ConfigError: If an input lies inside `out`, or `out` inside an input.
        InputError: If an input is missing.
    """
    paths = [Path(path) for path in inputs]
    folder = Path(out)
    for path in paths:
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(f"{folder}: holds the input {path}; name another folder")
        if path.is_dir() and path.resolve() in folder.resolve().parents:
            raise ConfigError(
                f"{folder}: lies inside the input {path}, so that the next run would read it too; "
                "name a folder elsewhere"
            )
    hashes: list[str] = []
    key = ""
    # Of what takes days, training, the data itself is checked block by block.
    watched = [] if precious else paths
    before_work = [_state(path) for path in watched]
    if not hashes_inputs or resumable or precious or (folder / MANIFEST).is_file():
        hashes = [input_hash(path) for path in paths]
        key = _key(stage, config, hashes)
        done = completed(folder, stage, key)
        if done is not None and still():
            return done
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder.parent}: {error.strerror}") from error
    with locked(_beside(folder, "lock"), folder):
        _undo_kill(folder, keep=resumable)
        if not key and (folder / MANIFEST).is_file():
            hashes = [input_hash(path) for path in paths]
            key = _key(stage, config, hashes)
        done = completed(folder, stage, key)
        if done is not None and still():
            return done
        described = as_json(config)
        before = _make_room(folder, stage, key, described, keep=resumable, precious=precious)
        start, cpu = time.time(), time.process_time()
        try:
            _begin(folder, stage, key)
            outcome = work(folder)
            if outcome.rejected and not outcome.rows_in:
                raise InputError(_unusable(folder, paths, outcome.rejected))
            for path, state in zip(watched, before_work, strict=True):
                # What was hashed or is hashed now would not be what was read.
                if _state(path) != state:
                    raise InputError(f"{path}: changed while it was being read; run it again")
            if not key:
                hashes = [input_hash(path, outcome.hashes) for path in paths]
                key = _key(stage, config, hashes)
            report = Report(
                {
                    "schema": 1,
                    "stage": stage,
                    # Not a finished result's, so that the next run does not take it for one.
                    "key": f"partial-{key}" if outcome.partial else key,
                    "config": described,
                    "inputs": [
                        {"path": str(path), "hash": of_it}
                        for path, of_it in zip(paths, hashes, strict=True)
                    ],
                    "seed": seed,
                    **_described(outcome),
                    "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
                    "seconds": round(time.time() - start, 3),
                    "cpu_seconds": round(time.process_time() - cpu, 3),
                }
            )
            if not outcome.partial or before is None or _is_partial(before):
                report.save(folder / MANIFEST)
        except BaseException:
            if before is not None:
                _put_back(before, folder, keep=resumable)
            raise
        if not (folder / MANIFEST).is_file():
            assert before is not None
            _put_back(before, folder, keep=False)
            return report
        (folder / STARTED).unlink(missing_ok=True)
        shutil.rmtree(_beside(folder, "before"), ignore_errors=True)
        shutil.rmtree(_beside(folder, "unfinished"), ignore_errors=True)
        return report


def _described(outcome: Outcome) -> dict[str, Any]:
    """What a manifest says of an outcome, and of where it was made."""
    return {
        "parts": outcome.parts,
        "counts": {
            "in": outcome.rows_in,
            "kept": outcome.kept,
            "dropped": outcome.dropped,
            "rejected": outcome.rejected,
        },
        "details": outcome.details,
        "versions": {
            "hornbook": __version__,
            "python": platform.python_version(),
            "platform": f"{sys.platform}-{platform.machine()}",
        },
    }


def _put_back(before: Path, folder: Path, *, keep: bool) -> None:
    """Puts an earlier result back into its folder; what stands there goes aside, if to `keep`."""
    unfinished = _beside(folder, "unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if keep and folder.is_dir():
        folder.rename(unfinished)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    before.rename(folder)


def _unusable(folder: Path, paths: list[Path], count: int) -> str:
    """What is said where every row was set aside."""
    names = ", ".join(map(str, paths))
    first = ""
    with suppress(OSError, ValueError, LookupError, TypeError):
        text = (folder / "rejected" / "rows.jsonl").read_text(encoding="utf-8")
        row: dict[str, Any] = next(json_lines(text), {})
        first = f", the first ({row['path']}, row {row['row']}) because: {row['reason']}"
    return f"{names}: no usable row; {count:,} were set aside{first}"


def _is_partial(folder: Path) -> bool:
    return str(read_manifest(folder).get("key", "")).startswith("partial-")


def _key_of(file: Path) -> str | None:
    """The key in a manifest or a marker, if it is there and sound."""
    try:
        return str(_read(file).get("key"))
    except InputError:
        return None


def _beside(folder: Path, what: str) -> Path:
    """What stands beside a stage's folder while it is made: its earlier result, which waits there
    as `before`; what an interrupted run left, as `unfinished`; its `lock`."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f".{folder.name}.{what}")


def _undo_kill(folder: Path, *, keep: bool) -> None:
    """Puts an earlier result back that a killed run had set aside, and what that run left aside."""
    before = _beside(folder, "before")
    if (folder / MANIFEST).is_file() or not (before / MANIFEST).is_file():
        return
    if (folder / STARTED).is_file():
        _put_back(before, folder, keep=keep)
    elif folder.is_dir() and not _others(folder):
        _put_back(before, folder, keep=False)
    elif not folder.exists():
        before.rename(folder)


def _others(folder: Path) -> bool:
    """Whether a folder holds more than a kill leaves while the marker is being written."""
    return any(path.name != f"{STARTED}.tmp" for path in folder.iterdir())


def _difference(before: Any, now: Any) -> str:
    """Which settings are others now, in words."""
    old, new = (
        dict(_flatten(one if isinstance(one, Mapping) else {"setting": one}))
        for one in (before, now)
    )
    changed = [
        f"{name} {old.get(name, 'not set')} (now {new.get(name, 'not set')})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return "other inputs, or of another version"
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _make_room(
    folder: Path, stage: str, key: str, config: Any, *, keep: bool, precious: bool
) -> Path | None:
    """Prepares the folder of a stage that is about to run, refusing to touch anyone else's.

    Returns:
        Where a finished result of another key was put aside, if there was one.
    """
    if folder.exists() and not folder.is_dir():
        raise ResumeError(f"{folder}: is a file; name a folder for the output")
    before = None
    marker = folder / STARTED
    if folder.is_dir() and _others(folder):
        owner = folder / MANIFEST if (folder / MANIFEST).is_file() else marker
        if not owner.is_file():
            raise ResumeError(
                f"{folder}: is not empty and was not made by `{stage}`; name another folder"
            )
        found = _read(owner)
        if found.get("stage") != stage:
            raise ResumeError(
                f"{folder}: holds the output of `{found.get('stage')}`, not of `{stage}`; "
                "name another folder or remove it"
            )
        if precious and owner != marker and found.get("key") != key:
            raise ResumeError(
                f"{folder}: holds the result of `{stage}` with "
                f"{_difference(found.get('config'), config)}; move it away, or name another folder"
            )
        if precious and owner != marker:
            # It lost a part: that alone is made again, of what else is there.
            owner.rename(marker)
        elif owner != marker:
            before = _beside(folder, "before")
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
            unfinished = _beside(folder, "unfinished")
            if keep and _key_of(unfinished / STARTED) == key:
                unfinished.rename(folder)
        elif not (precious or (keep and found.get("key") == key)):
            shutil.rmtree(folder)
    return before


def _begin(folder: Path, stage: str, key: str) -> None:
    """Marks a folder as that of a stage at work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    write_text(folder / STARTED, json.dumps({"stage": stage, "key": key}))


def check_threads(threads: int | None) -> None:
    """Refuses a thread count below 1 or beyond any machine.

    Raises:
        ConfigError: If it is.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(
            f"threads: {threads} is not from 1 to {MOST_THREADS:,}; leave it out to use every core"
        )


def verify(folder: StrPath) -> Report:
    """Checks every part of a stage against its manifest.

    Returns:
        A report with `checked` (files), `bytes` and `ok` (always true: anything else raises).

    Raises:
        InputError: Naming the parts that are missing, truncated or changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    total = 0
    parts = manifest.get("parts")
    described = {"name": str, "bytes": int, "xxh3": str}
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and all(isinstance(part.get(k), t) for k, t in described.items())
        for part in parts
    ):
        raise InputError(
            f"{folder / MANIFEST}: `parts` is no list of objects with name, bytes and xxh3"
        )
    details = manifest.get("details") or {}
    more = [details.get("evidence"), *(details.get("more_evidence") or [])]
    parts = [*parts, *(part for part in more if isinstance(part, dict) and "xxh3" in part)]
    faults = []
    for part in parts:
        path = folder / part["name"]
        if folder.resolve() not in path.resolve().parents:
            raise InputError(f"{folder / MANIFEST}: part `{part['name']}` lies outside the folder")
        fault = _damage(folder, [part])
        if fault is None and _core.hash_file(path) != part["xxh3"]:
            fault = f"{path}: its contents changed since it was written (hash differs)"
        if fault is not None:
            faults.append(fault)
        total += part["bytes"]
    if faults:
        others = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise InputError(f"{'; '.join(faults[:5])}{others}: remove {folder} and run it again")
    return Report(
        {
            "folder": str(folder),
            "stage": manifest.get("stage"),
            "checked": len(parts),
            "bytes": total,
            "ok": True,
        }
    )
