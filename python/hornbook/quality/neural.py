"""Embedders that ask a neural model: a causal language model, sentence-transformers, an endpoint.

Texts are cut to `max_tokens` (or `max_characters`, where tokens cannot be seen), sorted by length
and run in batches of like length, so that little is spent on padding. A row is its text's alone;
its last bits may depend on what stands beside the text in a batch, as matrix products round
differently at different shapes.

    CodegenEmbedder("Salesforce/codegen-350M-mono", max_tokens=1024).embed(texts)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import _core
from hornbook.errors import ConfigError, InputError, need
from hornbook.files import hash_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _device(asked: str) -> str:
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _weights_hash(state: dict[str, Any]) -> str:
    """One hash of a model's parameters, whatever they were loaded from."""
    import torch

    return hash_json(
        [
            [name, str(value.dtype), list(value.shape), _core.hash_bytes(data)]
            for name, value in sorted(state.items())
            for data in [
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            ]
        ]
        if state
        else []
    )[:16]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Texts of like length, as many as `tokens` holds with their padding; longest first."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        count = max(1, tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


MAX_TOKENS = 1024
"""That a causal model sees of a text unless told otherwise, or as many as it has positions for."""


class CodegenEmbedder:
    """The mean of a causal language model's last hidden states (the paper: CodeGen-Mono 350M)."""

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int | None = None,
        batch_tokens: int = 16_384,
        device: str = "",
        dtype: str = "bfloat16",
    ) -> None:
        need("transformers", "eval")
        need("torch", "train")
        import torch
        from transformers import AutoModel, AutoTokenizer

        if (max_tokens is not None and max_tokens < 1) or batch_tokens < 1:
            raise ConfigError("codegen: max_tokens and batch_tokens must be at least 1")
        if dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"codegen: dtype {dtype!r} is unknown: use bfloat16 or float32")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            body = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{model}: not a model that transformers can load ({error})"
            ) from error
        self._device = _device(device)
        self._model = body.to(self._device).eval()
        self._batch_tokens = batch_tokens
        if max_tokens is None:
            positions = getattr(body.config, "max_position_embeddings", None)
            max_tokens = MAX_TOKENS
            if isinstance(positions, int) and 0 < positions < max_tokens:
                max_tokens = positions
        self._max_tokens = max_tokens
        # A folder may be named in more ways than one; what counts is its weights.
        self.id = (
            f"codegen/{Path(model).name}/{_weights_hash(body.state_dict())}"
            f"/mean/{max_tokens}-tokens/{dtype}"
        )
        self.settings = {
            "kind": "codegen",
            "model": model,
            "max_tokens": max_tokens,
            "batch_tokens": batch_tokens,
            "dtype": dtype,
        }

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Float32 [n, hidden size]; an empty text is zero."""
        import numpy as np
        import torch

        width = int(self._model.config.hidden_size)
        rows = np.zeros((len(texts), width), np.float32)
        # Far more characters than tokens are never needed, and long strings are slow to tokenize.
        heads = [text[: 16 * self._max_tokens] for text in texts]
        ids = (
            self._tokenizer(heads, truncation=True, max_length=self._max_tokens)["input_ids"]
            if heads
            else []
        )
        lengths = [len(row) for row in ids]
        with torch.inference_mode():
            for batch in batches(lengths, self._batch_tokens):
                longest = lengths[batch[0]]
                if longest == 0:
                    continue
                tokens = torch.zeros(len(batch), longest, dtype=torch.long)
                mask = torch.zeros(len(batch), longest, dtype=torch.long)
                for place, index in enumerate(batch):
                    tokens[place, : lengths[index]] = torch.tensor(ids[index], dtype=torch.long)
                    mask[place, : lengths[index]] = 1
                tokens, mask = tokens.to(self._device), mask.to(self._device)
                states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
                weights = mask.unsqueeze(-1).float()
                sums = (states.float() * weights).sum(1)
                means = sums / weights.sum(1).clamp(min=1.0)
                rows[batch] = means.cpu().numpy()
        return rows


class SentenceEmbedder:
    """Any sentence-transformers model, by name or folder."""

    def __init__(
        self, model: str, *, max_tokens: int | None = None, batch: int = 32, device: str = ""
    ) -> None:
        need("sentence_transformers", "sentence")
        from sentence_transformers import SentenceTransformer

        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"sentence: max_tokens = {max_tokens}: must be at least 1")
        try:
            self._model = SentenceTransformer(model, device=_device(device))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{model}: not a model that sentence-transformers can load ({error})"
            ) from error
        if max_tokens is not None:
            self._model.max_seq_length = max_tokens
        self._batch = batch
        limit = self._model.max_seq_length
        self.id = (
            f"sentence/{Path(model).name}/{_weights_hash(self._model.state_dict())}/{limit}-tokens"
        )
        self.settings = {"kind": "sentence", "model": model, "max_tokens": limit, "batch": batch}

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Float32 [n, the model's dimension]."""
        import numpy as np

        rows = self._model.encode(
            list(texts), batch_size=self._batch, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(rows, np.float32)


class HttpEmbedder:
    """An OpenAI-compatible embeddings endpoint; the key comes from the environment."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "",
        api_key_env: str = "OPENAI_API_KEY",
        max_characters: int = 8_000,
        batch: int = 64,
    ) -> None:
        need("openai", "generate")
        import openai

        from hornbook.generate.client import endpoint

        if max_characters < 1 or batch < 1:
            raise ConfigError("http: max_characters and batch must be at least 1")
        address, secret = endpoint(base_url or None, api_key_env)
        self._client = openai.OpenAI(base_url=address, api_key=secret, max_retries=5)
        self._model = model
        self._max_characters = max_characters
        self._batch = batch
        self.id = f"http/{model}/{max_characters}-characters"
        self.settings = {
            "kind": "http",
            "model": model,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "max_characters": max_characters,
            "batch": batch,
        }

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Float32 [n, the model's dimension].

        Raises:
            InputError: If the endpoint cannot be asked, or its answer is no row for each text.
        """
        import numpy as np
        import openai

        rows: list[list[float]] = []
        for first in range(0, len(texts), self._batch):
            # Many endpoints refuse an empty text.
            asked = [
                text[: self._max_characters] or " " for text in texts[first : first + self._batch]
            ]
            try:
                answer = self._client.embeddings.create(
                    model=self._model, input=asked, encoding_format="float"
                )
            except openai.OpenAIError as error:
                raise InputError(
                    f"embeddings by {self._model}: {type(error).__name__}: "
                    f"{str(error)[:200].replace(self._client.api_key, '***')}"
                ) from error
            found = sorted(answer.data, key=lambda item: item.index)
            if [item.index for item in found] != list(range(len(asked))):
                raise InputError(f"embeddings by {self._model}: not one row for each text")
            rows += [item.embedding for item in found]
        try:
            return np.asarray(rows, np.float32).reshape(len(texts), -1 if rows else 0)
        except ValueError as error:
            raise InputError(f"embeddings by {self._model}: rows differ in length") from error
