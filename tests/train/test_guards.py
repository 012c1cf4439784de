"""Spikes, samples that break a step, signs of life, trackers, samples of text."""

import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError, InputError, MissingExtraError
from hornbook.model import Phi, PhiConfig, generate
from hornbook.train import Diverged, TrainConfig, checkpoint, train
from hornbook.train.guards import FEWEST, Heartbeat, Spikes
from hornbook.train.metrics import matrix_ceiling, read_metrics

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
    micro_batch_size=2,
    sequence_length=LENGTH,
    learning_rate=1e-2,
    threads=1,
)


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


class Poisoned:
    """Rows of which one has a token whose embedding is not finite."""

    identity = "poisoned"
    samples_per_epoch = 48

    def __init__(self, rows: Any, *bad: int) -> None:
        self.rows, self.bad = rows, bad

    def batch(self, first: int, count: int) -> dict[str, Any]:
        made: dict[str, Any] = self.rows.batch(first, count)
        made["input_ids"] = np.where(made["input_ids"] == 7, 6, made["input_ids"])
        for sample in self.bad:
            if first <= sample < first + count:
                made["input_ids"][sample - first, 3] = 7
        return made


@pytest.fixture
def poisonous(tmp_path: Path) -> Path:
    model = Phi(SHAPE, seed=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = math.inf
    model.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bad_sample_is_skipped_counted_and_named(
    tmp_path: Path, rows: Any, poisonous: Path, precision: str
) -> None:
    out = tmp_path / "out"
    config = replace(BASE, precision=precision, grad_clip=0.0)
    result = train(config, data=Poisoned(rows, 21), out=out, model=poisonous)
    named = [event for event in events(out, "skipped") if event["step"] == 3]
    assert named[0]["samples"] == [[20, 21]]
    records = read_metrics(out / "metrics.jsonl")
    assert records[2]["loss"] is None
    assert result.skipped == records[-1]["skipped"] >= 1
    assert math.isfinite(records[-1]["loss"])
    weights = Phi.from_pretrained(out / "final").state_dict()
    assert all(torch.isfinite(t).all() for n, t in weights.items() if "embed" not in n)


def test_after_too_many_it_stops_and_says_where(tmp_path: Path, rows: Any, poisonous: Path) -> None:
    data = Poisoned(rows, 17, 26, 27)
    with pytest.raises(Diverged, match=r"samples 16 to 17, 26 to 27\).*step-00000002"):
        train(
            replace(BASE, max_skipped=2, save_every=2),
            data=data,
            out=tmp_path / "out",
            model=poisonous,
        )


@given(st.lists(st.floats(1.0, 3.0), min_size=FEWEST, max_size=300))
def test_what_is_usual_is_no_spike(losses: list[float]) -> None:
    spikes = Spikes(25.0)
    assert all(spikes.add(loss) is None for loss in losses[:FEWEST])
    spread = float(np.std(losses[:FEWEST]))
    mean = float(np.mean(losses[:FEWEST]))
    assert spikes.add(mean + 20 * max(spread, 1e-3 * mean)) is None


def test_spikes_are_logged_with_their_samples(tmp_path: Path, rows: Any) -> None:
    class Spike(Poisoned):
        def batch(self, first: int, count: int) -> dict[str, Any]:
            made: dict[str, Any] = self.rows.batch(first, count)
            if first <= 8 * 40 < first + count:
                at = 8 * 40 - first
                made["labels"][at : at + 8] = (made["labels"][at : at + 8] + 11) % VOCABULARY
            return made

    train(replace(BASE, steps=60, spike=6.0), data=Spike(rows), out=tmp_path, model=SHAPE)
    found = events(tmp_path, "spike")
    assert [event["step"] for event in found] == [41]
    assert found[0]["samples"] == [320, 327]
    assert Spikes(0.0).add(1e9) is None


def test_signs_of_life(tmp_path: Path, rows: Any) -> None:
    train(BASE, data=rows, out=tmp_path, model=SHAPE)
    sign = json.loads((tmp_path / "heartbeat.json").read_text())
    assert set(sign) == {"step", "time", "host", "pid"}
    heart = Heartbeat(tmp_path / "heartbeat.json")
    heart.beat(7)
    heart.beat(8)  # too soon
    assert json.loads((tmp_path / "heartbeat.json").read_text())["step"] == 7


def test_every_step_says_what_it_took(tmp_path: Path, rows: Any) -> None:
    train(BASE, data=rows, out=tmp_path, model=SHAPE)
    for record in read_metrics(tmp_path / "metrics.jsonl"):
        assert 0 <= record["data_wait_s"] < 60
        assert record["peak_memory_bytes"] > 2**20
    assert "mfu" not in record
    start = events(tmp_path, "started")[0]
    assert start["plan"]["parallel"] == "single"
    assert start["flops_per_token"] > 0


def test_matrix_ceiling_is_a_rate() -> None:
    assert 1e8 < matrix_ceiling(torch.device("cpu"), torch.float32, seconds=0.05) < 1e13


def test_completions_on_the_way(tmp_path: Path, rows: Any, characters: Any) -> None:
    config = replace(BASE, sample_every=3, sample_prompts=("A", "BC"), sample_tokens=4)
    train(config, data=rows, out=tmp_path, model=SHAPE, tokenizer=characters)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        *((3, "A"), (3, "BC"), (6, "A"), (6, "BC"))
    ]
    final = Phi.from_pretrained(tmp_path / "final")
    texts = generate(final, characters, ["A", "BC"], max_new_tokens=4)
    assert [line["completion"] for line in lines[2:]] == texts
    bare = tmp_path / "bare"
    train(BASE, data=rows, out=bare, model=SHAPE)
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        r["loss"] for r in read_metrics(bare / "metrics.jsonl")
    ]
    with pytest.raises(ConfigError, match="tokenizer"):
        train(config, data=rows, out=tmp_path / "none", model=SHAPE)


@pytest.mark.parametrize(("prompt", "why"), [("A" * LENGTH, "no room"), ("Az", "vocabulary")])
def test_prompts_that_cannot_be_completed_are_refused_at_once(
    tmp_path: Path, rows: Any, characters: Any, prompt: str, why: str
) -> None:
    config = replace(BASE, sample_every=3, sample_prompts=("A", prompt))
    seen: list[Any] = []
    with pytest.raises(InputError, match=f"prompt 1.*{why}"):
        train(
            config, data=rows, out=tmp_path, model=SHAPE, tokenizer=characters, on_step=seen.append
        )
    assert not seen


def test_it_is_saved_before_prompts_are_completed(
    tmp_path: Path, rows: Any, characters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*args: Any, **options: Any) -> None:
        raise KeyError("completing")

    monkeypatch.setattr("hornbook.train.loop.generate", generate)
    config = replace(BASE, sample_every=3, save_every=3, sample_prompts=("A",))
    with pytest.raises(KeyError, match="completing"):
        train(config, data=rows, out=tmp_path, model=SHAPE, tokenizer=characters)
    assert checkpoint.newest(tmp_path / "checkpoints")[0] is not None


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_every_step(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With stand-ins that have the two packages' interface: neither may phone home in a test."""
    said: list[Any] = []
    module = types.ModuleType(name)
    module.init = lambda **options: said.append(options)  # type: ignore[attr-defined]
    module.log = lambda numbers, step: said.append((step, numbers))  # type: ignore[attr-defined]
    module.finish = lambda: said.append("end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    train(replace(BASE, log_to=(name,)), data=rows, out=tmp_path, model=SHAPE)
    assert said[0]["project"] == "mine"
    assert said[0]["config"]["learning_rate"] == 1e-2
    assert said[-1] == "end"
    assert [step for step, _ in said[1:-1]] == [1, 2, 3, 4, 5, 6]
    record = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert said[-2][1]["loss"] == record["loss"]
    again = replace(BASE, steps=7, stop_step=7, log_to=(name,))
    starts = [said[0]]
    for out in (tmp_path / "on", tmp_path / "on", tmp_path / "off" / "on"):
        said.clear()
        steps = 3 if not starts[1:] else 7
        train(replace(again, stop_step=steps), data=rows, out=out, model=SHAPE)
        starts.append(said[0])
    which = [(start["name"], start.get("id")) for start in starts]
    assert which[1] == which[2], "the same run goes on"
    assert len(set(which)) == 3, "others are others, though their folders have one name"
    assert {start["resume"] for start in starts} == {"allow"}


def test_tensorboard_or_how_to_get_it(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.extend([folder, purge_step])

        def add_text(self, name: str, text: str) -> None:
            written.append(text)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("end")

    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = replace(BASE, log_to=("tensorboard",))
    with pytest.raises(MissingExtraError, match="pip install tensorboard"):
        train(config, data=rows, out=tmp_path / "a", model=SHAPE)
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    train(replace(config, stop_step=4), data=rows, out=tmp_path / "b", model=SHAPE)
    assert written[:2] == [str(tmp_path / "b" / "tensorboard"), 1]
    written.clear()
    train(config, data=rows, out=tmp_path / "b", model=SHAPE)
    assert written[1] == 5, "what was written of later steps is not to be shown twice"
    losses = [entry[1:] for entry in written if isinstance(entry, tuple) and entry[0] == "loss"]
    records = read_metrics(tmp_path / "b/metrics.jsonl")
    assert losses == [(r["loss"], r["step"]) for r in records[4:]]
    assert written[-1] == "end"


def test_a_good_step_begins_the_count_again(tmp_path: Path, rows: Any, poisonous: Path) -> None:
    # Steps 2, 4 and 6 are bad, never two in a row.
    data = Poisoned(rows, 8, 24, 40)
    config = replace(BASE, max_skipped=2)
    assert train(config, data=data, out=tmp_path / "out", model=poisonous).skipped == 3


def test_the_guards_go_on_where_they_were(tmp_path: Path, rows: Any, poisonous: Path) -> None:
    """Steps 3 and 4 are bad; the run is stopped between them. Two in a row are too many."""
    data, out = Poisoned(rows, 17, 26), tmp_path / "out"
    config = replace(BASE, max_skipped=2)
    first = train(replace(config, stop_step=3), data=data, out=out, model=poisonous)
    assert first.skipped == 1
    with pytest.raises(Diverged, match=r"2 steps in a row.*samples 16 to 17, 26 to 27\)"):
        train(config, data=data, out=out, model=poisonous)
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert last["skipped"] == 2
    assert last["tokens"] == 4 * 8 * LENGTH
    saved = checkpoint.check(out / "checkpoints" / "step-00000003").state
    assert last["seconds"] > saved["seconds"] > 0


def test_skipped_steps_do_not_count_for_adam_after_a_stop(
    tmp_path: Path, rows: Any, poisonous: Path
) -> None:
    data = Poisoned(rows, 8)
    train(BASE, data=data, out=tmp_path / "whole", model=poisonous)
    train(replace(BASE, stop_step=3), data=data, out=tmp_path / "two", model=poisonous)
    train(BASE, data=data, out=tmp_path / "two", model=poisonous)
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")


def test_the_last_good_checkpoint_is_the_newest(tmp_path: Path, rows: Any, poisonous: Path) -> None:
    config = replace(BASE, max_skipped=1, save_every=1, keep=0)
    with pytest.raises(Diverged, match="step-00000002"):
        train(config, data=Poisoned(rows, 17), out=tmp_path / "out", model=poisonous)
