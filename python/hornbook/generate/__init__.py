"""Synthetic data: a raw pool, textbooks, exercises and held-out problems.

Names are imported when first used. The built-in `procedural` teacher needs no key, no network and
no optional package.
"""

<<<<<<< HEAD
from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily
=======
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any
>>>>>>> generate

_HOMES = {
    "exercises": "exercises",
    "heldout": "exercises",
    "is_held_out": "procedural",
    "pool": "pool",
    "sample": "procedural",
    "split_of": "procedural",
    "textbooks": "textbooks",
}

__all__ = ["exercises", "heldout", "is_held_out", "pool", "sample", "split_of", "textbooks"]

if TYPE_CHECKING:
    from hornbook.generate.exercises import exercises, heldout
    from hornbook.generate.pool import pool
    from hornbook.generate.procedural import is_held_out, sample, split_of
    from hornbook.generate.textbooks import textbooks

<<<<<<< HEAD
load_lazily(__name__, _HOMES)
=======

def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hornbook.generate' has no attribute {name!r}")
    value = getattr(import_module(f"hornbook.generate.{home}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `hornbook.generate.pool` the function when the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
>>>>>>> generate
