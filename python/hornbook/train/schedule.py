"""What a training run is asked to do: its options, its learning rate, and what it will cost.

The paper's figures (section 2.3) are `TrainConfig.pretrain()` and `.finetune()`. What the paper
leaves out is chosen here and stated: betas (0.9, 0.95), eps 1e-8, gradients clipped to norm 1,
no weight decay on biases, LayerNorms and the embedding.

    hornbook run phi-1 --dry-run
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hornbook.errors import ConfigError
from hornbook.model.config import PhiConfig

SCHEDULES = ("linear", "cosine", "wsd", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
METHODS = ("concat", "best_fit")
WSD_DECAY = 0.2
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0}
"""Dense bf16 peaks of the cards."""
ASSUMED_MFU = {"A100": 0.50, "H100": 0.40}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a training run."""

    steps: int
    """Optimizer steps over which the learning rate runs its course."""
    batch_size: int
    """Rows of a step, over all processes."""
    learning_rate: float
    """Highest learning rate."""
    sequence_length: int = 2048
    """Tokens of a row."""
    micro_batch_size: int | None = None
    """Rows at once in a process; the rest of a step is accumulated. All of a process's rows unless
    stated."""
    stop_step: int | None = None
    """Stop here, before the schedule ends (the paper: 24,000 of 36,000)."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: str = "linear"
    """After the warm-up: "linear" or "cosine" to 0, "wsd" (constant, the last fifth linear to 0),
    or "constant"."""
    weight_decay: float = 0.1
    """AdamW's, on matrices; not on biases, LayerNorms and the embedding."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    eps: float = 1e-8
    """AdamW's."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    dropout: float = 0.0
    """Of attention weights and of both residual branches (the paper: 0.1)."""
    precision: str = "fp32"
    """Of the products: "fp32", "bf16" or "fp16"; weights and optimizer stay in fp32."""
    seed: int = 0
    """Of fresh weights, data order and dropout."""
    method: Literal["concat", "best_fit"] = "concat"
    """How rows are cut from documents: "concat" (the paper) or "best_fit"."""
    prompt_loss_weight: float = 1.0
    """Factor on the loss of prompt tokens (the paper: 1)."""
    document_mask: bool = False
    """A token sees only its own document (the paper: no)."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept; 0 keeps all."""
    threads: int | None = None
    """Threads of each process; torch's choice unless stated."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    max_skipped: int = 10
    """Steps in a row that may be skipped for a loss or gradient that is not finite."""
    init_from: str | None = None
    """Folder or Hub name of the weights to start from, in place of fresh ones."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch_size", "sequence_length", "save_every", "max_skipped"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "prompt_loss_weight", "keep"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")
        for name in ("micro_batch_size", "stop_step", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if not self.learning_rate > 0 or not self.eps > 0:
            raise ConfigError("learning_rate and eps must be positive")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: {self.dropout} must lie in [0, 1)")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas: {self.betas} must be two numbers in [0, 1)")
        if self.stop_step is not None and self.stop_step > self.steps:
            raise ConfigError(f"stop_step {self.stop_step} is past steps {self.steps}")
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("method", METHODS),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps if self.stop_step is None else self.stop_step

    @classmethod
    def pretrain(cls, **changes: Any) -> "TrainConfig":
        """The paper's pretraining, with changes."""
        paper = {
            "steps": 36_000,
            "stop_step": 24_000,
            "batch_size": 1024,
            "micro_batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 750,
            "weight_decay": 0.1,
            "dropout": 0.1,
            "precision": "bf16",
        }
        return cls(**{**paper, **changes})

    @classmethod
    def finetune(cls, **changes: Any) -> "TrainConfig":
        """The paper's finetuning, with changes."""
        paper = {
            "steps": 6_000,
            "batch_size": 256,
            "micro_batch_size": 8,
            "learning_rate": 1e-4,
            "warmup_steps": 50,
            "weight_decay": 0.01,
            "dropout": 0.1,
            "precision": "bf16",
            "keep": 0,
        }
        return cls(**{**paper, **changes})


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step.

    Args:
        config: The run.
        step: Counted from 0. No step of a run has rate 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = config.steps - config.warmup_steps
    gone = (step - config.warmup_steps) / span
    if config.schedule == "linear":
        share = 1.0 - gone
    elif config.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * gone))
    elif config.schedule == "wsd":
        share = min(1.0, (1.0 - gone) / WSD_DECAY)
    else:
        share = 1.0
    return config.learning_rate * share


def parameter_count(config: PhiConfig) -> int:
    """Parameters of a model, from its shape alone."""
    c, f, v = config.hidden_size, config.intermediate_size or 0, config.vocab_size
    block = 4 * (c * c + c) + (c * f + f) + (f * c + c) + 2 * c
    return v * c + config.num_hidden_layers * block + 2 * c + v * c + v


def estimate(model: PhiConfig, config: TrainConfig, *, processes: int = 1) -> dict[str, Any]:
    """What a run takes, before it starts.

    Args:
        model: The shape.
        config: The run.
        processes: GPUs (each holds the whole model).

    Returns:
        parameters; tokens; flops_per_token (6 N + 12 L d T, where N leaves out the embedding, a
        look-up); flops; memory_bytes of one process by kind and in all (activations are rough:
        about 18 values a token, layer and unit of width, attention fused); checkpoint_bytes of
        one; gpu_hours at the `mfu` assumed for each card's dense bf16 peak.
    """
    n = parameter_count(model)
    per_token = 6 * (n - model.vocab_size * model.hidden_size) + (
        12 * model.num_hidden_layers * model.hidden_size * config.sequence_length
    )
    tokens = config.last_step * config.batch_size * config.sequence_length
    rows = config.micro_batch_size or max(1, config.batch_size // processes)
    width = 4 if config.precision == "fp32" else 2
    at_once = rows * config.sequence_length
    memory = {
        "weights": 4 * n,
        "gradients": 4 * n,
        "adam": 8 * n,
        "activations": 18 * width * at_once * model.num_hidden_layers * model.hidden_size
        + 2 * 4 * min(at_once, 4096) * model.vocab_size,
    }
    if config.document_mask:
        memory["activations"] += width * at_once * config.sequence_length
    return {
        "parameters": n,
        "tokens": tokens,
        "flops_per_token": per_token,
        "flops": per_token * tokens,
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "checkpoint_bytes": 12 * n,
        "mfu": dict(ASSUMED_MFU),
        "gpu_hours": {
            card: round(per_token * tokens / (peak * 1e12 * ASSUMED_MFU[card]) / 3600, 3)
            for card, peak in PEAK_TFLOPS.items()
        },
    }
