"""What is in packed folders: `hornbook pack info`, `stats` and `peek`.

Sizes come from the manifest and the indexes (8 bytes a document are read), never from the tokens.

    hornbook pack stats packed/ --sequence-length 2048
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath
from hornbook.manifest import Report
from hornbook.packed import Method, PackedDataset, PackedFolder
from hornbook.tokenizer import Tokenizer


def info(folder: StrPath) -> Report:
    """What the manifest says: counts, tokenizer, types, sources."""
    opened = PackedFolder.open(folder)
    details = opened.manifest["details"]
    files = [part for part in opened.manifest["parts"] if part["name"] != "tokenizer.json"]
    size = sum(part["bytes"] for part in files)
    tokens = details["tokens"]
    return Report(
        {
            "folder": str(opened.path),
            "documents": details["documents"],
            "tokens": tokens,
            "dtype": details["dtype"],
            "parts": len(opened.parts),
            "prompts": details["prompts"],
            "bytes": size,
            "bytes_per_token": size / tokens if tokens else 0.0,
            "tokenizer_hash": details["tokenizer_hash"],
            "vocab_size": details["vocab_size"],
            "eot_id": details["eot_id"],
            "rejected_rows": opened.manifest["counts"]["rejected"],
            "sources": {
                source["name"]: {name: source[name] for name in ("documents", "tokens")}
                for source in details["sources"]
            },
        }
    )


def _lengths(folder: PackedFolder) -> npt.NDArray[np.int64]:
    """Tokens of every document, the end token included."""
    lengths = [np.zeros(0, np.int64)]
    for part in folder.parts:
        ends = np.fromfile(part[1], dtype="<u8").astype(np.int64)
        if len(ends) != part[5]:
            raise InputError(f"{part[1]}: {len(ends)} documents, but the manifest says {part[5]}")
        lengths.append(np.diff(ends, prepend=0))
    return np.concatenate(lengths)


def stats(folders: Sequence[StrPath], *, sequence_length: int = 2048) -> Report:
    """Lengths, and what each way of cutting samples wastes and tears apart.

    Args:
        folders: Packed folders, read as one.
        sequence_length: Tokens in a sample.

    Returns:
        documents, tokens, length (mean, median, p95, max), histogram (documents by length, in
        powers of two), sources (tokens of each), prompt_tokens, and for `concat` and `best_fit`:
        samples, padding (share of all places), documents_cut (share), short_documents_cut (share
        of those that would have fitted into a sample).
    """
    if sequence_length < 1:
        raise ConfigError(f"sequence_length = {sequence_length}: must be at least 1")
    opened = [PackedFolder.open(folder) for folder in folders]
    lengths = np.concatenate([_lengths(folder) for folder in opened])
    if not len(lengths):
        raise InputError(f"{opened[0].path}: holds no documents")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    short = lengths <= sequence_length
    tokens = int(ends[-1])
    torn = starts // sequence_length != (ends - 1) // sequence_length
    prompts = [np.fromfile(part[2], "<u4") for f in opened for part in f.parts if part[2]]
    sources: dict[str, int] = {}
    for folder in opened:
        for source in folder.manifest["details"]["sources"]:
            name = source["name"]
            sources[name] = sources.get(name, 0) + source["tokens"]
    methods: dict[str, dict[str, float]] = {}
    cuts: tuple[tuple[Method, npt.NDArray[np.bool_]], ...] = (
        ("concat", torn),
        ("best_fit", ~short),
    )
    for method, cut in cuts:
        # One token has no next one to predict.
        alone = method == "concat" and tokens < 2
        samples = 0 if alone else _samples(folders, sequence_length, method)
        methods[method] = {
            "samples": samples,
            # The last token of the stream is only ever a label.
            "padding": 1 - (tokens - (method == "concat")) / (samples * sequence_length)
            if samples
            else 0.0,
            "documents_cut": float(cut.mean()),
            "short_documents_cut": float((cut & short).sum() / max(short.sum(), 1)),
        }
    return Report(
        {
            "documents": len(lengths),
            "tokens": tokens,
            "length": {
                "mean": float(lengths.mean()),
                "median": float(np.median(lengths)),
                "p95": float(np.percentile(lengths, 95)),
                "max": int(lengths.max()),
            },
            "histogram": dict(_histogram(lengths)),
            "sources": sources,
            "prompt_tokens": int(sum(int(marks.sum()) for marks in prompts)),
            **methods,
        }
    )


def _samples(folders: Sequence[StrPath], sequence_length: int, method: Method) -> int:
    opened = PackedDataset(list(folders), sequence_length=sequence_length, method=method, seed=0)
    return opened.samples_per_epoch


def _histogram(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[str, int]]:
    powers = np.frexp(lengths.astype(np.float64))[1] - 1
    for power, count in enumerate(np.bincount(powers)):
        if count:
            low, high = 1 << power, (2 << power) - 1
            yield (f"{low}-{high}" if high > low else f"{low}"), int(count)


def peek(
    folders: Sequence[StrPath],
    *,
    samples: int = 3,
    first: int = 0,
    sequence_length: int = 2048,
    method: Method = "concat",
    seed: int = 0,
) -> list[list[str]]:
    """The texts of some samples, as training sees them.

    Returns:
        For each sample its stretches of documents, end tokens shown as `<|endoftext|>`.
    """
    data = PackedDataset(list(folders), sequence_length=sequence_length, method=method, seed=seed)
    tokenizer = Tokenizer.from_file(PackedFolder.open(folders[0]).path / "tokenizer.json")
    texts = []
    for number in range(first, first + samples):
        sample = data[number]
        bounds = sample["cu_seqlens"].tolist()
        ids = sample["input_ids"]
        stretches = [ids[a:b] for a, b in pairwise(bounds)]
        if len(stretches) > 1 and (stretches[-1] == data.eot_id).all():
            stretches.pop()  # padding
        texts.append([tokenizer.decode(stretch) for stretch in stretches])
    return texts
