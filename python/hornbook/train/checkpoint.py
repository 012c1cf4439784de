"""Checkpoints: a folder a step, whole or absent, and never a pickle.

`checkpoints/step-00001000/` holds the model in the Hugging Face layout (so any checkpoint can be
sampled and evaluated), `optimizer.safetensors` and, written last, `state.json` with the step, the
run's identity and every file's size and hash. It is made under a temporary name, synced and
renamed; `latest` names the newest. A torn or changed one is refused and the one before it used.

    ls runs/demo/pretrain/checkpoints
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hornbook import _core
from hornbook.errors import HornbookError, InputError, StorageError
from hornbook.manifest import read_json, write_text
from hornbook.model import hf
from hornbook.model.phi import Phi

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    """Where it is; also a model folder."""
    step: int
    """Steps done."""
    state: dict[str, Any]
    """What the loop kept beside the tensors."""

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by `<kind>/<parameter>`."""
        return dict(hf.read_tensors(self.folder / OPTIMIZER))


def save(
    root: Path,
    *,
    step: int,
    model: Phi,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    tokenizer: Any = None,
) -> Path:
    """Writes a checkpoint and removes the oldest.

    Args:
        root: The folder of checkpoints.
        step: Steps done.
        model: Its weights, in the dtype they are kept in.
        optimizer: Tensors by name.
        state: Anything JSON can hold.
        keep: How many checkpoints stay; 0 keeps all.
        tokenizer: Saved with the model.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: If the disk refuses; earlier checkpoints are untouched.
    """
    folder = root / f"step-{step:08d}"
    temporary = root / f".{folder.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hf.save(model, temporary, tokenizer=tokenizer)
        hf.write_tensors(temporary / OPTIMIZER, optimizer)
        files = {
            file.name: {"bytes": file.stat().st_size, "xxh3": _core.hash_file(file)}
            for file in sorted(temporary.iterdir())
        }
        whole = {"step": step, "files": files, "state": state}
        write_text(temporary / STATE, json.dumps(whole, indent=1) + "\n")
        _sync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        write_text(root / "latest", folder.name + "\n")
        _sync_folder(root)
        for old in found(root)[:-keep] if keep else []:
            shutil.rmtree(old)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    return folder


def found(root: Path) -> list[Path]:
    """The folders of checkpoints, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def check(folder: Path) -> Checkpoint:
    """Opens a checkpoint after comparing every file with its hash.

    Raises:
        InputError: If anything is missing, torn or changed; the message names it.
    """
    data = read_json(folder / STATE)
    files, step, state = data.get("files"), data.get("step"), data.get("state")
    if not isinstance(files, dict) or not isinstance(step, int) or not isinstance(state, dict):
        raise InputError(f"{folder / STATE}: not the state of a checkpoint")
    if not {OPTIMIZER, hf.WEIGHTS, "config.json"} <= files.keys():
        raise InputError(f"{folder / STATE}: names no weights or no optimizer")
    for name, entry in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise InputError(f"{file}: missing")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(f"{file}: {file.stat().st_size:,} bytes instead of {entry['bytes']:,}")
        if _core.hash_file(file) != entry["xxh3"]:
            raise InputError(f"{file}: changed since it was written")
    return Checkpoint(folder=folder, step=step, state=state)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and why newer ones were refused."""
    refused: list[str] = []
    for folder in reversed(found(root)):
        try:
            return check(folder), refused
        except HornbookError as error:
            refused.append(str(error))
    return None, refused


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
