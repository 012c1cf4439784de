"""Which checkpoint becomes the final model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hornbook as hb
from hornbook.errors import ConfigError
from hornbook.model import Phi, PhiConfig
from hornbook.packing import pack_tokens
from hornbook.train import TrainConfig, checkpoint, select, train

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data to learn by heart, and other data on which that soon gets worse."""
    root = tmp_path_factory.mktemp("data")
    tok = hb.Tokenizer.train(["abc def " * 20], vocab_size=260, special_tokens=["<|endoftext|>"])
    tok.save(root / "tokenizer.json")
    draw = np.random.default_rng(0)
    for name, count in (("train", 8), ("validation", 20)):
        ids = draw.integers(1, 250, 60 * count).astype(np.uint16)
        batch = (ids, np.arange(0, 60 * count + 1, 60).astype(np.uint64))
        pack_tokens([batch], root / name, tokenizer=root / "tokenizer.json", identity=name)
    return root / "train", root / "validation"


def test_lowest_validation_loss(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, held_out = folders
    config = replace(CONFIG, select="loss", validation=str(held_out))
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
        model(torch.from_numpy(batch["input_ids"])).flatten(0, 1),
        torch.from_numpy(batch["labels"]).flatten(),
    )
    assert said["scores"][str(result.selected)] == pytest.approx(float(loss.detach()), rel=1e-5)
    checkpoint.export(tmp_path / "checkpoints" / f"step-{result.selected:08d}", tmp_path / "it")
    files = [tmp_path / name / "model.safetensors" for name in ("it", "final")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "selection").exists()
    assert train(config, data=data, out=tmp_path, model=SHAPE) == result


def test_most_problems_solved(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores by the evaluation itself, here asked only what it is given: problems and folders."""
    asked: list[tuple[Any, Path]] = []

    def evaluate_model(problems: Any, model: Path, work: Path) -> dict[str, float]:
        assert (model / "model.safetensors").is_file()
        asked.append((problems, model))
        return {"pass@1": {3: 0.25, 6: 0.5, 9: 0.5, 12: 0.25}[int(model.name[-2:])]}

    monkeypatch.setattr("hornbook.evaluate.evaluate_model", evaluate_model)
    monkeypatch.setattr("hornbook.evaluate.load_problems", lambda name, split: (name, split))
    config = replace(CONFIG, select="pass@1", select_on="mbpp:validation")
    result = train(config, data=folders[0], out=tmp_path, model=SHAPE)
    assert [problems for problems, _ in asked] == [("mbpp", "validation")] * 4
    assert result.selected == 6
    assert "mbpp:validation" in json.loads((tmp_path / "selection.json").read_text())["criterion"]


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
