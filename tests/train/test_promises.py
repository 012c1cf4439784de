"""Small promises of training: guards that count, keys of dropout and order, what is on disk."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hornbook as hb
from hornbook.errors import ConfigError, InputError, StorageError
from hornbook.model import Phi, PhiConfig
from hornbook.train import TrainConfig, checkpoint, loop, select, stage, train
from hornbook.train.data import identity, steps
from hornbook.train.guards import Events, signals
from hornbook.train.metrics import read_metrics
from hornbook.train.parallel import World
from hornbook.train.plan import memory_bytes

LENGTH, VOCABULARY = 24, 32
SHAPE = PhiConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)
BASE = TrainConfig(
    steps=6, batch_size=8, micro_batch_size=2, sequence_length=LENGTH, learning_rate=1e-2, threads=1
)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


def test_what_decays_and_eps() -> None:
    model = Phi(SHAPE, seed=0)
    made = loop._optimizer(model, replace(BASE, weight_decay=0.5, eps=1e-3), updates=3)
    decay = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        free = p.dim() < 2 or "embed_tokens" in name
        assert decay[id(p)] == (0.0 if free else 0.5), name
        assert made.state[p]["step"] == 3
    assert {group["eps"] for group in made.param_groups} == {1e-3}


def test_fp16_goes_on_with_its_scale(tmp_path: Path, rows: Any) -> None:
    config = replace(BASE, steps=8, precision="fp16", grad_clip=0.0)
    train(config, data=rows, out=tmp_path / "whole", model=SHAPE)
    train(replace(config, stop_step=5), data=rows, out=tmp_path / "two", model=SHAPE)
    train(config, data=rows, out=tmp_path / "two", model=SHAPE)
    whole, two = (
        checkpoint.check(tmp_path / name / "checkpoints" / "step-00000008").state
        for name in ("whole", "two")
    )
    assert whole["scaler"]["_growth_tracker"] > 3
    assert two["scaler"] == whole["scaler"]


def test_spikes_are_seen_right_after_a_stop(tmp_path: Path, rows: Any) -> None:
    from hornbook.train.guards import Spikes

    train(replace(BASE, stop_step=5), data=rows, out=tmp_path, model=SHAPE)
    made: list[Spikes] = []

    class Kept(Spikes):
        def __init__(self, threshold: float) -> None:
            super().__init__(threshold)
            made.append(self)

    old, loop.Spikes = loop.Spikes, Kept  # type: ignore[misc]
    try:
        train(BASE, data=rows, out=tmp_path, model=SHAPE)
    finally:
        loop.Spikes = old  # type: ignore[misc]
    assert list(made[0].recent) == losses(tmp_path)


def test_dropout_is_drawn_anew_for_seed_step_and_micro_batch(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[int] = []
    real = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: keys.append(seed) or real(seed))
    Phi(SHAPE, seed=0).save_pretrained(tmp_path / "start")
    for seed in (0, 1):
        train(
            replace(BASE, dropout=0.1, seed=seed, steps=3),
            data=rows,
            out=tmp_path / str(seed),
            model=tmp_path / "start",
        )
    assert len(keys) == len(set(keys)) == 2 * 3 * 4
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_a_clip_of_0_leaves_the_gradient(tmp_path: Path, rows: Any) -> None:
    for name, clip in (("none", 0.0), ("far", 1e9)):
        train(replace(BASE, grad_clip=clip), data=rows, out=tmp_path / name, model=SHAPE)
    assert losses(tmp_path / "none") == losses(tmp_path / "far")


def test_another_seed_is_another_model(tmp_path: Path, rows: Any) -> None:
    for seed in (0, 1):
        config = replace(BASE, seed=seed, steps=1)
        train(config, data=rows, out=tmp_path / str(seed), model=SHAPE)
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_threads_are_put_back(tmp_path: Path, rows: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(replace(BASE, steps=1), data=rows, out=tmp_path, model=SHAPE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_log_is_on_disk_before_a_checkpoint(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_save = loop.MetricsLog.sync, checkpoint.Saver.save
    monkeypatch.setattr(loop.MetricsLog, "sync", lambda log: order.append("sync") or real_sync(log))
    monkeypatch.setattr(
        checkpoint.Saver, "save", lambda *a, **k: order.append("save") or real_save(*a, **k)
    )
    train(replace(BASE, save_every=3), data=rows, out=tmp_path, model=SHAPE)
    assert order == ["sync", "save"] * 2


def test_saving_may_be_waited_for(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = checkpoint.Saver.__init__

    def init(saver: Any, *a: Any, **k: Any) -> None:
        asked.append(k["background"])
        real(saver, *a, **k)

    monkeypatch.setattr(checkpoint.Saver, "__init__", init)
    train(replace(BASE, steps=1, async_save=False), data=rows, out=tmp_path, model=SHAPE)
    assert asked == [False]


def test_fp16_that_overflows_at_a_scale_below_1_counts(tmp_path: Path) -> None:
    """`_skip` alone: the scaler gets nowhere."""

    class Scaler:
        def is_enabled(self) -> bool:
            return True

        def get_scale(self) -> float:
            return 0.5

    run = object.__new__(loop._Run)
    run.config, run.scaler, run.step, run.here = (
        BASE,
        Scaler(),
        0,
        World(  # type: ignore[assignment]
            rank=0, size=1, device=torch.device("cpu")
        ),
    )
    run.offenders, run.skipped, run.in_a_row, run.events = [], 0, 0, Events(None)
    run._skip(loop.Step(micro=[], weight=1.0), [], 1.0, math.inf)
    assert run.in_a_row == 1


def _fsynced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        seen.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_a_checkpoint_and_its_name_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rename, sync = Path.rename, checkpoint._sync_folder
    monkeypatch.setattr(
        checkpoint, "_sync_folder", lambda f: order.append(f"sync {f.name}") or sync(f)
    )
    monkeypatch.setattr(
        Path, "rename", lambda a, b: order.append(f"rename {Path(b).name}") or rename(a, b)
    )
    saver = checkpoint.Saver(tmp_path, background=False)
    saver.save(1, {"model": {"w": torch.ones(3)}}, {}, {"config": SHAPE, "tokenizer": None})
    saver.close()
    at = order.index("rename step-00000001")
    assert "sync .step-00000001.tmp" in order[:at]
    assert order[at + 1] == f"sync {tmp_path.name}"


def test_what_is_refused_twice_is_put_aside_twice(tmp_path: Path, rows: Any) -> None:
    """The step is reached again after its first checkpoint was refused, and is torn once more."""
    root = tmp_path / "checkpoints"
    config = replace(BASE, save_every=3)
    train(config, data=rows, out=tmp_path, model=SHAPE)
    for _ in range(2):
        (root / "step-00000006" / "__0_0.distcp").write_bytes(b"torn")
        assert train(config, data=rows, out=tmp_path, model=SHAPE).resumed_from == 3
    assert checkpoint.check(root / "step-00000006").step == 6


def test_pieces_that_another_process_wrote_elsewhere_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.FileSystemReader.read_metadata

    def lost(reader: Any, *a: Any, **k: Any) -> Any:
        for file in Path(reader.path).glob("*.distcp"):
            file.unlink()
        return real(reader, *a, **k)

    monkeypatch.setattr(checkpoint.FileSystemReader, "read_metadata", lost)
    saver = checkpoint.Saver(tmp_path, background=False)
    files = {"config": SHAPE, "tokenizer": None}
    with pytest.raises(StorageError, match=r"lacks __0_0\.distcp"):
        saver.save(1, {"model": {"w": torch.ones(3)}}, {}, files)
    saver.close()
    assert checkpoint.newest(tmp_path)[0] is None


PACKED_SHAPE = replace(SHAPE, vocab_size=260, max_position_embeddings=64)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 3 to 40 tokens, a third of each prompt."""
    from hornbook.packing import pack_tokens

    root = tmp_path_factory.mktemp("prompted")
    tok = hb.Tokenizer.train(["abc def " * 20], vocab_size=260, special_tokens=["<|endoftext|>"])
    tok.save(root / "tokenizer.json")
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 40, 50)
    ids = draw.integers(1, 250, lengths.sum()).astype(np.uint16)
    batch = (ids, np.concatenate([[0], lengths.cumsum()]).astype(np.uint64), lengths // 3)
    pack_tokens([batch], root / "p", tokenizer=root / "tokenizer.json", identity="t", prompts=True)
    return root / "p"


@pytest.mark.parametrize(("mask", "weight"), [(True, 1.0), (False, 0.0)])
def test_validation_loss_is_masked_and_weighted_as_training_is(
    tmp_path: Path, prompted: Path, mask: bool, weight: float
) -> None:
    Phi(PACKED_SHAPE, seed=0).save_pretrained(tmp_path / "model")
    config = TrainConfig(
        steps=3,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=1e-2,
        sequence_length=LENGTH,
        document_mask=mask,
        prompt_loss_weight=weight,
        select="loss",
        validation=str(prompted),
        threads=1,
    )
    got = select.validation_loss(config, tmp_path / "model")
    rows = hb.PackedDataset(prompted, sequence_length=LENGTH, seed=0)
    batch = rows.batch(0, rows.samples_per_epoch)
    factor = torch.where(torch.from_numpy(batch["prompt_mask"]), weight, 1.0)
    expected = Phi.from_pretrained(tmp_path / "model")(
        torch.from_numpy(batch["input_ids"]),
        cu_seqlens=batch["cu_seqlens"] if mask else None,
        labels=torch.from_numpy(batch["labels"]),
        weights=factor,
    )
    assert got == pytest.approx(float(expected.detach()), rel=1e-5)


def test_validation_ids_past_the_vocabulary_are_refused(tmp_path: Path, prompted: Path) -> None:
    Phi(replace(PACKED_SHAPE, vocab_size=100), seed=0).save_pretrained(tmp_path / "model")
    config = replace(BASE, select="loss", validation=str(prompted))
    with pytest.raises(InputError, match="vocabulary is 100"):
        select.validation_loss(config, tmp_path / "model")


def test_nothing_old_stays_in_a_model_that_is_chosen_again(
    tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    data, held_out = packed
    config = TrainConfig(
        steps=4,
        batch_size=8,
        sequence_length=LENGTH,
        learning_rate=3e-2,
        threads=1,
        save_every=2,
        keep=0,
        select="loss",
        validation=str(held_out),
    )
    (tmp_path / "final").mkdir(parents=True)
    (tmp_path / "final" / "stale.safetensors").write_text("of another run")
    train(config, data=data, out=tmp_path, model=PACKED_SHAPE)
    assert not (tmp_path / "final" / "stale.safetensors").exists()


def test_a_label_past_the_vocabulary_is_refused(rows: Any) -> None:
    class Odd:
        samples_per_epoch = 48

        def batch(self, first: int, count: int) -> dict[str, Any]:
            made: dict[str, Any] = rows.batch(first, count)
            made["labels"][0, 5] = VOCABULARY
            return made

    world = World(rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="vocabulary is 32"):
        next(steps(Odd(), BASE, world, first=0, vocab_size=VOCABULARY))


def test_another_mixture_is_other_data(prompted: Path, packed: tuple[Path, Path]) -> None:
    a, b = map(str, packed)
    assert identity({a: 1.0, b: 1.0}) != identity({a: 1.0, b: 9.0})


def test_the_order_of_packed_data_follows_the_seed(prompted: Path) -> None:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    first = []
    for seed in (0, 1):
        config = replace(BASE, seed=seed)
        step = next(steps(prompted, config, world, first=0, vocab_size=260))
        first.append(torch.cat([part.input_ids for part in step.micro]))
    assert not torch.equal(*first)


def test_events_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _fsynced(monkeypatch)
    Events(tmp_path / "events.jsonl").add("started")
    assert seen == [str(tmp_path / "events.jsonl")]


def test_a_second_signal_acts_as_usual() -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        assert signal.getsignal(signal.SIGINT) == before
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_sign_of_life_is_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hornbook.train.guards import Heartbeat

    written: list[str] = []
    real = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda p, *a, **k: written.append(p.name) or real(p, *a, **k)
    )
    Heartbeat(tmp_path / "heartbeat.json").beat(1)
    assert written == ["heartbeat.json.tmp"]
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 1


def test_what_makes_a_trained_stage_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(stage, "run_stage", lambda name, out, **o: seen.append(o))
    monkeypatch.setattr(stage.Tokenizer, "from_file", lambda path: None)
    (tmp_path / "held-out").mkdir()
    config = TrainConfig(steps=9, batch_size=8, learning_rate=1e-2)
    shape = PhiConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)

    def key(weight: float = 1.0, **changes: Any) -> Any:
        stage.train_stage(replace(config, **changes), shape, {"a": 1.0, "b": weight}, tmp_path)
        return seen[-1]["config"], seen[-1]["inputs"]

    assert key() == key()
    assert key(stop_step=5) != key()
    assert key(weight=9.0) != key()
    held_out = str(tmp_path / "held-out")
    assert Path(held_out) in key(select="loss", validation=held_out)[1]


def test_a_document_mask_takes_memory() -> None:
    plain = TrainConfig(steps=2, batch_size=4, sequence_length=64, learning_rate=1e-3)
    masked = replace(plain, document_mask=True)
    found = [
        memory_bytes(SHAPE, c, processes=1, recompute=False)["activations"] for c in (plain, masked)
    ]
    assert found[1] - found[0] == 4 * (4 * 64) * 64
