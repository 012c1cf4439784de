"""Documents to token files that every trainer reads.

`pack` writes one raw stream of little-endian ids, each document followed by the end token, with
small sidecars for other readers: `part-00000.bin` (also nanoGPT's form), `.idx` (Megatron-LM,
version 1), `.bin.index` (datatrove: document ends in tokens, u64), `.ds` and `.ds.index` (the same
two for nanotron, as hard links), `.xxh3` (a hash of every 128 KiB) and, if rows say with
`prompt_chars` how many characters of their text are prompt, `.prompt`.

Memory is one batch and 40 bytes a document of one part. A run that was stopped, even by kill -9,
goes on after its last finished part, and its bytes are those of a run that was not.

    hornbook pack runs/demo/filter --tokenizer codegen --out runs/demo/pack
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook import _core, progress
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.errors import ConfigError
from hornbook.files import StrPath
from hornbook.manifest import Outcome, Report, check_threads, file_part, run_stage
from hornbook.tokenizer import TokenBatch, Tokenizer

STAGE = "pack"
_PART_BYTES = 512 << 20

Tokens = TokenBatch | tuple[npt.ArrayLike, npt.ArrayLike] | tuple[Any, Any, npt.ArrayLike]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What decides the bytes of a packed stage."""

    tokenizer_hash: str
    """Of tokens, merges and added tokens."""
    dtype: str
    """`uint16` or `uint32`."""
    part_bytes: int = _PART_BYTES
    """Bytes a `.bin` may not exceed (unless one document does)."""
    identity: str = ""
    """What ready-made tokens are; empty for documents, which are known by their files."""
    prompts: bool = False
    """Whether ready-made tokens come with their prompts; documents say so by a column."""

    def __post_init__(self) -> None:
        if self.dtype not in ("uint16", "uint32"):
            raise ConfigError(f"dtype = {self.dtype!r}: give uint16 or uint32")
        if not 1 <= self.part_bytes < 2**63:
            raise ConfigError(f"part_bytes = {self.part_bytes}: give 1 to 2^63 - 1")


def pack(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    tokenizer: Tokenizer | StrPath,
    dtype: str | None = None,
    part_bytes: int = _PART_BYTES,
    threads: int | None = None,
) -> Report:
    """Encodes documents into token files.

    Special tokens that stand in a text are encoded as text: data cannot forge a document end.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files. An integer
            column `prompt_chars` says how many leading characters of a text are its prompt (null:
            none).
        out: The stage's folder.
        tokenizer: A tokenizer, or the path of a `tokenizer.json`.
        dtype: `"uint16"` or `"uint32"`; by default the smaller one that holds the vocabulary.
        part_bytes: Bytes a `.bin` may not exceed (unless one document does). What an interrupted
            run has to do again is at most one part.
        threads: How many encode; `None` is one a core. Has no effect on the output.

    Returns:
        The manifest; `details` has tokenizer_hash, dtype, eot_id, vocab_size, documents, tokens,
        prompts (whether they are marked) and sources (documents and tokens of each input).

    Raises:
        InputError: If an input cannot be read.
        ConfigError: If `dtype` cannot hold the vocabulary, the tokenizer has no usable end token,
            or a row's `prompt_chars` does not fit its text.
    """
    check_threads(threads)
    chosen = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_file(tokenizer)
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    config = _config(chosen, dtype, part_bytes)

    def work(folder: Path) -> Outcome:
        packer = _core.DocumentPacker(
            paths,
            list(SOURCE_EXTENSIONS),
            folder,
            chosen._core,
            dtype=config.dtype,
            part_bytes=config.part_bytes,
            threads=threads,
        )
        files = packer.progress[2]
        # Batch by batch, so that Ctrl-C is heard.
        while packer.step():
            documents, tokens, left = packer.progress
            note = f"{documents:,} documents, {tokens:,} tokens"
            progress.advance("pack: files", max(files - left - 1, 0), files, note)
        return _outcome(folder, packer.finish(), [str(path) for path in paths], chosen, config)

    return run_stage(STAGE, out, inputs=paths, config=config, work=work, resumable=True)


def pack_tokens(
    batches: Iterable[Tokens],
    out: StrPath,
    *,
    tokenizer: Tokenizer | StrPath,
    identity: str,
    dtype: str | None = None,
    part_bytes: int = _PART_BYTES,
    prompts: bool = False,
) -> Report:
    """Writes documents that are tokens already.

    Args:
        batches: Documents in groups of any size: a `TokenBatch`, or ids (uint16 or uint32), offsets
            (where each document starts in them, and the end) and, with `prompts`, the number of
            leading tokens of each that are prompt. End tokens are added here.
        out: The stage's folder.
        tokenizer: What made the ids.
        identity: What the batches hold, in your words. A finished folder of the same identity is
            not written again, an interrupted one is gone on with: its first documents are passed
            over, so they must come in the same order. With other `prompts` it is another one.
        dtype: `"uint16"` or `"uint32"`; by default the smaller one that holds the vocabulary.
        part_bytes: Bytes a `.bin` may not exceed (unless one document does).
        prompts: Whether batches say what is prompt.

    Returns:
        The manifest, as of `pack`.

    Raises:
        ConfigError: If an id lies outside the vocabulary or is the end token, or offsets outside
            the ids.
    """
    chosen = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_file(tokenizer)
    if not identity:
        raise ConfigError("identity is empty: say what the batches hold")
    config = _config(chosen, dtype, part_bytes, identity, prompts)

    def work(folder: Path) -> Outcome:
        packer = _core.TokenPacker(
            folder, chosen._core, dtype=config.dtype, part_bytes=config.part_bytes, prompts=prompts
        )
        skip = packer.finished[0]
        for batch in progress.track(batches, "pack: batches"):
            ids, offsets, marks = _arrays(batch, prompts)
            passed = min(skip, len(offsets) - 1)
            skip -= passed
            packer.write(ids, offsets[passed:], None if marks is None else marks[passed:])
        if skip:
            raise ConfigError(
                f"{identity}: {skip:,} documents fewer than when it was interrupted; "
                f"remove {folder} to begin again"
            )
        return _outcome(folder, packer.finish(), [identity], chosen, config)

    return run_stage(STAGE, out, inputs=[], config=config, work=work, resumable=True)


def _arrays(
    batch: Tokens, prompts: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.uint32] | None]:
    """A batch as the core takes it, checked."""
    parts = (batch.ids, batch.offsets) if isinstance(batch, TokenBatch) else tuple(batch)
    if len(parts) != 2 + prompts:
        raise ConfigError(
            f"a batch of {len(parts)} arrays: give ids, offsets" + ", prompts" * prompts
        )
    ids = np.ascontiguousarray(parts[0])
    offsets = _whole("offsets", parts[1]).astype(np.int64)
    if ids.dtype not in (np.uint16, np.uint32):
        ids = _whole("ids", ids)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << 32:
            raise ConfigError(f"ids from {ids.min()} to {ids.max()}: give 0 to 2^32 - 1")
        ids = ids.astype(np.uint32)
    if ids.ndim != 1 or offsets.ndim != 1 or len(offsets) < 1:
        raise ConfigError(f"ids {ids.shape} and offsets {offsets.shape}: give two lists")
    if not prompts:
        return ids, offsets, None
    marks = _whole("prompts", parts[2])
    if marks.shape != (len(offsets) - 1,):
        raise ConfigError(f"{len(marks)} prompts for {len(offsets) - 1} documents")
    lengths = np.diff(offsets)
    # Offsets that go back are told by the core.
    wrong = np.flatnonzero((marks < 0) | (marks > lengths) & (lengths >= 0))
    if wrong.size:
        first = int(wrong[0])
        raise ConfigError(
            f"prompts[{first}] is {marks[first]}: give 0 to the {lengths[first]} tokens of it"
        )
    return ids, offsets, marks.astype(np.uint32)


def _whole(name: str, values: Any) -> npt.NDArray[Any]:
    """A list of whole numbers as an array."""
    found = np.ascontiguousarray(values)
    if found.size and found.dtype.kind not in "iu":
        raise ConfigError(f"{name} are {found.dtype}: give whole numbers")
    return found


def _config(
    tokenizer: Tokenizer,
    dtype: str | None,
    part_bytes: int,
    identity: str = "",
    prompts: bool = False,
) -> PackConfig:
    return PackConfig(
        tokenizer_hash=tokenizer.tokenizer_hash,
        dtype=dtype or tokenizer.dtype.name,
        part_bytes=part_bytes,
        identity=identity,
        prompts=prompts,
    )


def _outcome(
    folder: Path, packed: dict[str, Any], names: list[str], tokenizer: Tokenizer, config: PackConfig
) -> Outcome:
    tokenizer.save(folder / "tokenizer.json")
    documents = packed["documents"]
    return Outcome(
        parts=[*packed["parts"], file_part(folder, "tokenizer.json")],
        rows_in=documents,
        kept=documents,
        rejected=packed["rejected"],
        details={
            "tokenizer_hash": config.tokenizer_hash,
            "dtype": config.dtype,
            "eot_id": tokenizer.eot_id,
            "vocab_size": tokenizer.vocab_size,
            "documents": documents,
            "tokens": packed["tokens"],
            "prompts": any(part["name"].endswith(".prompt") for part in packed["parts"]),
            "sources": [
                {"name": name, "documents": count[0], "tokens": count[1]}
                for name, count in zip(names, packed["sources"], strict=True)
            ],
        },
    )
