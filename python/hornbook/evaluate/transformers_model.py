"""Completions by a causal language model of transformers', the same at any batch size in fp32.

Prompts are padded on the left; a row's draws come from its own generator, by its place in the list.
Tokens are chosen, and the close ones decided alone, as by `hornbook.model.sample`.
A completion is the text that decoding prompt and answer together adds to the prompt's, since some
tokenizers drop a space at the start of what they decode.

    complete(model, tokenizer, ["def f(x):"], [0], max_new_tokens=32)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hornbook.errors import InputError
from hornbook.model.sample import choose, draw_key


def context(model: Any) -> int:
    """The most tokens a model sees, where its configuration says so."""
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    places: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """Completes prompts.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Texts to go on from.
        places: Their places in the whole list, for the draws.
        max_new_tokens: Most tokens of a completion; less where the model's context ends.
        temperature: 0 for greedy.
        top_p: The share of probability drawn from.
        stop: Strings that end a completion, which is cut before them.
        seed: Of the draws.
        batch_size: Rows at once.

    Raises:
        InputError: If a prompt leaves no room in the context.
    """
    limit = context(model)
    rows = []
    for index, prompt in enumerate(prompts):
        ids = list(tokenizer(prompt)["input_ids"]) or [model.config.eos_token_id]
        if len(ids) >= limit:
            raise InputError(f"prompt {index}: {len(ids):,} tokens leave no room in {limit:,}")
        rows.append((index, ids))
    rows.sort(key=lambda row: (-len(row[1]), row[0]))
    # A row that may reach the end of the context ends there alone: others would push it past.
    tight = [[row] for row in rows if len(row[1]) + max_new_tokens > limit]
    roomy = [row for row in rows if len(row[1]) + max_new_tokens <= limit]
    batches = tight + [roomy[i : i + batch_size] for i in range(0, len(roomy), batch_size)]
    texts = [""] * len(prompts)
    for batch in batches:
        if batch:
            widest = max(len(ids) for _, ids in batch)
            pad = [widest - len(ids) for _, ids in batch]
            chooser = _Chooser(model, pad, [places[i] for i, _ in batch], seed, temperature, top_p)
            most = min(max_new_tokens, limit - widest)
            found = _batch(model, tokenizer, [ids for _, ids in batch], chooser, most, stop)
            for (index, _), text in zip(batch, found, strict=True):
                texts[index] = text
    return texts


class _Chooser:
    """A logits processor that chooses each row's token and leaves no other."""

    def __init__(
        self,
        model: Any,
        pad: Sequence[int],
        places: Sequence[int],
        seed: int,
        temperature: float,
        top_p: float,
    ) -> None:
        keys = [[seed % 2**64, place] for place in places]
        self._draws = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._model, self._pad = model, pad
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        keys = [draw_key(draws) for draws in self._draws]
        tokens, close = choose(scores, keys, self._temperature, self._top_p)
        for row in close.nonzero()[:, 0].tolist():
            alone = self._model(input_ids[row : row + 1, self._pad[row] :]).logits[:, -1].float()
            key = keys[row : row + 1]
            tokens[row] = choose(alone, key, self._temperature, self._top_p)[0][0]
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _batch(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    chooser: _Chooser,
    most: int,
    stop: Sequence[str],
) -> list[str]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    ends = _ends(model, tokenizer)
    widest = max(map(len, prompts))
    pad = [widest - len(ids) for ids in prompts]
    ids = torch.tensor([[ends[0]] * p + row for p, row in zip(pad, prompts, strict=True)])
    mask = torch.tensor([[0] * p + [1] * (widest - p) for p in pad])

    def text(row: list[int], prompt: list[int]) -> str:
        def decode(some: list[int]) -> str:
            return str(
                tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )

        cut = next((i for i, token in enumerate(row) if token in ends), len(row))
        whole, start = decode(prompt + row[:cut]), decode(prompt)
        made = whole[len(start) :]
        stops = [at for word in stop if (at := made.find(word)) >= 0]
        return made[: min(stops, default=len(made))]

    def stopped(input_ids: Any, scores: Any, **_: Any) -> Any:
        rows = input_ids[:, widest:].tolist()
        tail = max((len(word.encode()) for word in stop), default=0) + 4
        found = []
        for row in rows:
            near = tokenizer.decode(row[-tail:], clean_up_tokenization_spaces=False)
            found.append(any(word in near for word in stop))
        return torch.tensor(found, device=input_ids.device)

    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, pad_token_id=ends[0], eos_token_id=ends
    )
    with torch.inference_mode():
        made = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([stopped] if stop else []),
        )
    rows = made[:, widest:].tolist()
    return [text(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text; one that nothing makes where the model has none."""
    found = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    if found is None:
        return [0]
    return list(found) if isinstance(found, list) else [int(found)]
