"""Checkpoints: torch's distributed format, written while training goes on, whole or absent.

`checkpoints/step-00001000/` holds the pieces of weights and optimizer that each process had
(`*.distcp`, `.metadata`), the model's `config.json` and tokenizer, and, written last, `state.json`
with the step, the run's identity and every file's size and hash. It is made under a temporary name,
synced and renamed; `latest` names the newest. A torn or changed one, or one of another shape, is
refused and the one before it used; what was refused is put aside as `refused-step-...`. Any number
of processes may go on from it. Nothing in it is unpickled before its hash has been compared;
`hornbook export hf` makes a model folder of it.

    hornbook export hf runs/demo/train/raw/seed-0/base/checkpoints/step-00004000 --out model/
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_pieces
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_pieces

from hornbook import _core
from hornbook.errors import HornbookError, InputError, StorageError
from hornbook.files import read_json, write_text
from hornbook.model import hf
from hornbook.model.config import PhiConfig
from hornbook.model.phi import Phi

STATE = "state.json"
METADATA = ".metadata"
WEIGHTS = "model"
"""What the names of weights begin with; the optimizer's begin with the moment's name."""

Tensors = dict[str, dict[str, Tensor]]
"""Kind (`model`, `exp_avg`, ...) -> parameter -> tensor, or a process's piece of it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    """Where it is."""
    step: int
    """Steps done."""
    state: dict[str, Any]
    """What the loop kept beside the tensors."""

    def load(self, tensors: Tensors) -> None:
        """Fills tensors, or pieces, in place; every process must ask, each for its own.

        Raises:
            InputError: If one is missing or has another shape.
        """
        _quiet()
        try:
            load_pieces(tensors, checkpoint_id=self.folder)
        except (CheckpointException, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"{self.folder}: {_first_line(error)}") from error


class Saver:
    """Writes checkpoints of one run, one at a time.

    Args:
        root: The folder of checkpoints; all machines must see it.
        rank: This process's number; the first one completes what all have written.
        group: A group of processes for this alone, or None for one process.
        background: Return once tensors are copied, and write while training goes on.
        keep: How many of the newest stay; 0 keeps all.
        keep_every: Checkpoints of every so many steps stay too.
    """

    def __init__(
        self,
        root: Path,
        *,
        rank: int = 0,
        group: Any = None,
        background: bool = True,
        keep: int = 2,
        keep_every: int = 0,
    ) -> None:
        self.root, self.rank, self.group = root, rank, group
        self.background, self.keep, self.keep_every = background, keep, keep_every
        self._pool = ThreadPoolExecutor(1, "hornbook-checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, step: int, tensors: Tensors, state: dict[str, Any], files: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint once the one before is written.

        Args:
            step: Steps done.
            tensors: Weights and optimizer; copied before this returns.
            state: Anything JSON can hold.
            files: `config` (PhiConfig) and `tokenizer` (or None), for the model folder that may be
                made of it.

        Raises:
            StorageError: If the disk refused this one or the one before; older ones are untouched.
        """
        self.wait()
        _quiet()
        temporary = self.root / f".step-{step:08d}.tmp"
        if self.rank == 0:
            # Nobody writes before the first process has planned it with the others.
            shutil.rmtree(temporary, ignore_errors=True)
        writer = FileSystemWriter(temporary, overwrite=True)
        options = {"storage_writer": writer, "process_group": self.group}
        try:
            if self.background:
                options["no_dist"] = self.group is None
                written = async_save(tensors, **options)
            else:
                written = Future()
                written.set_result(save_pieces(tensors, **options))
        except (CheckpointException, OSError, RuntimeError) as error:
            raise StorageError(f"{temporary}: {_first_line(error)}") from error
        assert isinstance(written, Future)
        self._pending = self._pool.submit(self._complete, written, step, state, files)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            StorageError: If the disk refused.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread, after what it is writing."""
        self._pool.shutdown()

    def _complete(
        self, written: "Future[Any]", step: int, state: dict[str, Any], files: Mapping[str, Any]
    ) -> None:
        folder = self.root / f"step-{step:08d}"
        temporary = self.root / f".{folder.name}.tmp"
        try:
            written.result()
            if self.rank != 0:
                return
            # As it was written: what torch 2.11 returns lacks the names of the files.
            metadata = FileSystemReader(temporary).read_metadata()
            hf.write_config(files["config"], temporary, tokenizer=files["tokenizer"])
            present = {file.name for file in temporary.iterdir()}
            wanted = {entry.relative_path for entry in metadata.storage_data.values()}
            if not wanted <= present:
                raise StorageError(
                    f"{temporary}: lacks {', '.join(sorted(wanted - present)[:3])}, written by "
                    "another process; `out` must be a folder that all machines share"
                )
            hashes = {
                file.name: {"bytes": file.stat().st_size, "xxh3": _core.hash_file(file)}
                for file in sorted(temporary.iterdir())
            }
            whole = {"step": step, "files": hashes, "state": state}
            write_text(temporary / STATE, json.dumps(whole, indent=1) + "\n")
            _sync_folder(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            _sync_folder(self.root)
            write_text(self.root / "latest", folder.name + "\n")
            _sync_folder(self.root)
            others = [path for path in found(self.root) if path != folder]
            for old in others[: max(0, len(others) + 1 - self.keep)] if self.keep else []:
                if not self.keep_every or step_of(old) % self.keep_every:
                    shutil.rmtree(old)
        except HornbookError:
            raise
        # Whatever it is, the other processes must hear of it and stop.
        except (CheckpointException, Exception) as error:
            raise StorageError(f"{folder}: {_first_line(error)}") from error


def found(root: Path) -> list[Path]:
    """The folders of checkpoints, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def check(folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Checkpoint:
    """Opens a checkpoint after comparing every file with its hash.

    Args:
        folder: Where it is.
        shapes: What the tensors must be, `<kind>.<parameter>` -> shape.

    Raises:
        InputError: If anything is missing, torn, changed or of another shape; the message names it.
    """
    data = read_json(folder / STATE)
    files, step, state = data.get("files"), data.get("step"), data.get("state")
    if not isinstance(files, dict) or not isinstance(step, int) or not isinstance(state, dict):
        raise InputError(f"{folder / STATE}: not the state of a checkpoint")
    if METADATA not in files or "config.json" not in files:
        raise InputError(f"{folder / STATE}: names no {METADATA} or no config.json")
    for name, entry in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise InputError(f"{file}: missing")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(f"{file}: {file.stat().st_size:,} bytes instead of {entry['bytes']:,}")
        if _core.hash_file(file) != entry["xxh3"]:
            raise InputError(f"{file}: changed since it was written")
    if shapes is not None:
        held = _shapes(folder)
        for name, shape in shapes.items():
            if held.get(name) != shape:
                raise InputError(f"{folder}: {name} is {held.get(name, 'missing')}, not {shape}")
    return Checkpoint(folder=folder, step=step, state=state)


def newest(
    root: Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and why newer ones were refused."""
    refused: list[str] = []
    for folder in reversed(found(root)):
        try:
            return check(folder, shapes), refused
        except HornbookError as error:
            refused.append(str(error))
    return None, refused


def put_aside(root: Path, *, after: int) -> None:
    """Renames the checkpoints of later steps, which were refused: they count for nothing any more.

    Raises:
        StorageError: If the disk refuses.
    """
    try:
        for folder in found(root):
            if step_of(folder) > after:
                aside = root / f"refused-{folder.name}"
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
    except OSError as error:
        raise StorageError(f"{root}: {error.strerror}") from error


def export(folder: Path, out: Path) -> None:
    """Makes a model folder in the Hugging Face layout of a checkpoint; one process, on a CPU.

    Raises:
        InputError: If the checkpoint is torn or changed.
        StorageError: If the disk refuses.
    """
    opened = check(folder)
    config = hf.config_from_json(read_json(folder / "config.json"), folder / "config.json")
    model = Phi(config, device="meta").to_empty(device="cpu")
    _quiet()
    state = {WEIGHTS: {name: p.detach() for name, p in model.named_parameters()}}
    try:
        load_pieces(state, checkpoint_id=opened.folder, no_dist=True)
    except (CheckpointException, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{folder}: {_first_line(error)}") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        hf.write_tensors(out / hf.WEIGHTS, state[WEIGHTS])
        for file in folder.glob("*.json"):
            if file.name != STATE:
                write_text(out / file.name, file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror}") from error


def shapes(config: PhiConfig, kinds: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of a model holds: `<kind>.<parameter>` -> shape."""
    model = Phi(config, device="meta")
    return {
        f"{kind}.{name}": tuple(parameter.shape)
        for kind in kinds
        for name, parameter in model.named_parameters()
    }


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(getattr(entry, "size", ())) for name, entry in metadata.items()}


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def _first_line(error: BaseException) -> str:
    """An error in one line; of several processes', the first one's."""
    inner = getattr(error, "failures", None)
    if inner:
        rank, (cause, _) = next(iter(inner.items()))
        return f"process {rank}: {cause}"
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _quiet() -> None:
    """One process without torchrun is meant, and torch need not warn of it."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
