"""What the loop promises about losses, gradients and its outputs, on one process."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hornbook.errors import ConfigError, ResumeError
from hornbook.model import Phi, PhiConfig
from hornbook.train import Diverged, TrainConfig, train
from hornbook.train.metrics import MetricsLog, read_metrics
from hornbook.train.plan import USABLE, memory_bytes

LENGTH, VOCABULARY = 24, 32
SHAPE = PhiConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)
BASE = TrainConfig(
    steps=6,
    batch_size=8,
    sequence_length=LENGTH,
    learning_rate=1e-2,
    warmup_steps=2,
    threads=1,
)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


def run(out: Path, rows: Any, model: Any = SHAPE, **changes: Any) -> list[float]:
    train(replace(BASE, **changes), data=rows, out=out, model=model)
    return losses(out)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(Phi.from_pretrained(out / "final").state_dict())


class OneBatch:
    identity = "one"
    samples_per_epoch = 8

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def batch(self, first: int, count: int) -> dict[str, Any]:
        assert first % 8 == 0
        whole = self.rows.batch(0, 8)
        return {
            key: (
                value * (count // 8) if isinstance(value, list) else np.tile(value, (count // 8, 1))
            )
            for key, value in whole.items()
        }


def test_one_batch_is_learnt_by_heart(tmp_path: Path, rows: Any) -> None:
    got = run(tmp_path, OneBatch(rows), steps=150, warmup_steps=5, weight_decay=0.0)
    assert got[0] > 3.0
    assert got[-1] < 0.05


def test_losses_are_those_of_a_plain_loop(tmp_path: Path, rows: Any) -> None:
    """Loss, clipping, AdamW with its two groups, and the schedule, written out."""
    got = run(tmp_path, rows, prompt_loss_weight=0.25, weight_decay=0.5)
    model = Phi(SHAPE, seed=0)
    parameters = dict(model.named_parameters())
    decayed = {n for n, p in parameters.items() if p.dim() == 2 and "embed" not in n}
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in parameters.items()}
    for step, rate in enumerate([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]):
        batch = rows.batch(8 * step, 8)
        labels = torch.from_numpy(batch["labels"])
        factor = torch.where(torch.from_numpy(batch["prompt_mask"]), 0.25, 1.0) * (labels != -100)
        each = F.cross_entropy(
            model(torch.from_numpy(batch["input_ids"])).flatten(0, 1),
            labels.flatten(),
            reduction="none",
        )
        loss = (each * factor.flatten()).sum() / factor.sum()
        assert got[step] == pytest.approx(float(loss.detach()), rel=1e-4)
        grads = dict(
            zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True)
        )
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        with torch.no_grad():
            for name, p in parameters.items():
                g = grads[name] * (1.0 / norm).clamp(max=1.0)
                if name in decayed:
                    p.mul_(1 - rate * 0.5)
                m, v = moments[name]
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.05)
                unbiased = v / (1 - 0.95 ** (step + 1))
                p.sub_(rate * m / (1 - 0.9 ** (step + 1)) / (unbiased.sqrt() + 1e-8))


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_accumulation_equals_the_large_batch(tmp_path: Path, rows: Any, weight: float) -> None:
    whole = run(tmp_path / "a", rows, prompt_loss_weight=weight)
    parts = run(tmp_path / "b", rows, prompt_loss_weight=weight, micro_batch_size=2)
    assert parts == pytest.approx(whole, abs=2e-6)


def test_prompts_without_weight_do_not_matter(tmp_path: Path, rows: Any) -> None:
    class Unlabelled:
        identity = "unlabelled"
        samples_per_epoch = 48

        def batch(self, first: int, count: int) -> dict[str, Any]:
            batch: dict[str, Any] = rows.batch(first, count)
            batch["labels"][batch["prompt_mask"]] = -100
            return batch

    zero = run(tmp_path / "a", rows, prompt_loss_weight=0.0)
    assert zero == pytest.approx(run(tmp_path / "b", Unlabelled()), abs=2e-6)
    assert zero != pytest.approx(run(tmp_path / "c", rows), abs=1e-3)


def test_document_masks_equal_separate_documents(tmp_path: Path, rows: Any) -> None:
    got = run(tmp_path, rows, steps=3, document_mask=True)
    batch = rows.batch(0, 8)
    total = count = 0.0
    model = Phi(SHAPE, seed=0)
    for row, (_, cut, _) in enumerate(batch["cu_seqlens"]):
        for part in (slice(0, cut), slice(cut, LENGTH)):
            ids = torch.from_numpy(batch["input_ids"][row : row + 1, part])
            labels = torch.from_numpy(batch["labels"][row : row + 1, part])
            total += float(model(ids, labels=labels, reduction="sum").detach())
            count += float((labels != -100).sum())
    assert got[0] == pytest.approx(total / count, abs=2e-6)
    assert got[0] != pytest.approx(run(tmp_path / "b", rows, steps=3)[0], abs=1e-6)


def test_same_seed_same_bytes(tmp_path: Path, rows: Any) -> None:
    a = run(tmp_path / "a", rows, dropout=0.1)
    b = run(tmp_path / "b", rows, dropout=0.1)
    assert a == b
    assert (tmp_path / "a/final/model.safetensors").read_bytes() == (
        tmp_path / "b/final/model.safetensors"
    ).read_bytes()
    assert run(tmp_path / "c", rows, dropout=0.1, seed=1) != a


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_fp32(tmp_path: Path, rows: Any, precision: str) -> None:
    full = run(tmp_path / "a", rows, steps=40)
    low = run(tmp_path / "b", rows, steps=40, precision=precision)
    # The fp16 scaler starts too high and skips steps until it fits.
    assert np.mean(low[-8:]) == pytest.approx(np.mean(full[-8:]), abs=0.5)
    assert low[-1] < low[0] - 0.3
    assert all(t.dtype == torch.float32 for t in weights(tmp_path / "b").values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputing_changes_no_bit(tmp_path: Path, rows: Any, dropout: float) -> None:
    options = {"dropout": dropout, "micro_batch_size": 4, "document_mask": True}
    plain = run(tmp_path / "a", rows, recompute=False, **options)
    assert run(tmp_path / "b", rows, recompute=True, **options) == plain


def test_positions_that_start_again(tmp_path: Path, rows: Any) -> None:
    """Behind a mask they change nothing but rounding; without one they change what is learnt."""
    masked = run(tmp_path / "a", rows, document_mask=True)
    both = run(tmp_path / "b", rows, document_mask=True, reset_positions=True)
    assert both == pytest.approx(masked, abs=2e-6)
    reset = run(tmp_path / "c", rows, reset_positions=True)
    assert reset != pytest.approx(run(tmp_path / "d", rows), abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own parts
def test_compiled_blocks_follow(tmp_path: Path, rows: Any) -> None:
    plain = run(tmp_path / "a", rows)
    compiled = run(tmp_path / "b", rows, compile=True)
    assert compiled == pytest.approx(plain, abs=1e-5)
    both = run(tmp_path / "c", rows, compile=True, recompute=True, micro_batch_size=4)
    assert both == pytest.approx(plain, abs=1e-5)


def test_what_cannot_fit_is_refused_before_it_starts(tmp_path: Path, rows: Any) -> None:
    one = replace(BASE, micro_batch_size=1)
    small = memory_bytes(SHAPE, one, processes=1, recompute=True, gpu=False)
    just = small["total"] / USABLE * 1.01 / 2**30
    with pytest.raises(ConfigError, match=r"does not fit.*micro_batch_size = 1"):
        run(tmp_path, rows, memory_gb=just)
    run(tmp_path, rows, memory_gb=just, micro_batch_size=1)


def test_outputs(tmp_path: Path, rows: Any) -> None:
    seen: list[dict[str, Any]] = []
    result = train(BASE, data=rows, out=tmp_path, model=SHAPE, on_step=seen.append)
    assert [record["step"] for record in seen] == [1, 2, 3, 4, 5, 6]
    assert seen == read_metrics(tmp_path / "metrics.jsonl")
    assert seen[-1]["tokens"] == result.tokens == 6 * 8 * LENGTH
    assert result.step == 6
    assert result.loss == pytest.approx(np.mean(losses(tmp_path)))
    assert result.final == tmp_path / "final"
    seen.clear()
    again = train(BASE, data=rows, out=tmp_path, model=SHAPE, on_step=seen.append)
    assert again == result
    assert not seen


def test_finetuning_starts_from_weights(tmp_path: Path, rows: Any) -> None:
    run(tmp_path / "a", rows, steps=30)
    tuned = run(tmp_path / "b", rows, tmp_path / "a" / "final", learning_rate=1e-4)
    named = run(tmp_path / "c", rows, None, learning_rate=1e-4, init_from=str(tmp_path / "a/final"))
    assert tuned == named
    assert tuned[0] < losses(tmp_path / "a")[0] - 0.5


def test_loss_that_is_not_finite_is_skipped_then_stops(tmp_path: Path, rows: Any) -> None:
    Phi(SHAPE).save_pretrained(tmp_path / "good")
    broken = Phi(SHAPE)
    with torch.no_grad():
        broken.lm_head.bias[3] = float("nan")
    broken.save_pretrained(tmp_path / "bad")
    with pytest.raises(Diverged, match=r"3 steps in a row.*samples 0 to 23"):
        run(tmp_path / "out", rows, tmp_path / "bad", max_skipped=3)
    record = read_metrics(tmp_path / "out/metrics.jsonl")[-1]
    assert record["skipped"] == 3


def test_what_does_not_fit_is_refused(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(ConfigError, match="context"):
        run(tmp_path / "a", rows, sequence_length=LENGTH + 1)
    with pytest.raises(ConfigError, match="sequence_length"):
        run(tmp_path / "b", rows, sequence_length=LENGTH - 1)
    with pytest.raises(ConfigError, match="vocabulary"):
        run(tmp_path / "c", rows, replace(SHAPE, vocab_size=VOCABULARY - 1))
    with pytest.raises(ConfigError, match="model"):
        run(tmp_path / "d", rows, None)
    run(tmp_path / "e", rows)
    with pytest.raises(ResumeError, match=r"learning_rate 0\.01 -> 0\.02"):
        run(tmp_path / "e", rows, learning_rate=0.02)
    with pytest.raises(ResumeError, match="resume"):
        train(BASE, data=rows, out=tmp_path / "e", model=SHAPE, resume=False)


def test_the_same_files_by_another_name_are_the_same_run(tmp_path: Path, rows: Any) -> None:
    Phi(SHAPE).save_pretrained(tmp_path / "here")
    Phi(SHAPE, seed=1).save_pretrained(tmp_path / "other")
    run(tmp_path / "out", rows, tmp_path / "here", stop_step=3)
    (tmp_path / "here").rename(tmp_path / "there")
    named = {"model": None, "init_from": str(tmp_path / "there")}
    assert len(run(tmp_path / "out", rows, tmp_path / "there", stop_step=4)) == 4
    run(tmp_path / "out2", rows, stop_step=3, **named)
    (tmp_path / "there").rename(tmp_path / "here")
    run(tmp_path / "out2", rows, **{**named, "init_from": str(tmp_path / "here")})
    with pytest.raises(ResumeError, match=r"model '\w{32}' -> '\w{32}'"):
        run(tmp_path / "out", rows, tmp_path / "other")
    with pytest.raises(ResumeError, match=r"init_from '\w{32}' -> '\w{32}'"):
        run(tmp_path / "out2", rows, **{**named, "init_from": str(tmp_path / "other")})


def test_options_that_change_the_result_cannot_change_in_between(tmp_path: Path, rows: Any) -> None:
    run(tmp_path, rows, dropout=0.1, micro_batch_size=4, stop_step=3)
    with pytest.raises(ResumeError, match=r"dropout 0\.1 -> 0\.2"):
        run(tmp_path, rows, dropout=0.2, micro_batch_size=4)
    # What memory or the disk was too small for may.
    run(tmp_path, rows, dropout=0.1, micro_batch_size=2, save_every=5, keep=1)


def test_rows_are_closed_however_it_ends(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hornbook.train import loop

    closed = []

    def steps(*args: Any, **options: Any) -> Any:
        try:
            yield from real(*args, **options)
        finally:
            closed.append(True)

    real = loop.steps
    monkeypatch.setattr(loop, "steps", steps)

    def fail(record: dict[str, Any]) -> None:
        raise KeyError(record["step"])

    with pytest.raises(KeyError) as caught:
        train(BASE, data=rows, out=tmp_path, model=SHAPE, on_step=fail)
    assert closed, caught.value


def test_a_rewritten_log_is_on_disk_before_it_replaces_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(handle))
    MetricsLog(tmp_path / "metrics.jsonl", step=0).close()
    assert synced
