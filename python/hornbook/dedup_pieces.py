"""Near-dedup in pieces, batch by batch over Arrow: for Daft, Ray, Spark or a loop.

Map `sign` over batches of text; shuffle `keys` (16 bytes a record, never text) by key; `pairs` in
each partition; shuffle n-grams by document and `verify`; then `choose` over what is left, which is
small. The result equals `hornbook.dedup` where documents are numbered in keep order.

    signed = sign(batch); key, document = keys(signed, first=0); a, b = pairs(key, document)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hornbook import _core
from hornbook.dedup import DedupConfig
from hornbook.errors import ConfigError

Edges = list[tuple[int, int, float]]


def sign(batch: Any, config: DedupConfig | None = None) -> Any:
    """Signs a batch of documents.

    Args:
        batch: An Arrow record batch with string columns `id` and `text`, neither with nulls.
        config: Its `ngram`, `bands`, `rows`, `recall`, `seed` and `normalize` count.

    Returns:
        A pyarrow record batch with a row each: `id`, `hash` (16 bytes: the text), `keys` (list of
        uint64, one a band; empty for documents of too few words), `grams` (sorted distinct uint64).

    Raises:
        ConfigError: If a column is missing, not a string, or has nulls.
    """
    config = config or DedupConfig()
    for name in ("id", "text"):
        kind = str(batch.schema.field(name).type) if name in batch.schema.names else "missing"
        if kind != "string" or batch.column(name).null_count:
            raise ConfigError(f"{name}: is {kind}; sign wants a string column without nulls")
    bands, rows = config.layout()
    return _core.dedup_sign(batch, config.ngram, bands, rows, config.seed, config.normalize)


def keys(signed: Any, first: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The records to shuffle: (band key, document), documents numbered from `first`."""
    column = signed.column("keys")
    lengths = np.diff(column.offsets.to_numpy())
    documents = np.repeat(np.arange(first, first + len(column), dtype=np.uint64), lengths)
    return column.flatten().to_numpy(), documents


def pairs(
    key: NDArray[np.uint64], document: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Distinct pairs of documents that share a key, the smaller number first, in order.

    All records of one key must be in one call.
    """
    return _core.dedup_candidate_pairs(key, document)


def verify(
    signed: Any, a: NDArray[np.int64], b: NDArray[np.int64], threshold: float
) -> NDArray[np.float64]:
    """The Jaccard similarity of rows a[i] and b[i] of a signed batch; NaN below the threshold."""
    column = signed.column("grams")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return _core.dedup_verify(column.values.to_numpy(), offsets, a, b, threshold)


def choose(edges: Edges) -> Edges:
    """What goes, given every verified pair: (removed, kept, Jaccard).

    Documents are taken in the order of their numbers; each goes if one that was kept before it is
    similar, against the first such.
    """
    return _core.dedup_choose(edges)


def components(edges: Edges) -> list[list[int]]:
    """Connected components of verified pairs, for looking at: nothing goes because of them."""
    return _core.dedup_components(edges)
