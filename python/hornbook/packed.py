"""Token files to training samples.

`PackedDataset` maps what `pack` wrote. Sample number `g` is a pure function of files, options and
seed: the whole state is one integer, any number of ranks and threads may go on from it, and every
epoch holds every token once. Each block of 128 KiB is compared with its hash when it is first read.
Opening takes milliseconds whatever the size; `best_fit` plans its rows once and keeps the plan
beside the data, in `plans/`, 16 bytes a piece. For torch tensors made ahead of time, see
`hornbook.loading`; for speed, `benchmarks/results/packing.json`.

    hornbook pack peek packed/
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hornbook import _core
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath, hash_json
from hornbook.manifest import MANIFEST, read_manifest
from hornbook.packing import STAGE
from hornbook.remote import is_remote, local_copy
from hornbook.tokenizer import Tokenizer

IGNORED_LABEL = -100
"""The label of padding, which a loss leaves out."""
FIELDS = ("input_ids", "labels", "position_ids", "prompt_mask")
"""What a batch can hold, beside `cu_seqlens`."""

_MAX_PERIOD = 1 << 16
PLANS = "plans"

Sample = dict[str, Any]
Paths = StrPath | Sequence[StrPath] | Mapping[StrPath, float]
Method = Literal["concat", "best_fit"]


class PackedDataset:
    """An endless, shuffled stream of training samples from packed folders.

    Sample number `g` belongs to epoch `g // samples_per_epoch`; each epoch is its own permutation.
    Rank `r` of `w` iterates over `start + r, start + r + w, ...`, so after `n` samples a rank the
    stream goes on at `start + n * w`, on any number of ranks. Each sample is a dict:

    - `input_ids`: int64 [T];
    - `labels`: int64 [T], the token after each, -100 where there is none to learn;
    - `position_ids`: int64 [T], each token's place in its document's stretch of the sample;
    - `cu_seqlens`: int32 [documents + 1], where documents begin in the sample: `[0, ..., T]`;
    - `prompt_mask`: bool [T], true where the label belongs to a prompt (without prompts: nowhere).

    `concat` cuts one stream of all documents into windows (paper, section 2.3): of T + 1 tokens,
    the last of which is only a label, each T after the one before. Labels run on over document
    ends, and only the last window has padding. `best_fit` puts whole documents into rows, longest
    first; labels never cross documents, padding is the end token, and a document longer than T is
    cut into pieces of T, none of whose labels is lost.
    """

    def __init__(
        self,
        paths_or_weights: Paths,
        *,
        sequence_length: int = 2048,
        method: Method = "concat",
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        tokenizer: Tokenizer | None = None,
        cache: StrPath | None = None,
    ) -> None:
        """Opens the folders and checks that their files belong together.

        Args:
            paths_or_weights: One folder that `pack` made, a list of them (read as one), or a dict
                from folder to weight: a mixture, in which the number of samples from a folder is
                always within one of its share, and exact after 65,536 samples (or fewer, if the
                weights are such fractions); each folder has its own epochs. A folder can be any URL
                that fsspec knows (`s3://...`): it is copied into the cache first.
            sequence_length: Tokens in a sample (T).
            method: How samples are cut.
            seed: Of the order; 0 to 2^64 - 1.
            rank: This process, from 0.
            world_size: Processes in all.
            start: The first sample's number: how many samples all ranks together have had.
            tokenizer: What the model uses; folders packed with another one are refused.
            cache: Where remote folders are copied to; by default `HORNBOOK_CACHE`, else
                `~/.cache/hornbook`.

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
            groups = [[path] for path in paths_or_weights]
            weights = _whole_weights(paths_or_weights)
        else:
            one = isinstance(paths_or_weights, str | os.PathLike)
            groups = [[paths_or_weights] if one else list(paths_or_weights)]  # type: ignore[list-item,arg-type]
            weights = [1]
        if not any(groups):
            raise ConfigError("no packed folder given: name at least one")
        packed = [[PackedFolder.open(path, cache) for path in group] for group in groups]
        first = packed[0][0]
        for folder in [folder for group in packed for folder in group]:
            if folder.tokenizer_hash != first.tokenizer_hash:
                raise ConfigError(
                    f"{folder.path}: packed with another tokenizer than {first.path} "
                    f"({folder.tokenizer_hash[:8]}, not {first.tokenizer_hash[:8]}); pack it again"
                )
        if tokenizer is not None and tokenizer.tokenizer_hash != first.tokenizer_hash:
            raise ConfigError(
                f"{first.path}: packed with another tokenizer ({first.tokenizer_hash[:8]}) than "
                f"the one given ({tokenizer.tokenizer_hash[:8]}); pack it again"
            )
        for group in packed:
            if not any(folder.parts for folder in group):
                raise InputError(f"{group[0].path}: holds no documents; nothing to train on")
        self._files = _core.PackedFiles(
            [
                (
                    [part for folder in group for part in folder.parts],
                    hash_json([folder.index_hashes for folder in group]),
                    group[0].path / PLANS,
                    weight,
                )
                for group, weight in zip(packed, weights, strict=True)
            ],
            length=sequence_length,
            best_fit=method == "best_fit",
            seed=seed,
            eot_id=first.eot_id,
        )
        self._names = [os.fspath(group[0]) for group in groups]
        self._arguments = {
            "paths_or_weights": paths_or_weights,
            "sequence_length": sequence_length,
            "method": method,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "start": start,
            "cache": cache,
        }
        self.sequence_length = sequence_length
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.vocab_size = first.vocab_size
        self.eot_id = first.eot_id
        self.tokenizer_hash = first.tokenizer_hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself.
        return (_reopen, (self._arguments,))

    @property
    def samples_per_epoch(self) -> int:
        """Samples that hold every token of every folder once."""
        return self._files.samples_per_epoch

    @property
    def tokens(self) -> int:
        """Tokens stored, end tokens included."""
        return self._files.tokens

    def epochs(self, number: int) -> dict[str, float]:
        """How often each source has been gone through after the first `number` samples.

        Returns:
            By the folder's name (of a list: the first one's).
        """
        counts = self._files.counts(number)
        names = zip(self._names, counts, strict=True)
        return {name: samples / rows for name, (rows, samples) in names}

    def fill(
        self,
        first: int,
        count: int,
        out: Mapping[str, npt.NDArray[Any]],
        *,
        threads: int = 1,
    ) -> npt.NDArray[np.int32]:
        """Writes samples `first .. first + count` of the whole stream into the caller's arrays.

        Args:
            first: The first sample's number.
            count: How many (B).
            out: Arrays [B, T], contiguous, by their names in `FIELDS`: `input_ids` must be there,
                and the integer ones are all int64 or all int32; `prompt_mask` is bool.
            threads: How many threads of the Rust core share the work, none of which needs the GIL.

        Returns:
            `cu_seqlens` of the samples laid end to end: int32, from 0 to B * T.

        Raises:
            InputError: If a file is damaged.
            ConfigError: If a number is out of range, or an array not contiguous.
        """
        if first < 0 or count < 0 or first + count > 1 << 63:
            raise ConfigError(f"samples {first} to {first + count}: give numbers from 0 to 2^63")
        for name, array in out.items():
            if not array.flags.c_contiguous:
                raise ConfigError(f"{name}: not contiguous, so nothing can be written into it")
        flat = {name: array.reshape(-1) for name, array in out.items()}
        return self._files.fill(
            first,
            count,
            flat["input_ids"],
            flat.get("labels"),
            flat.get("position_ids"),
            flat.get("prompt_mask"),
            threads,
        )

    def batch(self, first: int, count: int) -> Sample:
        """Samples `first .. first + count` of the whole stream, whatever the rank.

        Returns:
            `input_ids`, `labels`, `position_ids` (int64 [count, T]), `prompt_mask` (bool
            [count, T]) and `cu_seqlens` (a list of int32 arrays).

        Raises:
            InputError: If a file is damaged.
            ConfigError: If a number is out of range.
        """
        shape = (max(count, 0), self.sequence_length)
        out: Sample = {
            name: np.empty(shape, bool if name == "prompt_mask" else np.int64) for name in FIELDS
        }
        bounds = self.fill(first, count, out)
        # Every sample begins at a bound.
        edges = np.arange(count + 1) * self.sequence_length
        places = np.searchsorted(bounds, edges)
        out["cu_seqlens"] = [
            bounds[places[row] : places[row + 1] + 1] - np.int32(edges[row]) for row in range(count)
        ]
        return out

    def __getitem__(self, number: int) -> Sample:
        """Sample `number` of the whole stream, whatever the rank."""
        return {name: values[0] for name, values in self.batch(number, 1).items()}

    def __iter__(self) -> Iterator[Sample]:
        number = self.start + self.rank
        while True:
            yield self[number]
            number += self.world_size


def _reopen(arguments: dict[str, Any]) -> PackedDataset:
    return PackedDataset(**arguments)


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
class PackedFolder:
    """A packed stage, as its manifest tells it."""

    path: Path
    """Where it is, or its copy."""
    manifest: dict[str, Any]
    """All of it."""
    parts: list[tuple[Path, Path, Path | None, Path, str, int, int, str]]
    """Of each part: ids, index, prompts, hashes, xxh3 of the hashes, documents, bytes, dtype."""
    index_hashes: list[str]
    """What the documents' lengths are known by."""
    tokenizer_hash: str
    """Of tokens, merges and added tokens."""
    eot_id: int
    """The id that ends documents."""
    vocab_size: int
    """Ids are below it."""

    @classmethod
    def open(cls, place: StrPath, cache: StrPath | None = None) -> "PackedFolder":
        """Reads the manifest; copies a remote folder first.

        Raises:
            InputError: If it is not a finished packed stage.
        """
        folder = local_copy(os.fspath(place), cache) if is_remote(place) else Path(place)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if not (folder / MANIFEST).is_file():
            raise InputError(
                f"{folder}: has no {MANIFEST}, so it is not a finished packed stage; "
                "make one with `hornbook pack`"
            )
        manifest = read_manifest(folder)
        if manifest.get("stage") != STAGE:
            raise InputError(
                f"{folder}: holds the output of `{manifest.get('stage')}`, not packed tokens; "
                "make them with `hornbook pack`"
            )
        try:
            details = manifest["details"]
            dtype = np.dtype(details["dtype"])
            listed = {part["name"]: part for part in manifest["parts"]}
            names = [name for name in listed if name.endswith(".bin")]
            documents = sum(listed[name]["rows"] for name in names)
            tokens = sum(listed[name]["bytes"] for name in names) // dtype.itemsize
            prompts = sum(name.endswith(".prompt") for name in listed)
            # What `packed_stats` reads of it is there, too.
            int(manifest["counts"]["rejected"])
            for source in details["sources"]:
                str(source["name"]), int(source["documents"]), int(source["tokens"])
            counted = (documents, tokens, prompts)
            told = (details["documents"], details["tokens"], len(names) * details["prompts"])
            if counted != told:
                raise InputError(
                    f"{folder / MANIFEST}: its parts do not add up to {details['documents']:,} "
                    f"documents and {details['tokens']:,} tokens; damaged: pack again"
                )
            parts, index_hashes = [], []
            for name in names:
                stem = name.removesuffix(".bin")
                if Path(name).name != name:
                    raise InputError(f"{folder / MANIFEST}: part `{name}` lies outside the folder")
                if listed[name]["bytes"] % dtype.itemsize or not listed[name]["bytes"]:
                    raise InputError(f"{folder / name}: not a whole number of {dtype} ids")
                index, hashes, prompt = f"{name}.index", f"{stem}.xxh3", f"{stem}.prompt"
                if hashes not in listed:
                    raise InputError(
                        f"{folder / MANIFEST}: has no hashes of blocks ({hashes}), so an earlier "
                        "version packed it; pack again"
                    )
                parts.append(
                    (
                        folder / name,
                        folder / index,
                        folder / prompt if prompt in listed else None,
                        folder / hashes,
                        str(listed[hashes]["xxh3"]),
                        int(listed[name]["rows"]),
                        int(listed[name]["bytes"]),
                        dtype.name,
                    )
                )
                index_hashes.append(str(listed[index]["xxh3"]))
            return cls(
                path=folder,
                manifest=manifest,
                parts=parts,
                index_hashes=index_hashes,
                tokenizer_hash=str(details["tokenizer_hash"]),
                eot_id=int(details["eot_id"]),
                vocab_size=int(details["vocab_size"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{folder / MANIFEST}: not a manifest of packed tokens ({error!r}); pack again"
            ) from error
