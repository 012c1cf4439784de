"""Documents as numbers: hashed token 1-2-grams and ratios of the syntax tree, in Rust.

Stands where the paper has the output embedding of a pretrained code model (section 2.1), and needs
no model. The same text gives the same row whatever stands beside it and however many threads run.
Costs about 0.2 s of one core for each MB of text, nearly all of it parsing; only the first MiB of a
text is looked at.

    features = hornbook.quality.embed(["def f(x):\\n    return x + 1\\n"])
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hornbook import _core
from hornbook.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIMENSIONS = 256
"""Hashed dimensions unless told otherwise."""


def embed(texts: Sequence[str], *, dimensions: int = DIMENSIONS) -> "NDArray[np.float32]":
    """Features of texts.

    Args:
        texts: Any texts; code that does not parse and empty texts have features too.
        dimensions: Slots of the hashed part, which has unit length.

    Returns:
        float32 [n, dimensions + ratios]; `feature_names(dimensions)` names the columns.

    Raises:
        ConfigError: If `dimensions` is below 1 or above 65,536.
        InputError: If a text cannot be written as UTF-8.
    """
    try:
        return _core.embed(list(texts), dimensions)
    except UnicodeEncodeError as error:
        raise InputError(f"a text is not valid Unicode: {error}") from error


def feature_names(dimensions: int = DIMENSIONS) -> list[str]:
    """Names of `embed`'s columns: `hash_0`, ... and then the ratios."""
    return [f"hash_{slot}" for slot in range(dimensions)] + list(_core.RATIO_NAMES)


def embedder_id(dimensions: int = DIMENSIONS) -> str:
    """The embedding's name; it changes whenever the same text would give other numbers."""
    return _core.embedder_id(dimensions)
