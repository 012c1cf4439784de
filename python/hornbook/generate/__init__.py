"""Synthetic data: a raw pool, textbooks, exercises and held-out problems.

Names are imported when first used. The built-in `procedural` teacher needs no key, no network and
no optional package.
"""

from typing import TYPE_CHECKING

from hornbook._lazy import load_lazily

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

load_lazily(__name__, _HOMES)
