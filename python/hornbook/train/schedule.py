"""What a training run is asked to do: its options and its learning rate.

The paper's figures (section 2.3) are `TrainConfig.pretrain()` and `.finetune()`. What the paper
leaves out is chosen here and stated: betas (0.9, 0.95), eps 1e-8, gradients clipped to norm 1,
no weight decay on biases, LayerNorms and the embedding; fresh weights normal with standard
deviation 0.02, biases 0 (`PhiConfig.initializer_range`).

    hornbook run phi-1 --dry-run
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from hornbook.errors import ConfigError

SCHEDULES = ("linear", "cosine", "wsd", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
METHODS = ("concat", "best_fit")
WSD_DECAY = 0.2
PARALLEL = ("auto", "ddp", "fsdp", "hybrid")
TRACKERS = ("tensorboard", "wandb", "trackio")
SELECT = ("last", "loss", "pass@1")


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
    stated: with dropout, state it, for the same losses on another number of processes."""
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
    reset_positions: bool = False
    """Positions start again at 0 in every document (the paper: no). With `document_mask` that
    changes nothing, since rotary attention sees only differences of positions."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept too; 0: none."""
    async_save: bool = True
    """Checkpoints are written while training goes on."""
    parallel: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """How several processes share the model: whole in each ("ddp"), in pieces over all ("fsdp"),
    in pieces over groups ("hybrid"), or the fastest of these that fits."""
    shards: int | None = None
    """Processes of a group in "hybrid" (or "auto"); those of one machine unless stated."""
    recompute: bool | None = None
    """Compute activations again in the backward pass; only if it fits no other way unless stated.
    """
    compile: bool | None = None
    """torch.compile for every block; on a GPU unless stated."""
    memory_gb: float | None = None
    """GiB of each process's device; what it has unless stated."""
    threads: int | None = None
    """Threads of each process; torch's choice unless stated."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    max_skipped: int = 10
    """Steps in a row that may be skipped for a loss or gradient that is not finite."""
    spike: float = 6.0
    """A loss so many standard deviations above the mean of the last 100 steps is logged."""
    log_to: tuple[str, ...] = ()
    """Trackers beside the log: any of "tensorboard", "wandb", "trackio"."""
    sample_every: int = 0
    """Complete `sample_prompts` after every so many steps, into samples.jsonl; 0: never."""
    sample_prompts: tuple[str, ...] = ("def ",)
    """What is completed, greedily."""
    sample_tokens: int = 64
    """Most tokens of a completion."""
    select: Literal["last", "loss", "pass@1"] = "last"
    """Which checkpoint becomes the final model: the last; that of the lowest mean loss on
    `validation`; or that which solves most of `select_on` greedily (ties: the earliest). Only
    checkpoints that are kept stand for choice, of every `save_every` steps and the last. The paper
    does not say how it chose."""
    validation: str | None = None
    """Packed data that is not trained on, for "loss"."""
    select_on: str | None = None
    """Problems for "pass@1": a problem file, or a benchmark by name."""
    init_from: str | None = None
    """Folder or Hub name of the weights to start from, in place of fresh ones."""

    def __post_init__(self) -> None:
        for name in ("betas", "log_to", "sample_prompts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole = ("steps", "batch_size", "sequence_length", "save_every", "max_skipped")
        for name in (*whole, "sample_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        parts = ("warmup_steps", "weight_decay", "grad_clip", "prompt_loss_weight", "keep")
        for name in (*parts, "keep_every", "sample_every", "spike"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} must not be negative")
        for name in ("micro_batch_size", "stop_step", "threads", "shards", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: {value} must be above 0")
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
            ("parallel", PARALLEL),
            ("select", SELECT),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )

        if self.shards is not None and self.parallel not in ("auto", "hybrid"):
            raise ConfigError(
                f'shards is for parallel = "hybrid" or "auto", not for "{self.parallel}"'
            )
        for name in self.log_to:
            if name not in TRACKERS:
                raise ConfigError(f"log_to: {name!r} is not one of {', '.join(TRACKERS)}")
        for kind, name in (("loss", "validation"), ("pass@1", "select_on")):
            if self.select == kind and getattr(self, name) is None:
                raise ConfigError(f'select = "{kind}" needs {name}')

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
