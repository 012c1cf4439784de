"""Documents to token files, and token files to training samples.

`pack` writes one raw stream of little-endian ids, each document followed by the end token, with
small sidecars for other readers: `part-00000.bin` (also nanoGPT's form), `.idx` (Megatron-LM,
version 1), `.bin.index` (datatrove: document ends in tokens, u64), and `.prompt` if rows say with
`prompt_chars` how many characters of their text are prompt.

`PackedDataset` maps those files. Sample number `g` is a pure function of files, options and seed:
the loader's whole state is one integer, any number of ranks may go on from it, and every epoch
holds every token once. Packing needs memory for one batch and 40 bytes a document of one part;
reading 16 bytes a document with `best_fit`, nothing otherwise.

    hornbook pack runs/demo/filter --tokenizer codegen --out runs/demo/pack
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hornbook import _core
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import MANIFEST, Outcome, Report, StrPath, file_part, read_json, run_stage
from hornbook.tokenizer import Tokenizer

STAGE = "pack"
IGNORED_LABEL = -100
"""The label of padding, which a loss leaves out."""

_PART_BYTES = 2 << 30
_MAX_PERIOD = 1 << 16

Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What decides the bytes of a packed stage."""

    tokenizer_hash: str
    """Of tokens, merges and added tokens."""
    dtype: str
    """`uint16` or `uint32`."""
    part_bytes: int = _PART_BYTES
    """Bytes a `.bin` may not exceed (unless one document does)."""

    def __post_init__(self) -> None:
        if self.dtype not in ("uint16", "uint32"):
            raise ConfigError(f"dtype = {self.dtype!r}: give uint16 or uint32")
        if self.part_bytes < 1:
            raise ConfigError(f"part_bytes = {self.part_bytes}: give at least 1")


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
        part_bytes: Bytes a `.bin` may not exceed (unless one document does).
        threads: How many encode; `None` is one a core. Has no effect on the output.

    Returns:
        The manifest; `details` has tokenizer_hash, dtype, eot_id, vocab_size, documents and tokens.

    Raises:
        InputError: If an input cannot be read.
        ConfigError: If `dtype` cannot hold the vocabulary, the tokenizer has no usable end token,
            or a row's `prompt_chars` does not fit its text.
    """
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_file(tokenizer)
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    config = PackConfig(
        tokenizer_hash=tokenizer.tokenizer_hash,
        dtype=dtype or tokenizer.dtype.name,
        part_bytes=part_bytes,
    )
    chosen = tokenizer

    def work(folder: Path) -> Outcome:
        packed = _core.pack_documents(
            paths,
            list(SOURCE_EXTENSIONS),
            folder,
            chosen._core,
            dtype=config.dtype,
            part_bytes=config.part_bytes,
            threads=threads,
        )
        chosen.save(folder / "tokenizer.json")
        documents = packed["documents"]
        return Outcome(
            parts=[*packed["parts"], file_part(folder, "tokenizer.json")],
            rows_in=documents,
            kept=documents,
            rejected=packed["rejected"],
            details={
                "tokenizer_hash": config.tokenizer_hash,
                "dtype": config.dtype,
                "eot_id": chosen.eot_id,
                "vocab_size": chosen.vocab_size,
                "documents": documents,
                "tokens": packed["tokens"],
            },
        )

    return run_stage(STAGE, out, inputs=paths, config=config, work=work)


class PackedDataset:
    """An endless, shuffled stream of training samples from packed folders.

    Sample number `g` belongs to epoch `g // samples_per_epoch`; each epoch is its own permutation.
    Rank `r` of `w` iterates over `start + r, start + r + w, ...`, so after `n` samples a rank the
    stream goes on at `start + n * w`, on any number of ranks. Each sample is a dict:

    - `input_ids`: int64 [T];
    - `labels`: int64 [T], the token after each, -100 where there is none to learn;
    - `cu_seqlens`: int32 [documents + 1], where documents begin in the sample: `[0, ..., T]`;
    - `prompt_mask`: bool [T], true where the label belongs to a prompt (all false without prompts).

    `concat` cuts one stream of all documents into windows (paper, section 2.3); labels run on over
    document ends, and only the last window has padding. `best_fit` puts whole documents into rows,
    longest first; labels never cross documents, padding is the end token, and a document longer
    than T is cut into pieces of T, none of whose labels is lost.
    """

    def __init__(
        self,
        paths_or_weights: StrPath | Sequence[StrPath] | Mapping[StrPath, float],
        *,
        sequence_length: int = 2048,
        method: Literal["concat", "best_fit"] = "concat",
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        """Opens and checks the folders.

        Args:
            paths_or_weights: One folder that `pack` made, a list of them (read as one), or a dict
                from folder to weight: a mixture, in which each share of the samples is exact over
                at most 65,536 samples, and each folder has its own epochs.
            sequence_length: Tokens in a sample (T).
            method: How samples are cut.
            seed: Of the order; 0 to 2^64 - 1.
            rank: This process, from 0.
            world_size: Processes in all.
            start: The first sample's number: how many samples all ranks together have had.

        Raises:
            InputError: If a folder is not a packed stage, or a file is missing, torn or damaged.
            ConfigError: If an argument is out of range, tokenizers differ, or no token is left.
        """
        if method not in ("concat", "best_fit"):
            raise ConfigError(f'method = {method!r}: give "concat" or "best_fit"')
        for name, value, low, high in (
            ("sequence_length", sequence_length, 1, 1 << 24),
            ("seed", seed, 0, (1 << 64) - 1),
            ("world_size", world_size, 1, 1 << 32),
            ("rank", rank, 0, world_size - 1),
            ("start", start, 0, 1 << 62),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value}: give {low} to {high}")
        if isinstance(paths_or_weights, Mapping):
            groups = [[Path(path)] for path in paths_or_weights]
            weights = _whole_weights(paths_or_weights)
        elif isinstance(paths_or_weights, str | os.PathLike):
            groups, weights = [[Path(paths_or_weights)]], [1]
        else:
            groups, weights = [[Path(path) for path in paths_or_weights]], [1]
        folders = [folder for group in groups for folder in group]
        if not folders:
            raise ConfigError("no packed folder given: name at least one")
        packed = {folder: _PackedFolder.open(folder) for folder in folders}
        first = packed[folders[0]]
        for folder, other in packed.items():
            if other.tokenizer_hash != first.tokenizer_hash:
                raise ConfigError(
                    f"{folder}: packed with another tokenizer than {folders[0]} "
                    f"({other.tokenizer_hash[:8]}, not {first.tokenizer_hash[:8]}); pack it again"
                )
        for group in groups:
            if not any(packed[folder].parts for folder in group):
                raise InputError(f"{group[0]}: holds no documents; nothing to train on")
        self._files = _core.PackedFiles(
            [
                ([part for folder in group for part in packed[folder].parts], weight)
                for group, weight in zip(groups, weights, strict=True)
            ],
            length=sequence_length,
            best_fit=method == "best_fit",
            seed=seed,
            eot_id=first.eot_id,
            vocab_size=first.vocab_size,
        )
        self.sequence_length = sequence_length
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.vocab_size = first.vocab_size
        self.eot_id = first.eot_id
        self.tokenizer_hash = first.tokenizer_hash

    @property
    def samples_per_epoch(self) -> int:
        """Samples that hold every token of every folder once."""
        return self._files.samples_per_epoch

    @property
    def tokens(self) -> int:
        """Tokens stored, end tokens included."""
        return self._files.tokens

    def batch(self, first: int, count: int) -> Sample:
        """Samples `first .. first + count` of the whole stream, whatever the rank.

        Returns:
            `input_ids`, `labels` (int64 [count, T]), `prompt_mask` (bool [count, T]) and
            `cu_seqlens` (a list of int32 arrays).

        Raises:
            InputError: If a file is damaged: an id is not in the vocabulary.
        """
        if first < 0 or count < 0 or first + count > 1 << 63:
            raise ConfigError(f"samples {first} to {first + count}: give numbers from 0 to 2^63")
        input_ids, labels, prompt_mask, cu_seqlens = self._files.batch(first, count)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "prompt_mask": prompt_mask,
            "cu_seqlens": cu_seqlens,
        }

    def __getitem__(self, number: int) -> Sample:
        """Sample `number` of the whole stream, whatever the rank."""
        return {name: values[0] for name, values in self.batch(number, 1).items()}

    def __iter__(self) -> Iterator[Sample]:
        number = self.start + self.rank
        while True:
            yield self[number]
            number += self.world_size


def _whole_weights(weights: Mapping[StrPath, float]) -> list[int]:
    """Weights as whole numbers; exact if their sum then is at most 65,536, else the nearest."""
    for path, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"weight of {path} = {weight}: give a number above 0")
    exact = [Fraction(str(weight)) for weight in weights.values()]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares)) if shares else 1
    if period <= _MAX_PERIOD:
        return [int(share * period) for share in shares]
    whole = [int(share * _MAX_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i] * _MAX_PERIOD)
    for i in by_remainder[: _MAX_PERIOD - sum(whole)]:
        whole[i] += 1
    for (path, weight), number in zip(weights.items(), whole, strict=True):
        if number == 0:
            raise ConfigError(f"weight of {path} = {weight}: below 1/{_MAX_PERIOD} of the mixture")
    return whole


@dataclass(frozen=True, kw_only=True)
class _PackedFolder:
    """A packed stage, as its manifest tells it."""

    parts: list[tuple[Path, Path, Path | None, int, int, str]]
    tokenizer_hash: str
    eot_id: int
    vocab_size: int

    @classmethod
    def open(cls, folder: Path) -> "_PackedFolder":
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not (folder / MANIFEST).is_file():
            raise InputError(
                f"{folder}: has no {MANIFEST}, so it is not a finished packed stage; "
                "make one with `hornbook pack`"
            )
        manifest = read_json(folder / MANIFEST)
        if manifest.get("stage") != STAGE:
            raise InputError(
                f"{folder}: holds the output of `{manifest.get('stage')}`, not packed tokens; "
                "make them with `hornbook pack`"
            )
        try:
            details = manifest["details"]
            dtype = np.dtype(details["dtype"])
            listed = {part["name"]: part for part in manifest["parts"]}
            bins = [name for name in listed if name.endswith(".bin")]
            parts = []
            for name in bins:
                stem = name.removesuffix(".bin")
                if Path(name).name != name:
                    raise InputError(f"{folder / MANIFEST}: part `{name}` lies outside the folder")
                if listed[name]["bytes"] % dtype.itemsize:
                    raise InputError(f"{folder / name}: not a whole number of {dtype} ids")
                prompt = f"{stem}.prompt"
                parts.append(
                    (
                        folder / name,
                        folder / f"{name}.index",
                        folder / prompt if prompt in listed else None,
                        int(listed[name]["rows"]),
                        int(listed[name]["bytes"]),
                        dtype.name,
                    )
                )
            return cls(
                parts=parts,
                tokenizer_hash=str(details["tokenizer_hash"]),
                eot_id=int(details["eot_id"]),
                vocab_size=int(details["vocab_size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / MANIFEST}: not a manifest of packed tokens ({error!r}); pack again"
            ) from error
