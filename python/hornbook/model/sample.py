"""Completions: batched, with a key-value cache, greedy or by temperature and top-p.

In fp32 a prompt's completion does not depend on what else is in the batch, greedy or sampled: a
sampled one follows from the seed and the prompt's place in the list. Short prompts are padded on
the left and the padding is masked; a token is drawn by adding noise to its score, so that rounding,
which does depend on the batch, decides only where the two best are as good as equal; and those few
(one in some thousand) are decided again by the prompt alone. Prompts of like length go together;
finished rows leave the batch. Text can be had as it is made.

    hornbook sample 'def add(a, b):' --model runs/demo/train/filtered/seed-0/finetuned/final
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import ConfigError, InputError
from hornbook.model.config import PhiConfig
from hornbook.model.phi import Cache, Phi

CLOSE = 1e-5
"""Scores that differ by less than this part of the largest logit are as good as equal: several
times what the order of additions in fp32 moves them by."""


class Codec(Protocol):
    """What sampling needs of a tokenizer."""

    @property
    def eot_id(self) -> int:
        """The token that ends a document."""

    def encode(self, text: str, /) -> Any:
        """Token ids, as an array."""

    def decode(self, ids: Any, /) -> str:
        """The text of token ids."""


@dataclass
class _Row:
    """A prompt on its way through a batch."""

    index: int
    prompt: list[int]
    draws: np.random.Generator | None
    made: list[int] = field(default_factory=list)
    said: int = 0


def generate(
    model: Phi,
    tokenizer: Codec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
    places: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Completes prompts.

    Args:
        model: Put into evaluation mode while this runs.
        tokenizer: `.encode(str) -> array`, `.decode(ids) -> str`, `.eot_id`.
        prompts: Texts to go on from; an empty one starts a document.
        max_new_tokens: Most tokens of a completion; less where the model's context ends.
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_p: Draws from the likeliest tokens that together reach this probability.
        stop: A completion is cut before the first of these to appear.
        seed: Of the draws, together with a prompt's place in the list.
        batch_size: Rows at once.
        places: The prompts' places in a longer list, of which these are a part.
        on_progress: Called with completions done and all.
        on_text: Called with a prompt's place and the next piece of its completion as soon as that
            is certain: whole characters, and nothing that a stop string may still cut off.

    Returns:
        For each prompt its completion, without the prompt, the stop string or end-of-text.

    Raises:
        ConfigError: If an option makes no sense.
        InputError: If a prompt leaves no room in the model's context, or has ids past its
            vocabulary.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError("max_new_tokens and batch_size must be at least 1")
    if temperature < 0.0 or not 0.0 < top_p <= 1.0:
        raise ConfigError(f"temperature {temperature} must be >= 0 and top_p {top_p} in (0, 1]")
    if any(not text for text in stop):
        raise ConfigError("a stop string must not be empty")
    rows = []
    for index, ids in enumerate(encode_prompts(model.config, tokenizer, prompts)):
        place = index if places is None else places[index]
        draws = np.random.Generator(np.random.Philox(key=[seed % 2**64, place]))
        rows.append(_Row(index, ids, draws if temperature > 0.0 else None))
    rows.sort(key=lambda row: (-len(row.prompt), row.index))
    # A stop string ends in the last tokens: each holds a byte at least, or a part of a character.
    tail = max((len(text.encode()) for text in stop), default=0) + 4
    done: dict[int, str] = {}

    def say(row: _Row, text: str) -> None:
        if on_text is not None and len(text) > row.said:
            on_text(row.index, text[row.said :])
            row.said = len(text)

    def finished(row: _Row) -> bool:
        if row.made[-1] == tokenizer.eot_id:
            row.made.pop()
        elif len(row.made) < max_new_tokens and (
            len(row.prompt) + len(row.made) < model.config.max_position_embeddings
        ):
            if on_text is not None:
                text = tokenizer.decode(row.made)
                if not any(word in text for word in stop):
                    say(row, text[: _certain(text, stop)])
                    return False
            if not stop:
                return False
            end = tokenizer.decode(row.made[-tail:])
            if not any(text in end for text in stop):
                return False
            # The tail may begin inside a character and so hold a sign that the whole does not.
            whole = tokenizer.decode(row.made)
            if not any(text in whole for text in stop):
                return False
        text = tokenizer.decode(row.made) if row.made else ""
        cuts = [at for at in (text.find(word) for word in stop) if at >= 0]
        done[row.index] = text[: min(cuts)] if cuts else text
        say(row, done[row.index])
        if on_progress is not None:
            on_progress(len(done), len(prompts))
        return True

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for first in range(0, len(rows), batch_size):
                _run(model, rows[first : first + batch_size], temperature, top_p, finished)
    finally:
        model.train(training)
    return [done[index] for index in range(len(prompts))]


def encode_prompts(config: PhiConfig, tokenizer: Codec, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts that a model can complete.

    Raises:
        InputError: If a prompt leaves no room in the model's context, or has ids past its
            vocabulary.
    """
    made = []
    for index, prompt in enumerate(prompts):
        ids = [int(token) for token in tokenizer.encode(prompt)] or [int(tokenizer.eot_id)]
        if len(ids) >= config.max_position_embeddings:
            raise InputError(
                f"prompt {index}: {len(ids):,} tokens leave no room in a context of "
                f"{config.max_position_embeddings:,}; shorten it"
            )
        if max(ids) >= config.vocab_size:
            raise InputError(
                f"prompt {index}: token {max(ids)} is past the model's vocabulary of "
                f"{config.vocab_size}; is this the model's own tokenizer?"
            )
        made.append(ids)
    return made


def _certain(text: str, stop: Sequence[str]) -> int:
    """How much of an unfinished text will stay, whatever follows."""
    length = len(text.rstrip("\ufffd"))  # perhaps the first bytes of a character
    for word in stop:
        for size in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:size]):
                length = min(length, len(text) - size)
                break
    return length


def _run(
    model: Phi,
    rows: list[_Row],
    temperature: float,
    top_p: float,
    finished: Callable[[_Row], bool],
) -> None:
    """Completes a batch; the last token of every prompt stands in the same column."""
    device = model.device
    widest = max(len(row.prompt) for row in rows)
    pad = torch.tensor([widest - len(row.prompt) for row in rows], device=device)
    ids = torch.tensor([[0] * (widest - len(row.prompt)) + row.prompt for row in rows]).to(device)
    columns = torch.arange(widest, device=device)
    padded = bool(pad.any())
    mask = None
    if padded:
        causal = columns[:, None] >= columns[None, :]
        # Padding sees itself, so that no row of the softmax is empty.
        mask = (columns[None, None] >= pad[:, None, None]) & causal | torch.eye(
            widest, dtype=torch.bool, device=device
        )
        mask = mask[:, None]
    limit = model.config.max_position_embeddings
    room = 64
    cache = Cache(model.config, len(rows), widest + room, device=device, dtype=model.dtype)
    positions = (columns[None] - pad[:, None]).clamp_min(0)
    logits = model(ids, mask=mask, positions=positions, cache=cache, last=True)
    while True:
        keys = [draw_key(row.draws) for row in rows]
        tokens, close = choose(logits, keys, temperature, top_p)
        for place in close.nonzero()[:, 0].tolist():
            alone = torch.tensor([rows[place].prompt + rows[place].made], device=device)
            scores = model(alone, last=True)
            tokens[place] = choose(scores, keys[place : place + 1], temperature, top_p)[0][0]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.made.append(token)
        stay = [place for place, row in enumerate(rows) if not finished(row)]
        if not stay:
            return
        if len(stay) < len(rows):
            kept = torch.tensor(stay, device=device)
            rows, pad = [rows[place] for place in stay], pad[kept]
            cache.keep(kept)
        if cache.length == cache.store.shape[3]:
            cache.grow(room := min(2 * room, limit))
        ids = torch.tensor([[row.made[-1]] for row in rows]).to(device)
        mask = None
        if padded:
            seen = torch.arange(cache.length + 1, device=device)
            mask = (seen[None] >= pad[:, None])[:, None, None]
        positions = (cache.length - pad)[:, None]
        logits = model(ids, mask=mask, positions=positions, cache=cache, last=True)


def draw_key(draws: np.random.Generator | None) -> int:
    """What decides a row's draw at one step; 0 for greedy rows."""
    return 0 if draws is None else int(draws.integers(1 << 63))


def choose(
    logits: Tensor, keys: Sequence[int], temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """The next token of each row, and whether rounding may have decided it.

    Args:
        logits: (rows, vocabulary).
        keys: `draw_key` of each row.
        temperature: 0 for greedy. Else a token is drawn as the greatest of score and Gumbel noise.
        top_p: The share of probability drawn from.

    Returns:
        Tokens (rows,), int64; (rows,), bool: never true below fp32, where nothing is promised.
    """
    margin = CLOSE * logits.abs().amax(-1)
    if temperature == 0.0:
        return logits.argmax(-1), _close(logits, margin, logits.dtype)
    scaled = logits.double() / temperature
    scores = scaled + _gumbel(keys, logits.shape[-1], logits.device)
    close = _close(scores, margin / temperature, logits.dtype)
    if top_p < 1.0:
        p, order = torch.softmax(scaled, -1).sort(dim=-1, descending=True, stable=True)
        # A token belongs if the likelier ones have not reached top_p; the likeliest always does.
        before = p.cumsum(-1) - p

        def among(share: float) -> Tensor:
            inside = torch.zeros_like(scores, dtype=torch.bool)
            inside.scatter_(1, order, (before < share) | (before == 0.0))
            return scores.masked_fill(~inside, -torch.inf)

        wide, narrow = among(top_p + CLOSE), among(top_p - CLOSE)
        close = _close(wide, margin / temperature, logits.dtype)
        if logits.dtype == torch.float32:
            close |= wide.argmax(-1) != narrow.argmax(-1)
        scores = among(top_p)
    return scores.argmax(-1), close


def _close(scores: Tensor, margin: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the two best are closer than `margin`, for logits of fp32."""
    best = scores.topk(2).values
    return (best[:, 0] - best[:, 1] < margin) & (dtype == torch.float32)


def _gumbel(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Gumbel noise (rows, count), the same for the same key: SplitMix64 started from it."""

    def shifted(z: Tensor, bits: int) -> Tensor:
        return z >> bits & (1 << 64 - bits) - 1  # torch's own shift keeps the sign

    z = torch.tensor(keys, device=device)[:, None]
    z = z + torch.arange(1, count + 1, device=device) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ shifted(z, 31)
    # 52 bits and a half: never 0 and never 1.
    uniform = (shifted(z, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _signed(value: int) -> int:
    return value - (1 << 64)
