"""Documents as numbers, by an embedder of choice (paper section 2.1: a code model's output).

`hash` (the default) needs no model: hashed token 1-2-grams and syntax ratios, in Rust, 250 to 400
MB of text a second and core; only the first MiB of a text is looked at. The others put a neural
model in its place and cost what the model costs. Whatever cuts a text short is part of an
embedder's `id` and `settings`, which the forest's file keeps: training and scoring cut alike.

    features = hornbook.quality.embed(["def f(x):\\n    return x + 1\\n"])
    embedder = hornbook.quality.embedder("codegen", model="Salesforce/codegen-350M-mono")
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hornbook import _core
from hornbook.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIMENSIONS = 256
"""Hashed dimensions unless told otherwise."""
KINDS = ("hash", "codegen", "sentence", "http")


class Embedder(Protocol):
    """Gives each text a row of numbers that depends on that text alone."""

    id: str
    """Changes whenever the same text would give other numbers."""
    settings: dict[str, Any]
    """What `embedder` needs to make it again; `kind` is one of `KINDS`."""

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Float32 [n, columns]."""
        ...


def embed(texts: Sequence[str], *, dimensions: int = DIMENSIONS) -> "NDArray[np.float32]":
    """Features of texts by the embedder `hash`.

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
    """The name of the embedding `hash`; changes whenever the same text would give other numbers."""
    return _core.embedder_id(dimensions)


def docstring_shares(texts: Sequence[str]) -> "NDArray[np.float32]":
    """The share of each text that is docstrings."""
    column = feature_names(1).index("docstring_share")
    return embed(texts, dimensions=1)[:, column]


class HashEmbedder:
    """Hashed token 1-2-grams and syntax ratios; the same numbers whatever stands beside a text."""

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        self.id = embedder_id(dimensions)
        self.settings: dict[str, Any] = {"kind": "hash", "dimensions": dimensions}
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Float32 [n, dimensions + ratios]."""
        return embed(texts, dimensions=self.dimensions)


def embedder(kind: str = "hash", **options: Any) -> Embedder:
    """Makes an embedder.

    Args:
        kind: `hash` (options: `dimensions`); `codegen`, any causal language model through
            transformers (`model`, `max_tokens`, `batch_tokens`, `device`); `sentence`, any
            sentence-transformers model (`model`: a name or a folder, `max_tokens`, `device`);
            `http`, an OpenAI-compatible endpoint (`model`, `base_url`, `api_key_env`,
            `max_characters`, `batch`).
        options: As named above.

    Raises:
        ConfigError: If the kind or an option is unknown or the model is not named.
        MissingExtraError: If what it needs is not installed.
    """
    from hornbook.quality import neural

    classes: Mapping[str, Any] = {
        "hash": HashEmbedder,
        "codegen": neural.CodegenEmbedder,
        "sentence": neural.SentenceEmbedder,
        "http": neural.HttpEmbedder,
    }
    if kind not in classes:
        raise ConfigError(f"embedder {kind!r} is unknown: use {', '.join(KINDS)}")
    if kind != "hash" and not options.get("model"):
        raise ConfigError(f"embedder `{kind}` needs a model: name it")
    try:
        inspect.signature(classes[kind]).bind(**options)
    except TypeError as error:
        raise ConfigError(f"embedder `{kind}`: {error}") from error
    made: Embedder = classes[kind](**options)
    return made


def embedder_of(
    kind: str, *, model: str = "", url: str = "", truncation: int | None = None
) -> Embedder:
    """The embedder that the options of a command or a recipe name.

    Args:
        kind: One of `KINDS`.
        model: For any but `hash`: its name or folder.
        url: For `http`: the endpoint, if not the default.
        truncation: Tokens of a text that the model sees (`http`: characters), if not its default.

    Raises:
        ConfigError: If the kind is unknown, its model is not named or an option is not for it.
        MissingExtraError: If what it needs is not installed.
    """
    limit = "max_characters" if kind == "http" else "max_tokens"
    options = {"model": model, "base_url": url, limit: truncation}
    return embedder(
        kind, **{name: value for name, value in options.items() if value not in ("", None)}
    )


def from_settings(settings: str, id_: str) -> Embedder:
    """The embedder that a forest's file names.

    Raises:
        ConfigError: If it cannot be made, or makes other numbers than those trained on.
    """
    options: dict[str, Any] = json.loads(settings)
    if options.get("kind") not in KINDS:
        raise ConfigError(
            f"the forest was trained on `{id_}` features, by an embedder of one's own: pass it"
        )
    made = embedder(options.pop("kind"), **options)
    if made.id != id_:
        raise ConfigError(
            f"the forest was trained on `{id_}` features, and here is `{made.id}`: use the same "
            "model and versions, or train it again"
        )
    return made
