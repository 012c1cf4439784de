"""Choosing the documents worth learning from (paper section 2.1).

`annotate` scores a sample for its educational value, `filter_documents` trains a forest on those
scores and keeps what it likes of the whole corpus.

    hb.quality.annotate(["clean/"], "labels/")
    hb.quality.filter_documents(["clean/"], "filtered/", labels="labels/")
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily

if TYPE_CHECKING:
    from hornbook.quality.annotate import annotate
    from hornbook.quality.embed import embed, embedder, embedder_id, feature_names
    from hornbook.quality.filter import explain, filter_documents
    from hornbook.quality.forest import Forest, train_forest

__all__ = [
    "Forest",
    "annotate",
    "embed",
    "embedder",
    "embedder_id",
    "explain",
    "feature_names",
    "filter_documents",
    "train_forest",
]

_HOMES = {
    "Forest": "forest",
    "annotate": "annotate",
    "embed": "embed",
    "embedder": "embed",
    "embedder_id": "embed",
    "explain": "filter",
    "feature_names": "embed",
    "filter_documents": "filter",
    "train_forest": "forest",
}

load_lazily(__name__, _HOMES)
