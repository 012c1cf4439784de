"""The training loop: pretraining and finetuning, on one process or under torchrun.

The loss is the weighted mean over the whole step's tokens, however they are split into
micro-batches and processes. Killed at any moment and started again, a run on one process goes on
with the same losses to the bit; the position in the data is the step, and dropout is drawn from
(seed, step, micro-batch), so nothing else needs to be restored. A model of 0.4M parameters trains
at about 16,000 tokens per CPU-second (3 layers of 96, one thread, 6 rows of 160).

    hornbook train recipe.toml
"""

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.errors import ConfigError, HornbookError, InputError, ResumeError, StorageError
from hornbook.manifest import Report, hash_json, read_json
from hornbook.model.config import PhiConfig
from hornbook.model.phi import Phi
from hornbook.train import checkpoint
from hornbook.train.data import Data, Step, open_rows, steps
from hornbook.train.metrics import MetricsLog, read_metrics
from hornbook.train.parallel import World, world
from hornbook.train.schedule import TrainConfig, learning_rate

RESULT = "result.json"
ADJUSTABLE = {"micro_batch_size", "stop_step", "save_every", "keep", "threads", "device"}
ADJUSTABLE |= {"max_skipped"}
"""Options that may change between a run and its continuation."""
MOMENTS = ("exp_avg", "exp_avg_sq")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(HornbookError):  # noqa: N818
    """A signal stopped training; it was saved and goes on where it was when started again."""

    exit_code = 3


class Diverged(HornbookError):  # noqa: N818
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    step: int
    """Steps done."""
    loss: float
    """Mean loss of the last steps (up to 50)."""
    tokens: int
    """Tokens trained on, over all processes."""
    seconds: float
    """Time spent training, over all starts."""
    tokens_per_second: float
    """Of the whole run."""
    skipped: int
    """Steps skipped for a loss or gradient that was not finite."""
    resumed_from: int
    """The step this start went on from; 0 for a fresh one."""
    refused: list[str]
    """Newer checkpoints that were torn, and why."""
    final: Path
    """The model, in the Hugging Face layout."""


def train(
    config: TrainConfig,
    *,
    data: Data,
    out: str | Path,
    model: PhiConfig | str | Path | None = None,
    tokenizer: Any = None,
    resume: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Trains a model.

    Args:
        config: The run's options.
        data: A folder of packed data, several, a mapping of folders to weights, or an object with
            `batch(first, count)` and `samples_per_epoch`.
        out: Gets `metrics.jsonl`, `checkpoints/`, `final/` and, at the end, `result.json`.
        model: A shape for fresh weights, or a folder or Hub name to start from (as
            `config.init_from`, which goes first).
        tokenizer: Saved with every model: anything with `.save(path)` and `.eot_id`.
        resume: Go on from the newest whole checkpoint; else `out` must hold none.
        on_step: Called after every step with its record: step, loss, lr, tokens,
            tokens_per_second, grad_norm, seconds, skipped.

    Returns:
        What it came to. A run that had ended already returns that at once.

    Raises:
        ConfigError: If the options do not fit the model, the data or the processes.
        ResumeError: If `out` holds another run.
        Interrupted: After SIGTERM, SIGINT or SIGUSR1, once everything is saved.
        Diverged: If the loss stays not finite.
        StorageError: If the disk refuses.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror}") from error
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with world(config.device) as here, _signals() as stop:
            return _Run(config, data, out, model, tokenizer, resume, here, stop).go(on_step)
    finally:
        torch.set_num_threads(threads)


class _Run:
    """A run's parts, put together fresh or from a checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        out: Path,
        model: PhiConfig | str | Path | None,
        tokenizer: Any,
        resume: bool,
        here: World,
        stop: threading.Event,
    ) -> None:
        self.config, self.out, self.here, self.stop = config, out, here, stop
        self.tokenizer = tokenizer
        self.rows, data_identity = open_rows(data, config)
        source = config.init_from or model
        if source is None:
            raise ConfigError("model: give a PhiConfig, or a folder to start from")
        fixed = {key: value for key, value in asdict(config).items() if key not in ADJUSTABLE}
        start = asdict(source) if isinstance(source, PhiConfig) else str(source)
        self.identity = {"config": fixed, "model": start, "data": data_identity}
        self.root = out / "checkpoints"
        found, self.refused = checkpoint.newest(self.root)
        if found is not None and not resume:
            raise ResumeError(f"{out}: holds checkpoints; resume, or name another folder")
        if found is not None:
            self._same_run(found)
        self.resumed_from = 0 if found is None else found.step
        self.step = self.resumed_from
        state = {} if found is None else found.state
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.tokens, self.before = state.get("tokens", 0), state.get("seconds", 0.0)
        self.model = self._model(source, found)
        self.optimizer = _optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=config.precision == "fp16")
        if found is not None:
            _load_optimizer(self.optimizer, self.model, found.optimizer())
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
        self.called = here.wrap(self.model)

    def _model(self, source: PhiConfig | str | Path, found: checkpoint.Checkpoint | None) -> Phi:
        config, device = self.config, self.here.device
        if found is not None:
            model = Phi.from_pretrained(found.folder, device=device)
        elif isinstance(source, PhiConfig):
            model = Phi(source, device=device, seed=config.seed)
        else:
            model = Phi.from_pretrained(source, device=device)
        shape = model.config
        if config.sequence_length > shape.max_position_embeddings:
            raise ConfigError(
                f"sequence_length {config.sequence_length} is past the model's context of "
                f"{shape.max_position_embeddings}"
            )
        shape = replace(shape, attention_dropout=config.dropout, resid_pdrop=config.dropout)
        if shape != model.config:
            wanted = Phi(shape, device="meta")
            wanted.load_state_dict(model.state_dict(), assign=True)
            model = wanted.requires_grad_(True)
        return model.train()

    def _same_run(self, found: checkpoint.Checkpoint) -> None:
        before = found.state.get("identity", {})
        for part in ("config", "model", "data"):
            old, new = before.get(part), _plain(self.identity[part])
            if old == new:
                continue
            which = part
            if isinstance(old, dict) and isinstance(new, dict):
                keys = sorted(
                    key for key in old.keys() | new.keys() if old.get(key) != new.get(key)
                )
                which = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
            raise ResumeError(
                f"{found.folder}: belongs to a run with other settings ({which}); "
                "name another folder, or remove this one"
            )

    def go(self, on_step: Callable[[dict[str, Any]], None] | None) -> TrainResult:
        """The loop."""
        done = self._finished()
        if done is not None:
            return done
        config, here = self.config, self.here
        if self.step > config.last_step:
            raise ResumeError(f"{self.out}: is at step {self.step}, past {config.last_step}")
        self.started = time.perf_counter()
        log = MetricsLog(self.out / "metrics.jsonl", step=self.step) if here.rank == 0 else None
        with log or nullcontext():
            feed = steps(
                self.rows, config, here, first=self.step, vocab_size=self.model.config.vocab_size
            )
            for rows in feed:
                record = self._one(rows)
                if log is not None:
                    log.write(record)
                    if on_step is not None:
                        on_step(record)
                if self.in_a_row >= config.max_skipped:
                    self._give_up()
                stopped = self.interrupted and self.step < config.last_step
                if stopped or self.step % config.save_every == 0 or self.step == config.last_step:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopped:
                    raise Interrupted(
                        f"{self.out}: stopped by a signal after step {self.step:,} of "
                        f"{config.last_step:,} and saved; run it again to go on"
                    )
        return self._finish()

    def _one(self, rows: Step) -> dict[str, Any]:
        """One optimizer step."""
        config, here, began = self.config, self.here, time.perf_counter()
        device = here.device
        weight = rows.weight
        if here.size > 1:
            weight = float(here.add_up(torch.tensor([weight], dtype=torch.float64, device=device)))
        # DistributedDataParallel averages; the sum over processes is wanted.
        scale = here.size / weight if weight > 0 else 0.0
        total = torch.zeros((), device=device)
        for micro in rows.micro:
            if config.dropout > 0:
                torch.manual_seed(_key(config.seed, self.step, micro.number))
            with (
                here.quiet(self.called, last=micro is rows.micro[-1]),
                _autocast(config, device),
            ):
                loss = self.called(
                    micro.input_ids,
                    cu_seqlens=micro.cu_seqlens,
                    labels=micro.labels,
                    weights=micro.weights,
                    reduction="sum",
                )
                loss = loss * scale
                self.scaler.scale(loss).backward()
            total += loss.detach()
        summary = torch.stack((total / here.size, total.new_tensor(float(self.stop.is_set()))))
        loss_value, stopping = here.add_up(summary).tolist()
        self.interrupted = stopping > 0
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or float("inf"))
        grad_norm = float(norm)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        finite = _finite(loss_value) and _finite(grad_norm)
        if finite:
            self.scaler.step(self.optimizer)
        if finite or not self.scaler.is_enabled():
            self.in_a_row = 0 if finite else self.in_a_row + 1
        elif not _finite(loss_value):  # an overflow of fp16 gradients alone is the scaler's affair
            self.in_a_row += 1
        self.skipped += not finite
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = config.batch_size * config.sequence_length
        self.tokens += tokens
        seconds = time.perf_counter() - began
        return {
            "step": self.step,
            "loss": loss_value,
            "lr": rate,
            "tokens": self.tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "grad_norm": grad_norm,
            "seconds": round(self._seconds(), 4),
            "skipped": self.skipped,
        }

    def _seconds(self) -> float:
        return float(self.before + time.perf_counter() - self.started)

    def _give_up(self) -> None:
        last = self.step * self.config.batch_size
        first = last - self.in_a_row * self.config.batch_size
        raise Diverged(
            f"{self.out}: loss or gradient not finite in {self.in_a_row} steps in a row, up to "
            f"step {self.step:,} (samples {first:,} to {last - 1:,}); the last checkpoint is kept. "
            "Try a lower learning_rate, a longer warm-up or bf16"
        )

    def _save(self) -> None:
        if self.here.rank == 0:
            state = {
                "identity": self.identity,
                "samples": self.step * self.config.batch_size,
                "tokens": self.tokens,
                "seconds": self._seconds(),
                "skipped": self.skipped,
                "in_a_row": self.in_a_row,
                "scaler": self.scaler.state_dict(),
            }
            checkpoint.save(
                self.root,
                step=self.step,
                model=self.model,
                optimizer=_optimizer_tensors(self.optimizer, self.model),
                state=state,
                keep=self.config.keep,
                tokenizer=self.tokenizer,
            )
        self.here.wait()

    def _finish(self) -> TrainResult:
        seconds = self._seconds()
        final = self.out / "final"
        result = TrainResult(
            step=self.step,
            loss=_last_loss(self.out),
            tokens=self.tokens,
            seconds=seconds,
            tokens_per_second=self.tokens / seconds,
            skipped=self.skipped,
            resumed_from=self.resumed_from,
            refused=self.refused,
            final=final,
        )
        if self.here.rank == 0:
            self.model.save_pretrained(final, tokenizer=self.tokenizer)
            whole = {"identity": hash_json(self.identity), **asdict(result), "final": "final"}
            Report(whole).save(self.out / RESULT)
        self.here.wait()
        return result

    def _finished(self) -> TrainResult | None:
        """The result, if this very run had ended already."""
        if not (self.out / RESULT).is_file() or self.step < self.config.last_step:
            return None
        data = read_json(self.out / RESULT)
        if data.pop("identity") != hash_json(self.identity) or data["step"] != self.step:
            return None
        data["final"] = self.out / "final"
        return TrainResult(**data)


def _optimizer(model: Phi, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, one kernel for all parameters; decays matrices except the embedding."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and "embed_tokens" not in name
        (decay if matrix else rest).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: Phi) -> dict[str, Tensor]:
    made = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for kind in MOMENTS:
            made[f"{kind}/{name}"] = state.get(kind, torch.zeros_like(parameter))
        made[f"step/{name}"] = state.get("step", torch.zeros(())).clone()
    return made


def _load_optimizer(
    optimizer: torch.optim.Optimizer, model: Phi, tensors: dict[str, Tensor]
) -> None:
    for name, parameter in model.named_parameters():
        try:
            state = {kind: tensors[f"{kind}/{name}"].to(parameter.device) for kind in MOMENTS}
            state["step"] = tensors[f"step/{name}"].to(parameter.device)
        except KeyError as error:
            raise InputError(f"{checkpoint.OPTIMIZER}: lacks {error}") from error
        if state["exp_avg"].shape != parameter.shape:
            raise InputError(f"{checkpoint.OPTIMIZER}: {name} has another shape than the model's")
        optimizer.state[parameter] = state


def _autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[config.precision])


def _key(seed: int, step: int, micro: int) -> int:
    digest = hashlib.blake2b(f"dropout {seed} {step} {micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _last_loss(out: Path) -> float:
    losses = [record["loss"] for record in read_metrics(out / "metrics.jsonl")[-50:]]
    losses = [loss for loss in losses if _finite(loss)]
    return sum(losses) / len(losses) if losses else float("nan")


def _plain(value: Any) -> Any:
    """What JSON makes of a value: tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and SIGUSR1 set; a second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    names = [name for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
