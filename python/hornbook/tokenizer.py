"""Text to token ids and back: byte-level BPE, exact to HF tokenizers 0.23.

Takes any `tokenizer.json` of byte-level BPE with GPT-2's pre-tokenizer (GPT-2, CodeGen, ours),
gives the same ids as HF on any text, trains the same merges as HF's trainer. GPT-2's and CodeGen's
vocabularies are built in. A tokenizer is immutable, picklable and safe to share between threads;
output does not depend on the thread count; a forked child may go on using it. Each thread that
encodes keeps up to 27 MiB of pieces it has seen; a batch costs its texts and its ids.

    hornbook.Tokenizer.codegen().encode("def f(x):\\n    return x")
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from hornbook import _core
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath, write_text
from hornbook.manifest import Report, check_threads

END_OF_TEXT = "<|endoftext|>"
"""The token that ends a document."""

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
AllowedSpecial = Literal["all", "none"]
Errors = Literal["strict", "replace"]
R = TypeVar("R")

_TRAIN_BATCH_CHARS = 16 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Ids of several texts, one after another; `batch[i]` is those of text `i`, without a copy."""

    ids: Ids
    """All ids: uint16 if the vocabulary has at most 65,536 tokens, else uint32."""
    offsets: npt.NDArray[np.int64]
    """Where each text starts, and the end: one more than there are texts."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of a batch of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


class Tokenizer:
    """A byte-level BPE tokenizer; made by one of the class methods."""

    def __init__(self, core: _core.Tokenizer) -> None:
        self._core = core

    @classmethod
    def from_file(cls, path: StrPath) -> "Tokenizer":
        """Reads a `tokenizer.json`.

        Raises:
            InputError: If it is not byte-level BPE with GPT-2's pattern, or has a part (normalizer,
                prefix space, ...) with which ids would differ from HF's; the message names it.
        """
        return cls(_core.Tokenizer.from_file(Path(path)))

    @classmethod
    def codegen(cls) -> "Tokenizer":
        """codegen-350M-mono's and phi-1's (paper, section 2.3): 50,295 tokens, offline."""
        return cls(_core.Tokenizer.codegen())

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's tokenizer: 50,257 tokens, offline."""
        return cls(_core.Tokenizer.gpt2())

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
    ) -> "Tokenizer":
        """Learns the merges that HF's `BpeTrainer` learns with ByteLevel and its full alphabet.

        Args:
            texts: Any iterable; about 16 million characters are held at a time, plus one count for
                each distinct word.
            vocab_size: Tokens in all: the special ones, 256 bytes, merges. Fewer if the texts run
                out of pairs.
            special_tokens: Come first, in this order.

        Raises:
            ConfigError: If `vocab_size` has no room for the special tokens and the bytes, or one
                string stands for a list.
        """
        if isinstance(texts, str):
            raise ConfigError("texts: give a list of texts, not one string")
        if isinstance(special_tokens, str):
            raise ConfigError("special_tokens: give a list of tokens, not one string")
        if vocab_size < 0:
            raise ConfigError(f"vocab_size = {vocab_size}: give a number above 256")
        trainer = _core.Trainer()
        batch: list[str | bytes] = []
        chars = 0
        for text in texts:
            batch.append(text)
            chars += len(text)
            if chars >= _TRAIN_BATCH_CHARS:
                _each(trainer.feed, batch, "strict")
                batch, chars = [], 0
        _each(trainer.feed, batch, "strict")
        return cls(trainer.finish(vocab_size, list(special_tokens)))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._core.vocab_size

    @property
    def instructions(self) -> str:
        """What splits text on this machine: `avx512`, `avx2`, `sse2`, `neon` or `scalar`."""
        return self._core.instructions

    @property
    def eot_id(self) -> int:
        """The id of `<|endoftext|>`.

        Raises:
            ConfigError: If the tokenizer has no such token.
        """
        found = self._core.eot_id
        if found is None:
            raise ConfigError(f"this tokenizer has no added token {END_OF_TEXT}")
        return found

    @property
    def added_tokens(self) -> list[tuple[str, int, bool]]:
        """`(text, id, special)` of the tokens that are matched before all else."""
        return self._core.added_tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of ids: uint16 if the vocabulary has at most 65,536 tokens, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @cached_property
    def tokenizer_hash(self) -> str:
        """xxh3-128 of tokens, merges and added tokens; equal for equal tokenizers."""
        return self._core.hash

    def encode(
        self,
        text: str | bytes,
        allowed_special: AllowedSpecial = "all",
        *,
        errors: Errors = "strict",
    ) -> Ids:
        """The ids of a text.

        Args:
            text: Any text, or its UTF-8 bytes; special tokens that stand in it are found (HF's
                default).
            allowed_special: `"none"` takes them as plain text instead, so that data cannot forge a
                document end.
            errors: What to do with half a surrogate pair or bytes that are not UTF-8: `"strict"`
                raises, `"replace"` puts U+FFFD there.

        Returns:
            uint16 if the vocabulary has at most 65,536 tokens, else uint32.

        Raises:
            InputError: If the text has no UTF-8 form, or the bytes are not UTF-8.
        """
        special = _tokens(allowed_special)
        return _each(lambda texts: self._core.encode(texts[0], special), [text], errors)

    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        threads: int | None = None,
        *,
        allowed_special: AllowedSpecial = "all",
        errors: Errors = "strict",
    ) -> TokenBatch:
        """The ids of many texts.

        Args:
            texts: A list of texts (or their UTF-8 bytes), or an Arrow array or column of either.
            threads: How many work; `None` is one a core. Has no effect on the output.
            allowed_special: As in `encode`.
            errors: As in `encode`.

        Raises:
            InputError: If a text is null, has no UTF-8 form, or its bytes are not UTF-8.
        """
        if isinstance(texts, str | bytes):
            raise ConfigError("texts: give a list of texts, not one string")
        special = _tokens(allowed_special)
        check_threads(threads)
        if hasattr(texts, "__arrow_c_stream__") or hasattr(texts, "__arrow_c_array__"):
            replace = _checked(errors) == "replace"
            ids, offsets = self._core.encode_arrow(texts, special, threads, replace)
        else:
            ids, offsets = _each(
                lambda texts: self._core.encode_batch(texts, special, threads), list(texts), errors
            )
        return TokenBatch(ids=ids, offsets=offsets)

    def encode_files(
        self, inputs: StrPath | Sequence[StrPath], out: StrPath, *, threads: int | None = None
    ) -> Report:
        """Encodes files into packed token files, a batch of documents at a time: `hornbook.pack`.

        Args:
            inputs: Parquet or JSON-lines files, or folders of either or of source files.
            out: The folder for `part-*.bin` and their indexes; each document is ended by `eot_id`.
            threads: How many encode; `None` is one a core. Has no effect on the output.

        Raises:
            InputError: If an input cannot be read.
            ConfigError: If the tokenizer has no usable end token.
        """
        from hornbook.packing import pack

        return pack(inputs, out, tokenizer=self, threads=threads)

    def count(
        self,
        text: str | bytes,
        allowed_special: AllowedSpecial = "all",
        *,
        errors: Errors = "strict",
    ) -> int:
        """How many tokens a text has; arguments and errors as in `encode`."""
        special = _tokens(allowed_special)
        return _each(lambda texts: self._core.count(texts[0], special), [text], errors)

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        """The bytes of some ids, special tokens included; ids outside the vocabulary give none.

        Raises:
            InputError: If an id is negative or not an integer.
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.dtype == object and all(isinstance(one, int) for one in array.flat):
            # Beyond 64 bits.
            array = array.clip(-1, self.vocab_size).astype(np.int64)
        if array.dtype.kind not in "ui":
            raise InputError(f"ids: {array.dtype} are not integers")
        if array.min() < 0:
            raise InputError(f"ids: {array.min()} is negative; mask padding before decoding")
        # Larger ids are in no vocabulary, whatever their width.
        plain = array.ravel().clip(max=self.vocab_size).astype(np.uint32)
        return self._core.decode(plain)

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of some ids; a character cut in two becomes U+FFFD, as in HF.

        Raises:
            InputError: If an id is negative or not an integer.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """The text of a `tokenizer.json`."""
        return self._core.to_json()

    def save(self, path: StrPath) -> None:
        """Writes a `tokenizer.json` that HF's `Tokenizer.from_file` opens with equal ids.

        Raises:
            StorageError: If it cannot be written.
        """
        write_text(Path(path), self.to_json())

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _unpickle, (self.to_json(),)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.tokenizer_hash[:8]})"


def _unpickle(text: str) -> Tokenizer:
    return Tokenizer(_core.Tokenizer.from_json(text))


def _tokens(allowed_special: str) -> bool:
    if allowed_special not in ("all", "none"):
        raise ConfigError(f'allowed_special = {allowed_special!r}: give "all" or "none"')
    return allowed_special == "all"


def _checked(errors: str) -> str:
    if errors not in ("strict", "replace"):
        raise ConfigError(f'errors = {errors!r}: give "strict" or "replace"')
    return errors


def _each(function: Callable[[list[str]], R], texts: list[Any], errors: str) -> R:
    """Calls the core, which takes no bytes and no `str` that has no UTF-8 form."""
    _checked(errors)
    try:
        if any(isinstance(text, bytes) for text in texts):
            texts = [t.decode("utf-8", errors) if isinstance(t, bytes) else t for t in texts]
        return function(texts)
    except UnicodeError as error:
        if errors == "strict":
            raise _no_utf8(error) from error
    except TypeError as error:
        nulls = [i for i, text in enumerate(texts) if text is None]
        if not nulls:
            raise
        raise InputError(f"text {nulls[0]} of the batch is null") from error
    return function([_SURROGATE.sub("\ufffd", text) for text in texts])


def _no_utf8(error: UnicodeError) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(
            f'text: not UTF-8 at byte {error.start}; decode it, or give errors="replace"'
        )
    start = error.start if isinstance(error, UnicodeEncodeError) else "?"
    return InputError(
        f"text: half a surrogate pair at character {start}; "
        'clean it with text.encode(errors="replace"), or give errors="replace"'
    )
