"""Which checkpoint becomes the final model."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import hornbook as hb
from hornbook.errors import ConfigError, SandboxError
from hornbook.model import Phi, PhiConfig
from hornbook.train import Interrupted, TrainConfig, checkpoint, select, train

LENGTH, VOCABULARY = 24, 260
SHAPE = PhiConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)
CONFIG = TrainConfig(
    steps=12,
    batch_size=8,
    sequence_length=LENGTH,
    learning_rate=3e-2,
    threads=1,
    save_every=3,
    keep=0,
)


@pytest.mark.parametrize("reset", [False, True])
def test_lowest_validation_loss(tmp_path: Path, packed: tuple[Path, Path], reset: bool) -> None:
    data, held_out = packed
    config = replace(CONFIG, select="loss", validation=str(held_out), reset_positions=reset)
    result = train(config, data=data, out=tmp_path, model=SHAPE)
    said = json.loads((tmp_path / "selection.json").read_text())
    steps = [checkpoint.step_of(f) for f in checkpoint.found(tmp_path / "checkpoints")]
    assert [int(step) for step in said["scores"]] == steps == [3, 6, 9, 12]
    assert result.selected == said["selected"] == int(min(said["scores"], key=said["scores"].get))
    assert result.selected < 12
    model = Phi.from_pretrained(tmp_path / "final")
    rows = hb.PackedDataset(held_out, sequence_length=LENGTH, seed=0)
    batch = rows.batch(0, rows.samples_per_epoch)
    loss = F.cross_entropy(
        model(
            torch.from_numpy(batch["input_ids"]),
            positions=torch.from_numpy(batch["position_ids"]) if reset else None,
        ).flatten(0, 1),
        torch.from_numpy(batch["labels"]).flatten(),
    )
    assert said["scores"][str(result.selected)] == pytest.approx(float(loss.detach()), rel=1e-5)
    checkpoint.export(tmp_path / "checkpoints" / f"step-{result.selected:08d}", tmp_path / "it")
    files = [tmp_path / name / "model.safetensors" for name in ("it", "final")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "selection").exists()
    assert train(config, data=data, out=tmp_path, model=SHAPE) == result


def test_most_problems_solved(
    tmp_path: Path, packed: tuple[Path, Path], characters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores by the evaluation itself, here asked only what it is given: problems and folders."""
    asked: list[tuple[Any, Path]] = []

    def evaluate_model(problems: Any, model: Path, work: Path) -> dict[str, float]:
        assert (model / "model.safetensors").is_file()
        asked.append((problems, model))
        return {"pass@1": {3: 0.25, 6: 0.5, 9: 0.5, 12: 0.25}[int(model.name[-2:])]}

    monkeypatch.setattr("hornbook.evaluate.evaluate_model", evaluate_model)
    monkeypatch.setattr("hornbook.evaluate.load_problems", lambda name, split: (name, split))
    monkeypatch.setattr("hornbook.evaluate.sandbox.require", lambda: None)
    config = replace(CONFIG, select="pass@1", select_on="mbpp:validation")
    result = train(config, data=packed[0], out=tmp_path, model=SHAPE, tokenizer=characters)
    assert [problems for problems, _ in asked] == [("mbpp", "validation")] * 4
    assert result.selected == 6
    assert "mbpp:validation" in json.loads((tmp_path / "selection.json").read_text())["criterion"]


def test_what_pass_at_1_needs_is_looked_for_at_once(
    tmp_path: Path, packed: tuple[Path, Path], characters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require() -> None:
        raise SandboxError("no isolation here")

    monkeypatch.setattr("hornbook.evaluate.load_problems", lambda name, split: (name, split))
    monkeypatch.setattr("hornbook.evaluate.sandbox.require", require)
    config = replace(CONFIG, select="pass@1", select_on="mbpp:validation")
    seen: list[Any] = []
    options: dict[str, Any] = {"data": packed[0], "model": SHAPE, "on_step": seen.append}
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        train(config, out=tmp_path, **options)
    with pytest.raises(SandboxError, match="no isolation"):
        train(config, out=tmp_path, tokenizer=characters, **options)
    assert not seen


def at(step: int) -> Callable[[dict[str, Any]], None]:
    """Asks the run to stop once that step is done."""

    def on_step(record: dict[str, Any]) -> None:
        if record["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    return on_step


def test_neither_an_interruption_nor_a_torn_checkpoint_changes_the_choice(
    tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    data, held_out = packed
    config = replace(CONFIG, select="loss", validation=str(held_out))
    train(config, data=data, out=tmp_path / "whole", model=SHAPE)
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        train(config, data=data, out=out, model=SHAPE, on_step=at(6))
    torn = out / "checkpoints" / "step-00000007" / "__0_0.distcp"
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(Interrupted):
        train(config, data=data, out=out, model=SHAPE, on_step=at(7))
    assert (out / "checkpoints" / "step-00000008").is_dir()
    result = train(config, data=data, out=out, model=SHAPE)
    said, whole = (
        json.loads((tmp_path / name / "selection.json").read_text()) for name in ("out", "whole")
    )
    assert said == whole
    assert result.selected == whole["selected"]
    files = [tmp_path / name / "final/model.safetensors" for name in ("out", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_torn_candidate_is_left_out_and_named(tmp_path: Path, packed: tuple[Path, Path]) -> None:
    data, held_out = packed
    config = replace(CONFIG, select="loss", validation=str(held_out))

    def tear(record: dict[str, Any]) -> None:
        folder = tmp_path / "checkpoints" / "step-00000006"
        if folder.is_dir():
            (folder / ".metadata").write_bytes(b"")

    train(replace(config, async_save=False), data=data, out=tmp_path, model=SHAPE, on_step=tear)
    said = json.loads((tmp_path / "selection.json").read_text())
    assert list(said["scores"]) == ["3", "9", "12"]
    assert len(said["refused"]) == 1
    assert "step-00000006" in said["refused"][0]


def test_choosing_stops_when_asked_and_keeps_its_scores(
    tmp_path: Path, packed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held_out = packed
    config = replace(CONFIG, select="loss", validation=str(held_out))
    scored: list[str] = []

    def score(config: TrainConfig, model: Path, work: Path) -> float:
        scored.append(model.name)
        if len(scored) == 2:
            signal.raise_signal(signal.SIGTERM)
        return 1.0 / len(scored)

    monkeypatch.setattr(select, "score", score)
    with pytest.raises(Interrupted, match="2 of 4"):
        train(config, data=data, out=tmp_path, model=SHAPE)
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stopped"
    result = train(config, data=data, out=tmp_path, model=SHAPE)
    assert [name[-2:] for name in scored] == ["03", "06", "09", "12"]
    assert result.selected == 12
    assert not (tmp_path / "selection").exists()


def test_how_often_to_save_may_change_on_the_way(tmp_path: Path, packed: tuple[Path, Path]) -> None:
    data, held_out = packed
    config = replace(CONFIG, select="loss", validation=str(held_out), stop_step=3)
    train(config, data=data, out=tmp_path, model=SHAPE)
    result = train(replace(config, save_every=2, stop_step=6), data=data, out=tmp_path, model=SHAPE)
    assert result.step == 6
    scores = json.loads((tmp_path / "selection.json").read_text())["scores"]
    assert {int(step) for step in scores} == {4, 6}


def test_ties_and_nan() -> None:
    assert select.best_step({1000: 2.0, 2000: 1.0, 3000: 1.0}, lowest=True) == 2000
    assert select.best_step({1000: 0.5, 2000: 0.5, 3000: 0.1}, lowest=False) == 1000
    assert select.best_step({1000: math.nan, 2000: 9.0}, lowest=True) == 2000
    assert select.best_step({1000: math.nan, 2000: 0.0}, lowest=False) == 2000


def test_a_criterion_needs_its_data() -> None:
    with pytest.raises(ConfigError, match="needs validation"):
        replace(CONFIG, select="loss")
    with pytest.raises(ConfigError, match="needs select_on"):
        replace(CONFIG, select="pass@1")
