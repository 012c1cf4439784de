"""The training loop: pretraining and finetuning, on one process or under torchrun.

The loss is the weighted mean over the whole step's tokens, however they are split into
micro-batches and processes. Killed at any moment and started again on as many processes, a run goes
on with the same losses to the bit: the position in the data is the step, and dropout is drawn from
(seed, step, micro-batch of the whole step), never from the process. (On a GPU that needs our
attention, `HORNBOOK_KERNELS=triton`: torch's own backward does not repeat itself.) On another
number of processes the samples are the same; where `micro_batch_size` is set (else it is each
process's share), so is the dropout, and losses are equal but for the order of additions. A model of
0.4M parameters trains at about 16,000 tokens per CPU-second (3 layers of 96, one thread, 6 rows of
160).

    hornbook train demo --data packed/ --out model/
"""

import hashlib
import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.errors import ConfigError, ResumeError, StorageError
from hornbook.files import as_json, hash_json, read_json
from hornbook.manifest import Report
from hornbook.model import hf
from hornbook.model.config import PhiConfig
from hornbook.model.phi import Phi
from hornbook.model.sample import encode_prompts, generate
from hornbook.train import checkpoint
from hornbook.train.data import Data, Step, identity, shares, steps
from hornbook.train.guards import (
    Diverged,
    Events,
    Heartbeat,
    Interrupted,
    Spikes,
    merged,
    signals,
)
from hornbook.train.key import contents, deciding
from hornbook.train.metrics import MetricsLog, last_loss, matrix_ceiling, peak_memory
from hornbook.train.parallel import DTYPES, World, whole, whole_weights, world
from hornbook.train.plan import flops_per_token, make_plan
from hornbook.train.schedule import TrainConfig, learning_rate
from hornbook.train.select import check as check_criterion
from hornbook.train.select import choose
from hornbook.train.trackers import Trackers

RESULT = "result.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
TENSORS = (checkpoint.WEIGHTS, *MOMENTS)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    step: int
    """Steps done."""
    loss: float
    """Mean loss of the last steps (up to 50)."""
    tokens: int
    """Places of the rows trained on, over all processes; with `best_fit` some hold padding."""
    seconds: float
    """Time spent training, over all starts."""
    tokens_per_second: float
    """Of the whole run."""
    skipped: int
    """Steps skipped for a loss or gradient that was not finite."""
    resumed_from: int
    """The step this start went on from; 0 for a fresh one."""
    refused: list[str]
    """Newer checkpoints that were torn or of another shape, and why."""
    selected: int
    """The step whose weights are the final model; see `TrainConfig.select`."""
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
        out: Gets `metrics.jsonl` (every step), `events.jsonl`, `heartbeat.json`, `checkpoints/`,
            `final/` and, at the end, `result.json`. All machines must see it.
        model: A shape for fresh weights, or a folder or Hub name to start from (as
            `config.init_from`, which goes first).
        tokenizer: Saved with every model, and needed for `select = "pass@1"`: anything with
            `.save(path)` and `.eot_id`; with `.encode` and `.decode` too where samples are asked
            for.
        resume: Go on from the newest whole checkpoint; else `out` must hold none.
        on_step: Called after every step in the first process with its record: step, loss, lr,
            tokens, tokens_per_second, grad_norm, seconds, skipped, data_wait_s (how long this
            process waited for its rows), peak_memory_bytes; on a GPU also mfu.

    Returns:
        What it came to. A run that had ended already returns that at once.

    Raises:
        ConfigError: If the options do not fit the model, the data, the memory or the processes.
        InputError: If something named in them is missing, or a prompt cannot be completed.
        ResumeError: If `out` holds another run.
        SandboxError: If `select` is "pass@1" and programs cannot be run safely here.
        Interrupted: After SIGTERM, SIGINT or SIGUSR1, once everything is saved.
        Diverged: If the loss stays not finite.
        StorageError: If the disk refuses.
    """
    out = Path(out)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with world(config.device) as here, signals() as stop:
            run = _Run(config, data, out, model, tokenizer, resume, here, stop)
            try:
                return run.go(on_step)
            finally:
                run.saver.close()
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
        self.config, self.data, self.out, self.here, self.stop = config, data, out, here, stop
        self.tokenizer = tokenizer
        first = here.rank == 0
        source = config.init_from or model
        if source is None:
            raise ConfigError("model: give a PhiConfig, or a folder to start from")
        shares(config, here.size)
        self.shape = self._shape(source)
        if config.sample_every:
            if not hasattr(tokenizer, "encode"):
                raise ConfigError("sample_every: needs a tokenizer")
            encode_prompts(self.shape, tokenizer, config.sample_prompts)
        self.root = out / "checkpoints"
        # The first process looks, for all: another could find a folder half removed.
        found: checkpoint.Checkpoint | None
        self.done: TrainResult | None
        found, self.refused, self.identity, self.done = here.first(
            lambda: self._look(source, resume)
        )
        self.events = Events(out / "events.jsonl" if first else None)
        self.heart = Heartbeat(out / "heartbeat.json" if first else None)
        self.saver = checkpoint.Saver(
            self.root,
            rank=here.rank,
            group=here.background,
            background=config.async_save,
            keep=config.keep,
            keep_every=config.keep_every,
        )
        self.step = self.resumed_from = 0 if found is None else found.step
        state = {} if found is None else found.state
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.tokens, self.before = state.get("tokens", 0), state.get("seconds", 0.0)
        self.updates = state.get("updates", 0)
        self.offenders: list[list[int]] = state.get("offenders", [])
        self.spikes = Spikes(config.spike)
        self.spikes.recent.extend(state.get("recent", []))
        self.plan = here.agree(
            make_plan(
                self.shape,
                config,
                processes=here.size,
                per_machine=here.per_machine,
                memory=here.memory(),
                gpu=here.device.type == "cuda",
                host=here.main_memory(),
            )
        )
        self.model = self._model(source, fresh=found is None)
        self.called = here.place(self.model, self.plan, precision=config.precision)
        self.optimizer = _optimizer(self.model, config, updates=self.updates)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=config.precision == "fp16")
        if found is not None:
            found.load(self._tensors())
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
        for why in self.refused:
            self.events.add("refused", reason=why)

    def _look(
        self, source: PhiConfig | str | Path, resume: bool
    ) -> tuple[checkpoint.Checkpoint | None, list[str], dict[str, Any], TrainResult | None]:
        """What `out` holds, for the first process: where to go on, what was refused, the run's
        identity, and its result if it had ended. Checks what will be needed at the end."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.out}: {error.strerror}") from error
        start = asdict(source) if isinstance(source, PhiConfig) else contents(source)
        fixed = deciding(self.config, resumed=True)
        self.identity = {"config": fixed, "model": start, "data": identity(self.data)}
        found, refused = checkpoint.newest(self.root, checkpoint.shapes(self.shape, TENSORS))
        if found is not None and not resume:
            raise ResumeError(f"{self.out}: holds checkpoints; resume, or name another folder")
        if found is not None:
            self._same_run(found)
        step = 0 if found is None else found.step
        done = self._finished(step)
        if done is None:
            check_criterion(self.config, tokenizer=self.tokenizer)
            checkpoint.put_aside(self.root, after=step)
        return found, refused, self.identity, done

    def _shape(self, source: PhiConfig | str | Path) -> PhiConfig:
        config = self.config
        shape = source if isinstance(source, PhiConfig) else hf.read_config(source)
        if config.sequence_length > shape.max_position_embeddings:
            raise ConfigError(
                f"sequence_length {config.sequence_length} is past the model's context of "
                f"{shape.max_position_embeddings}"
            )
        return replace(shape, attention_dropout=config.dropout, resid_pdrop=config.dropout)

    def _model(self, source: PhiConfig | str | Path, *, fresh: bool) -> Phi:
        """The whole model on CPU; its weights are not drawn where a checkpoint will fill them."""
        if fresh and isinstance(source, PhiConfig):
            return Phi(self.shape, seed=self.config.seed).train()
        model = Phi(self.shape, device="meta")
        if fresh:
            assert not isinstance(source, PhiConfig)
            given = Phi.from_pretrained(source)
            model.load_state_dict(given.state_dict(), assign=True)
        else:
            model.to_empty(device="cpu")
        return model.requires_grad_(True).train()

    def _tensors(self) -> checkpoint.Tensors:
        """All that a checkpoint holds, or this process's pieces of it."""
        named = dict(self.model.named_parameters())
        made = {checkpoint.WEIGHTS: {name: p.detach() for name, p in named.items()}}
        for kind in MOMENTS:
            made[kind] = {name: self.optimizer.state[p][kind] for name, p in named.items()}
        return made

    def _same_run(self, found: checkpoint.Checkpoint) -> None:
        before = found.state.get("identity", {})
        for part in ("config", "model", "data"):
            old, new = before.get(part), as_json(self.identity[part])
            if old == new:
                continue
            which = f"{part} {old!r} -> {new!r}"
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
        config, here = self.config, self.here
        if self.done is not None:
            return self.done
        if self.step > config.last_step:
            raise ResumeError(f"{self.out}: is at step {self.step}, past {config.last_step}")
        self.started = time.perf_counter()
        self._say_start()
        trackers = log = None
        if here.rank == 0:
            shown = as_json(self.identity["config"])
            trackers = Trackers(config.log_to, self.out, shown, step=self.step)
            log = MetricsLog(self.out / "metrics.jsonl", step=self.step)
        feed = steps(self.data, config, here, first=self.step, vocab_size=self.shape.vocab_size)
        try:
            while self.step < config.last_step:
                record = self._one(feed)
                if log is not None and trackers is not None:
                    plain = log.write(record)
                    trackers.log(plain)
                    if on_step is not None:
                        on_step(plain)
                self.heart.beat(self.step)
                if self.in_a_row >= config.max_skipped:
                    self._give_up()
                stopped = self.interrupted and self.step < config.last_step
                if stopped or self.step % config.save_every == 0 or self.step == config.last_step:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopped:
                    self._written()
                    self.events.add("stopped", step=self.step)
                    raise Interrupted(
                        f"{self.out}: stopped by a signal after step {self.step:,} of "
                        f"{config.last_step:,} and saved; run it again to go on"
                    )
                if config.sample_every and self.step % config.sample_every == 0:
                    self._complete_prompts()
            self._written()
        finally:
            feed.close()
            if log is not None:
                log.close()
            if trackers is not None:
                trackers.close()
        return self._finish()

    def _say_start(self) -> None:
        here, config = self.here, self.config
        self.ceiling = None
        if here.device.type == "cuda":
            self.ceiling = matrix_ceiling(here.device, DTYPES[config.precision])
        self.flops = flops_per_token(self.shape, config.sequence_length)
        name = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
        self.events.add(
            "started",
            step=self.step,
            processes=here.size,
            device=name,
            plan=asdict(self.plan),
            micro_batch_size=shares(config, here.size)[1],
            flops_per_token=self.flops,
            matrix_flops_per_second=self.ceiling,
            versions={"torch": torch.__version__, "python": sys.version.split()[0]},
        )

    def _one(self, feed: Any) -> dict[str, Any]:
        """One optimizer step."""
        config, here, began = self.config, self.here, time.perf_counter()
        device = here.device
        rows: Step = next(feed)
        waited = time.perf_counter() - began
        weight = rows.weight
        if here.size > 1:
            weight = float(here.add_up(torch.tensor([weight], dtype=torch.float64, device=device)))
        # Gradients are averaged over processes; the sum is wanted.
        scale = here.size / weight if weight > 0 else 0.0
        losses = []
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
                    positions=micro.positions,
                    labels=micro.labels,
                    weights=micro.weights,
                    reduction="sum",
                )
                loss = loss * scale
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum()
        summary = torch.stack((total / here.size, total.new_tensor(float(self.stop.is_set()))))
        loss_value, stopping = here.add_up(summary).tolist()
        self.interrupted = stopping > 0
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        grad_norm = float(whole(norm))
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if math.isfinite(loss_value) and math.isfinite(grad_norm):
            self.scaler.step(self.optimizer)
            self.updates += 1
            self.in_a_row, self.offenders = 0, []
            self._watch(loss_value)
        else:
            self._skip(rows, losses, loss_value, grad_norm)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = config.batch_size * config.sequence_length
        self.tokens += tokens
        per_second = tokens / (time.perf_counter() - began)
        record = {
            "step": self.step,
            "loss": loss_value,
            "lr": rate,
            "tokens": self.tokens,
            "tokens_per_second": round(per_second, 1),
            "grad_norm": grad_norm,
            "seconds": round(self._seconds(), 4),
            "skipped": self.skipped,
            "data_wait_s": round(waited, 6),
            "peak_memory_bytes": peak_memory(device),
        }
        if self.ceiling is not None:
            record["mfu"] = round(per_second / here.size * self.flops / self.ceiling, 4)
        return record

    def _watch(self, loss: float) -> None:
        score = self.spikes.add(loss)
        if score is not None:
            first = self.step * self.config.batch_size
            self.events.add(
                "spike",
                step=self.step + 1,
                loss=loss,
                deviations=round(score, 2),
                samples=[first, first + self.config.batch_size - 1],
            )

    def _skip(self, rows: Step, losses: list[Tensor], loss: float, norm: float) -> None:
        """Leaves the weights as they are, and notes which samples it was."""
        mine = [
            [micro.samples.start, micro.samples.stop - 1]
            for micro, value in zip(rows.micro, losses, strict=True)
            if not math.isfinite(float(value))
        ]
        bad = [span for spans in self.here.gather(mine) for span in spans]
        if not bad:  # the gradient alone
            first = self.step * self.config.batch_size
            bad = [[first, first + self.config.batch_size - 1]]
        self.offenders = merged(self.offenders + bad)
        self.skipped += 1
        # An overflow of fp16 gradients alone is the scaler's affair, unless it gets nowhere.
        scaled = self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() >= 1
        self.in_a_row += not scaled
        self.events.add(
            "skipped",
            step=self.step + 1,
            loss=str(loss),
            grad_norm=str(norm),
            samples=merged(bad),
            loss_scale=self.scaler.get_scale() if self.scaler.is_enabled() else None,
        )

    def _seconds(self) -> float:
        return float(self.before + time.perf_counter() - self.started)

    def _give_up(self) -> None:
        self._written()
        kept = checkpoint.found(self.root)
        spans = ", ".join(f"{first:,} to {last:,}" for first, last in self.offenders)
        raise Diverged(
            f"{self.out}: loss or gradient not finite in {self.in_a_row} steps in a row, up to "
            f"step {self.step:,} (samples {spans}); the last good checkpoint is "
            f"{kept[-1] if kept else 'none yet'}. Try a lower learning_rate, a longer warm-up or "
            "bf16"
        )

    def _complete_prompts(self) -> None:
        """Completes prompts with the weights of now, in the first process."""
        weights = whole_weights(self.model)
        if self.here.rank == 0:
            # Another module with the same weights: one that is neither compiled nor in pieces.
            plain = Phi(self.shape, device="meta")
            placed = {name: tensor.to(self.here.device) for name, tensor in weights.items()}
            plain.load_state_dict(placed, assign=True)
            prompts, config = self.config.sample_prompts, self.config
            texts = generate(plain, self.tokenizer, prompts, max_new_tokens=config.sample_tokens)
            log = MetricsLog(self.out / "samples.jsonl", step=self.step - 1)
            for prompt, text in zip(prompts, texts, strict=True):
                log.write({"step": self.step, "prompt": prompt, "completion": text})
            log.close()
        self.here.wait()

    def _written(self) -> None:
        """Returns when the last checkpoint is whole; what failed in one process fails in all."""
        failed = None
        try:
            self.saver.wait()
        except StorageError as error:
            failed = error
        for one in self.here.gather(failed):
            if one is not None:
                raise one

    def _save(self) -> None:
        self._written()
        state = {
            "identity": self.identity,
            "samples": self.step * self.config.batch_size,
            "updates": self.updates,
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "offenders": self.offenders,
            "recent": list(self.spikes.recent),
            "scaler": self.scaler.state_dict(),
            "learning_rate": learning_rate(self.config, self.step),
            "processes": self.here.size,
        }
        files = {"config": self.shape, "tokenizer": self.tokenizer}
        self.saver.save(self.step, self._tensors(), state, files)

    def _finish(self) -> TrainResult:
        seconds = self._seconds()
        final = self.out / "final"
        try:
            selected = self.here.first(lambda: choose(self.config, self.out, final, stop=self.stop))
        except Interrupted:
            self.events.add("stopped", step=self.step)
            raise
        result = TrainResult(
            step=self.step,
            loss=last_loss(self.out / "metrics.jsonl"),
            tokens=self.tokens,
            seconds=seconds,
            tokens_per_second=self.tokens / seconds,
            skipped=self.skipped,
            resumed_from=self.resumed_from,
            refused=self.refused,
            selected=selected,
            final=final,
        )
        if self.here.rank == 0:
            kept = {**asdict(result), "final": "final"}
            Report({"identity": hash_json(self.identity), **kept}).save(self.out / RESULT)
        self.events.add("finished", step=self.step, selected=selected)
        self.here.wait()
        return self.here.agree(result)  # type: ignore[no-any-return]

    def _finished(self, step: int) -> TrainResult | None:
        """The result, if this very run had ended already, at that step."""
        if not (self.out / RESULT).is_file() or step < self.config.last_step:
            return None
        data = read_json(self.out / RESULT)
        if data.pop("identity") != hash_json(self.identity) or data["step"] != step:
            return None
        data["final"] = self.out / "final"
        # Else what was lost is made of the last checkpoint again.
        return TrainResult(**data) if any(data["final"].glob("*.safetensors")) else None


def _optimizer(model: Phi, config: TrainConfig, *, updates: int) -> torch.optim.AdamW:
    """AdamW, one kernel for all parameters; decays matrices except the embedding.

    Its moments are made here, not at the first step: a checkpoint fills them in place.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and "embed_tokens" not in name
        (decay if matrix else rest).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    for parameter in model.parameters():
        count = torch.tensor(float(updates), dtype=torch.float32, device=parameter.device)
        moments = {kind: torch.zeros_like(parameter).detach() for kind in MOMENTS}
        optimizer.state[parameter] = {"step": count, **moments}
    return optimizer


def _autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[config.precision])


def _key(seed: int, step: int, micro: int) -> int:
    digest = hashlib.blake2b(f"dropout {seed} {step} {micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
