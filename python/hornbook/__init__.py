"""Textbooks Are All You Need, as one package.

Make textbook-quality data, train a small code model on it, measure what it learned.
Importing this package loads no other: names below are imported when first used.

    import hornbook as hb
    hb.dedup(["data/"], "clean/")
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Tokenizer": "tokenizer",
    "TokenBatch": "tokenizer",
    "PackedDataset": "packing",
    "Report": "manifest",
    "decontaminate": "decontaminate",
    "dedup": "dedup",
    "diversity": "diversity",
    "pack": "packing",
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
]

if TYPE_CHECKING:
    from hornbook.decontaminate import decontaminate
    from hornbook.dedup import dedup
    from hornbook.diversity import diversity
    from hornbook.manifest import Report
    from hornbook.packing import PackedDataset, pack
    from hornbook.tokenizer import TokenBatch, Tokenizer


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hornbook' has no attribute {name!r}")
    value = getattr(import_module(f"hornbook.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps `hornbook.dedup` the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
