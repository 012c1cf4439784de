"""Both branches are dropped out, and samples are drawn by their place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hornbook.errors import InputError
from hornbook.model import Phi, PhiConfig, generate
from hornbook.model import phi as phi_module

SHAPE = PhiConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)


def test_both_branches_are_dropped_out(monkeypatch):
    model, seen = Phi(replace(SHAPE, resid_pdrop=0.5), seed=0).train(), []
    real = phi_module.F.dropout
    monkeypatch.setattr(phi_module.F, "dropout", lambda x, p: seen.append(p) or real(x, p))
    model(torch.zeros(1, 4, dtype=torch.int64))
    assert seen == [0.5] * 4  # attention and MLP of both blocks


class Letters:
    eot_id = 0

    def encode(self, text):
        return np.array([ord(c) - 64 for c in text])

    def decode(self, ids):
        return "".join(chr(64 + int(i)) for i in ids)


def test_a_part_of_a_list_is_drawn_as_in_the_whole():
    model = Phi(replace(SHAPE, initializer_range=0.5), seed=0)
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    prompts = ["ABC", "ABC", "BCD"]
    whole = generate(model, Letters(), prompts, **options)
    assert whole[0] != whole[1]
    assert generate(model, Letters(), prompts[1:], places=[1, 2], **options) == whole[1:]


def test_the_first_id_past_the_vocabulary_is_refused():
    with pytest.raises(InputError, match="token 64 is past"):
        generate(Phi(SHAPE), Letters(), [chr(64 + 64)])
