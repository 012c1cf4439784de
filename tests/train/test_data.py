"""Which samples a process trains on: together always the same, in order, whatever the processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hornbook as hb
from hornbook.errors import ConfigError
from hornbook.packing import pack_tokens
from hornbook.train import TrainConfig, train
from hornbook.train.data import identity, steps
from hornbook.train.metrics import read_metrics
from hornbook.train.parallel import World

LENGTH = 16
CONFIG = TrainConfig(
    steps=9,
    batch_size=8,
    learning_rate=1e-2,
    sequence_length=LENGTH,
    prompt_loss_weight=0.5,
    document_mask=True,
    reset_positions=True,
    threads=1,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 rows of documents of 3 to 40 tokens."""
    root = tmp_path_factory.mktemp("packed")
    tok = hb.Tokenizer.train(["abc def " * 20], vocab_size=260, special_tokens=["<|endoftext|>"])
    tok.save(root / "tokenizer.json")
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 40, 50)
    ids = draw.integers(1, 250, lengths.sum()).astype(np.uint16)
    batch = (ids, np.concatenate([[0], lengths.cumsum()]).astype(np.uint64), lengths // 3)
    tokenizer = root / "tokenizer.json"
    pack_tokens([batch], root / "packed", tokenizer=tokenizer, identity="test", prompts=True)
    return root / "packed"


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, device=torch.device("cpu"))


@given(
    size=st.sampled_from([1, 2, 4, 8]),
    micro=st.sampled_from([1, 2, 4, 8]),
    first=st.integers(0, 8),
    method=st.sampled_from(["concat", "best_fit"]),
)
def test_all_processes_together_see_the_global_order(
    packed: Path, size: int, micro: int, first: int, method: Any
) -> None:
    """Ids, labels, weights, positions, documents and dropout's numbers, across an epoch's end."""
    if 8 // size % micro:
        micro = 1
    config = replace(CONFIG, micro_batch_size=micro, method=method)
    rows = hb.PackedDataset(packed, sequence_length=LENGTH, method=method, seed=0)
    shares = [
        list(steps(packed, config, world(rank, size), first=first, vocab_size=300))
        for rank in range(size)
    ]
    assert [len(share) for share in shares] == [9 - first] * size
    for place in range(9 - first):
        at = (first + place) * 8
        expected = rows.batch(at, 8)
        parts = [part for share in shares for part in share[place].micro]
        assert [part.number for part in parts] == list(range(8 // micro))
        assert [s for part in parts for s in part.samples] == list(range(at, at + 8))
        for name, key in (("input_ids", "input_ids"), ("labels", "labels")):
            got = torch.cat([getattr(part, name) for part in parts])
            assert np.array_equal(got.numpy(), expected[key])
        positions = torch.cat([part.positions for part in parts if part.positions is not None])
        assert np.array_equal(positions.numpy(), expected["position_ids"])
        weights = torch.cat([part.weights for part in parts if part.weights is not None]).numpy()
        factor = np.where(expected["prompt_mask"], 0.5, 1.0) * (expected["labels"] != -100)
        assert np.array_equal(weights, factor.astype(np.float32))
        assert sum(share[place].weight for share in shares) == factor.sum()
        bounds = [list(row) for part in parts for row in part.cu_seqlens or []]
        assert bounds == [list(row) for row in expected["cu_seqlens"]]


def test_a_model_trains_on_packed_data_as_on_its_rows(packed: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = hb.model.PhiConfig(vocab_size=300, max_position_embeddings=LENGTH, **shape)

    class Rows:
        identity = "rows"
        data = hb.PackedDataset(packed, sequence_length=LENGTH, seed=0)
        samples_per_epoch = data.samples_per_epoch

        def batch(self, first: int, count: int) -> Any:
            return self.data.batch(first, count)

    train(CONFIG, data=packed, out=tmp_path / "packed", model=model)
    train(CONFIG, data=Rows(), out=tmp_path / "rows", model=model)
    a, b = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("packed", "rows"))
    assert [r["loss"] for r in a] == [r["loss"] for r in b]
    mixed = {str(packed): 2.0}
    assert identity(packed) != identity(mixed)
    assert len(list(steps(mixed, CONFIG, world(), first=7, vocab_size=300))) == 2


def test_what_cannot_be_shared_out_is_refused(packed: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        next(steps(packed, CONFIG, world(0, 3), first=0, vocab_size=300))
    config = replace(CONFIG, micro_batch_size=8)
    with pytest.raises(ConfigError, match="micro_batch_size 8"):
        next(steps(packed, config, world(0, 2), first=0, vocab_size=300))
    with pytest.raises(ConfigError, match="vocabulary is 100"):
        next(steps(packed, CONFIG, world(), first=0, vocab_size=100))
