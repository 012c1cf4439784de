"""A model's shape, apart from the model: reading it loads no torch."""

from dataclasses import dataclass
from typing import Any

from hornbook.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PhiConfig:
    """A model's shape. The defaults are phi-1's, without dropout."""

    vocab_size: int = 51_200
    """Rows of the embedding and the head; token ids are below it."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    intermediate_size: int | None = None
    """Width of the MLP; four times the hidden size unless stated."""
    num_hidden_layers: int = 24
    """Blocks."""
    num_attention_heads: int = 32
    """Heads of attention."""
    max_position_embeddings: int = 2048
    """Longest sequence."""
    partial_rotary_factor: float = 0.5
    """Share of a head's dimensions that is rotated."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; biases start at 0."""
    attention_dropout: float = 0.0
    """Dropout of attention weights, in training."""
    resid_pdrop: float = 0.0
    """Dropout of what attention and MLP add to the residual stream, in training."""

    def __post_init__(self) -> None:
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} must be a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.rotary_dims % 2 or not 0 <= self.rotary_dims <= self.head_dim:
            raise ConfigError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head size {self.head_dim} "
                f"rotates {self.rotary_dims} dimensions; it must be an even number within the head"
            )
        for name in ("attention_dropout", "resid_pdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} must lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dims(self) -> int:
        """Rotated dimensions of a head."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def phi_1(cls, **changes: Any) -> "PhiConfig":
        """The paper's 1.3B model, with changes."""
        return cls(**changes)

    @classmethod
    def phi_1_small(cls, **changes: Any) -> "PhiConfig":
        """The paper's 350M model, with changes."""
        shape = {"hidden_size": 1024, "num_hidden_layers": 20, "num_attention_heads": 16}
        return cls(**{**shape, **changes})
