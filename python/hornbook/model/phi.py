"""phi-1: a decoder whose blocks run attention and MLP side by side on one LayerNorm.

Same numbers and same state-dict names as transformers' `PhiForCausalLM` (fp32 logits within 1e-5,
tested). phi-1 has 1,418,270,720 parameters, phi-1-small 356,794,368 (section 2.3 of the paper).
A training step costs about 6 N + 12 L d T floating-point operations a token.

    python -c "from hornbook.model import *; print(Phi(PhiConfig.phi_1(), device='meta'))"

Shapes: B batch, T tokens, S tokens with those in the cache, H heads, D head size, C hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hornbook.model.config import PhiConfig
from hornbook_kernels import (
    apply_rotary,
    attention,
    document_bounds,
    document_mask,
    explain,
    linear_cross_entropy,
    rotary_tables,
)


class Cache:
    """Keys and values of the tokens seen so far, for every layer; room is made once.

    Args:
        config: The model's shape.
        batch: B.
        length: Most tokens that will be held.
        device: The model's device.
        dtype: The model's dtype.
    """

    def __init__(
        self,
        config: PhiConfig,
        batch: int,
        length: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, length, config.num_attention_heads)
        self.store = torch.zeros(*shape, config.head_dim, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds `[B, T, H, D]` at the end of a layer; returns all its keys and values, `[B, S, ..]`.

        `length` is moved by the model once all layers have been through.
        """
        end = self.length + k.shape[1]
        keys, values = self.store[layer]
        keys[:, self.length : end] = k
        values[:, self.length : end] = v
        return keys[:, :end], values[:, :end]

    def grow(self, tokens: int) -> None:
        """Makes room for more tokens."""
        self.store = F.pad(self.store, (0, 0, 0, 0, 0, tokens))

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.store = self.store[:, :, rows]


class Attention(nn.Module):
    """Self-attention with rotary embedding on part of every head."""

    def __init__(self, config: PhiConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer = layer
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)

    def forward(
        self,
        x_BTC: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        bounds: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """`[B, T, C]` to the same."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        # One product instead of three, and q, k, v packed as the kernels like them.
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        qkv = F.linear(x_BTC, weight, bias)
        qkv = qkv.view(*x_BTC.shape[:2], 3, self.heads, self.head_dim)
        qkv = apply_rotary(qkv, cos, sin)
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            out = attention(qkv, mask=mask, bounds=bounds, dropout_p=dropout)
        else:
            q, k, v = qkv.unbind(2)
            k, v = cache.append(self.layer, k, v)
            out = attention(q, k, v, mask=mask, dropout_p=dropout)
        return self.dense(out.reshape(x_BTC.shape))  # type: ignore[no-any-return, unused-ignore]


class MLP(nn.Module):
    """Two linear layers around a GELU in its tanh form."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """`[B, T, C]` to the same."""
        return self.fc2(F.gelu(self.fc1(x_BTC), approximate="tanh"))  # type: ignore[no-any-return, unused-ignore]


class Block(nn.Module):
    """One LayerNorm feeds attention and MLP; both add to the residual stream."""

    def __init__(self, config: PhiConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.resid_pdrop
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x_BTC: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        bounds: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """`[B, T, C]` to the same."""
        normed = _normed(self.input_layernorm, x_BTC)
        attended = self.self_attn(normed, cos, sin, mask, bounds, cache)
        thought = self.mlp(normed)
        if self.dropout and self.training:
            attended = F.dropout(attended, self.dropout)
            thought = F.dropout(thought, self.dropout)
        out: Tensor = attended + thought + x_BTC
        return out


def _normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in the dtype of what it is given: its own weights may be gathered in another."""
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


class Decoder(nn.Module):
    """Embedding, blocks, last LayerNorm."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Phi(nn.Module):
    """phi-1 or a model of its kind.

    Args:
        config: The shape.
        device: Where the weights live; "meta" makes none.
        dtype: Their dtype.
        seed: Of the fresh weights, which are the same on every device.
    """

    def __init__(
        self,
        config: PhiConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        # torch's own initialisation is skipped: it would draw from the global generator.
        with torch.device("meta"):
            self.model = Decoder(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self._rotary: tuple[Tensor, Tensor] | None = None
        self.to(dtype)
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
            self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Draws fresh weights: normal, `initializer_range` wide; biases 0, LayerNorm 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "layernorm" in name:
                parameter.fill_(1.0)
            else:
                draw = torch.empty(parameter.shape).normal_(generator=generator)
                parameter.copy_(draw.mul_(self.config.initializer_range))

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tables of the first `length` positions, computed once for each device."""
        kept = self._rotary
        if kept is None or kept[0].shape[0] < length or kept[0].device != device:
            room = max(length, self.config.max_position_embeddings)
            # Sampling computes in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                kept = self._rotary = rotary_tables(
                    room, self.config.rotary_dims, theta=self.config.rope_theta, device=device
                )
        return kept[0][:length], kept[1][:length]

    def forward(
        self,
        input_ids: Tensor,
        *,
        cu_seqlens: Sequence[Any] | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: str = "mean",
        last: bool = False,
    ) -> Tensor:
        """Logits, or with `labels` the loss, without holding all the logits.

        Args:
            input_ids: `[B, T]` integers.
            cu_seqlens: For each row its documents' starts and its end; a token then sees only its
                own document. Positions go on through the row, which changes nothing: rotary
                attention sees differences of positions only.
            mask: Attention mask in place of `cu_seqlens` and causality, `[B, 1, T, S]`: boolean
                (true: may see) or additive.
            positions: `[B, T]`; unless stated, they follow what the cache holds.
            cache: Keys and values before these tokens; these are added to it. Not for training.
            labels: `[B, T]` int64: the token that follows each, -100 for no loss.
            weights: `[B, T]` factor on each token's loss.
            reduction: Of the loss: `"mean"` weighted, or `"sum"`.
            last: Logits of the last token only, `[B, V]`.

        Returns:
            Logits `[B, T, V]` (`[B, V]` with `last`), or the loss as a scalar.
        """
        before = 0 if cache is None else cache.length
        length = input_ids.shape[1]
        cos, sin = self.rotary(before + length, input_ids.device)
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        elif before:
            cos, sin = cos[before:], sin[before:]
        x_BTC = self.model.embed_tokens(input_ids)
        if torch.is_autocast_enabled(x_BTC.device.type):
            # Pieces of weights are gathered in half precision; what is added up stays in fp32.
            x_BTC = x_BTC.float()
        bounds = None
        if cu_seqlens is not None:
            mask, bounds = self._documents(x_BTC, cu_seqlens)
        for block in self.model.layers:
            x_BTC = block(x_BTC, cos, sin, mask, bounds, cache)
        if cache is not None:
            cache.length += length
        if last:
            x_BTC = x_BTC[:, -1]
        x_BTC = _normed(self.model.final_layernorm, x_BTC)
        head = self.lm_head
        if labels is None:
            return head(x_BTC)  # type: ignore[no-any-return, unused-ignore]
        return linear_cross_entropy(
            x_BTC, head.weight, head.bias, labels, weights=weights, reduction=reduction
        )

    def _documents(
        self, x_BTC: Tensor, cu_seqlens: Sequence[Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Mask or bounds of documents, once for all layers: what attention will want."""
        length = x_BTC.shape[1]
        dropout = self.config.attention_dropout if self.training else 0.0
        heads_BTHD = x_BTC.unflatten(-1, (self.config.num_attention_heads, -1))
        if explain(heads_BTHD, documents=True, dropout_p=dropout).impl == "triton":
            return None, document_bounds(cu_seqlens, length, device=x_BTC.device)
        kind = x_BTC.dtype if x_BTC.device.type == "cpu" else torch.bool
        return document_mask(cu_seqlens, length, dtype=kind, device=x_BTC.device), None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.lm_head.weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> "Phi":
        """Opens a folder in the Hugging Face layout, or a Hub name.

        Args:
            source: A folder with `config.json` and safetensors, or a name such as
                `microsoft/phi-1`, which is fetched by huggingface_hub.
            device: Where the weights go.
            dtype: Their dtype; None keeps the files'.

        Returns:
            The model, in evaluation mode.

        Raises:
            InputError: If files are missing, torn, or of another architecture.
            MissingExtraError: If a Hub name is given without huggingface_hub.
        """
        from hornbook.model import hf

        return hf.load(source, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path, *, tokenizer: Any = None) -> None:
        """Writes the Hugging Face layout, each file under a temporary name first.

        Args:
            folder: Made if absent.
            tokenizer: Anything with `.save(path)` (and `.eot_id`), for `tokenizer.json`.

        Raises:
            StorageError: If the disk refuses.
        """
        from hornbook.model import hf

        hf.save(self, folder, tokenizer=tokenizer)
