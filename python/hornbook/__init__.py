"""Textbooks Are All You Need, as one package.

Make textbook-quality data, train a small code model on it, measure what it learned.
Importing this package loads no other: names below are imported when first used.

    import hornbook as hb
    hb.dedup(["data/"], "clean/")
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily

__version__ = "0.1.0"

_HOMES = {
    "Tokenizer": "tokenizer",
    "TokenBatch": "tokenizer",
    "PackedDataset": "packed",
    "Report": "manifest",
    "decontaminate": "decontaminate",
    "dedup": "dedup",
    "diversity": "diversity",
    "pack": "packing",
    "quality": "",
}

__all__ = [
    "PackedDataset",
    "Report",
    "TokenBatch",
    "Tokenizer",
    "decontaminate",
    "dedup",
    "diversity",
    "pack",
    "quality",
]

if TYPE_CHECKING:
    from hornbook import quality
    from hornbook.decontaminate import decontaminate
    from hornbook.dedup import dedup
    from hornbook.diversity import diversity
    from hornbook.manifest import Report
    from hornbook.packed import PackedDataset
    from hornbook.packing import pack
    from hornbook.tokenizer import TokenBatch, Tokenizer

load_lazily(__name__, _HOMES)
