"""Sampling against the plain way: one prompt at a time, the whole sequence each step."""

import numpy as np
import pytest
import torch

from hornbook.errors import ConfigError, InputError
from hornbook.model import Phi, PhiConfig, generate
from hornbook.model.sample import _certain, choose

PROMPTS = ["def add(a, b):", "x", "", "for item in values:\n    print(", "é", "return 1", "ab" * 20]


class Bytes:
    """A token a character below 256; 0 ends a document."""

    eot_id = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: object) -> str:
        return bytes(np.asarray(ids, dtype=np.uint8)).decode("latin-1")


@pytest.fixture(scope="module")
def model() -> Phi:
    shape = PhiConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return Phi(shape, seed=7)


def plain(model: Phi, prompt: str, count: int) -> str:
    ids = [int(i) for i in Bytes().encode(prompt)] or [0]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and len(ids) < 128:
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token == 0:
                break
            ids.append(token)
    return Bytes().decode(ids[start:])


@pytest.fixture(scope="module")
def plainly(model: Phi) -> list[str]:
    return [plain(model, prompt, 100) for prompt in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_does_not_depend_on_the_batch(
    model: Phi, plainly: list[str], batch_size: int
) -> None:
    done: list[tuple[int, int]] = []
    got = generate(
        model,
        Bytes(),
        PROMPTS,
        max_new_tokens=100,
        batch_size=batch_size,
        on_progress=lambda *at: done.append(at),
    )
    assert got == plainly
    assert len(set(got)) > 3
    assert done[-1] == (7, 7)


def test_stop_strings_cut(model: Phi) -> None:
    whole = generate(model, Bytes(), PROMPTS, max_new_tokens=60)
    stop = [whole[0][5:8], whole[3][20:21]]
    cut = generate(model, Bytes(), PROMPTS, max_new_tokens=60, stop=stop)
    for text, short in zip(whole, cut, strict=True):
        places = [at for at in map(text.find, stop) if at >= 0]
        assert short == (text[: min(places)] if places else text)
    assert len(cut[0]) < len(whole[0])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_as_it_is_made_is_the_text(model: Phi, temperature: float) -> None:
    """Pieces add up to the completion, none of it taken back; more than one piece comes."""
    whole = generate(model, Bytes(), PROMPTS, max_new_tokens=60, temperature=temperature)
    for stop in ((), (whole[0][5:8], whole[3][20:23])):
        pieces: list[list[str]] = [[] for _ in PROMPTS]
        got = generate(
            model,
            Bytes(),
            PROMPTS,
            max_new_tokens=60,
            temperature=temperature,
            stop=stop,
            on_text=lambda index, piece, to=pieces: to[index].append(piece),
        )
        assert ["".join(parts) for parts in pieces] == got
        assert max(map(len, pieces)) > 20
        assert all(piece for parts in pieces for piece in parts)
        assert got == generate(
            model, Bytes(), PROMPTS, max_new_tokens=60, temperature=temperature, stop=stop
        )


def test_half_characters_and_half_stop_strings_wait() -> None:
    assert _certain("abc\ufffd", ()) == 3
    assert _certain("print(x)\nde", ("\ndef",)) == 8
    assert _certain("print(x)\nde", ("\nclass",)) == 11
    assert _certain("aa", ("aab", "ab")) == 0


def test_end_of_text_ends(model: Phi) -> None:
    first = plain(model, "x", 9)
    token = ord(first[4])
    codec = Bytes()
    codec.eot_id = token
    assert generate(model, codec, ["x"], max_new_tokens=9) == [first[: first.index(chr(token))]]


def test_sampling_follows_the_seed_not_the_batch(model: Phi) -> None:
    def draw(seed: int, batch_size: int, top_p: float = 1.0) -> list[str]:
        return generate(
            model,
            Bytes(),
            PROMPTS,
            max_new_tokens=20,
            temperature=0.8,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
        )

    assert draw(1, 64) == draw(1, 2)
    assert draw(1, 64) != draw(2, 64)
    greedy = generate(model, Bytes(), PROMPTS, max_new_tokens=20)
    assert draw(1, 64, top_p=1e-9) == greedy


class Characters:
    """A token a character, of very many."""

    eot_id = 0

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(c) - 0x4E00 for c in text])

    def decode(self, ids: object) -> str:
        return "".join(chr(0x4E00 + int(i)) for i in np.asarray(ids))


@pytest.fixture(scope="module")
def undecided() -> Phi:
    """Random weights over 40,000 tokens: many are as likely as one another."""
    shape = PhiConfig(
        vocab_size=40_000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    return Phi(shape, seed=1)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9)])
def test_rounding_decides_nothing(undecided: Phi, temperature: float, top_p: float) -> None:
    draw = np.random.default_rng(0)
    texts = [
        Characters().decode(draw.integers(1, 20_000, size=length))
        for length in draw.integers(1, 120, size=24)
    ]
    found = [
        generate(
            undecided,
            Characters(),
            texts,
            max_new_tokens=16,
            temperature=temperature,
            top_p=top_p,
            batch_size=size,
        )
        for size in (24, 7, 1)
    ]
    assert found[0] == found[1] == found[2]


def test_what_is_close_is_said(undecided: Phi) -> None:
    """As likely: it is said, in fp32; and what rounding moves changes no draw that is not."""
    logits = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0)) * 5
    logits[3, 17] = logits[3].max() * (1 + 1e-7)
    _, close = choose(logits, [0] * 8, 0.0, 1.0)
    assert close.tolist() == [False] * 3 + [True] + [False] * 4
    assert not choose(logits.bfloat16(), [0] * 8, 0.0, 1.0)[1].any()
    moved = logits + 1e-5 * torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
    counts = 0
    for step in range(40):
        keys = [8 * step + row for row in range(8)]
        for top_p in (1.0, 0.5):
            tokens, close = choose(logits, keys, 1.0, top_p)
            others, _ = choose(moved, keys, 1.0, top_p)
            counts += int(close.sum())
            assert (tokens == others)[~close].all()
    assert counts < 0.02 * 40 * 8 * 2


def test_draws_have_the_model_s_probabilities(model: Phi) -> None:
    count = 4000
    logits = model(torch.tensor([[120]]))[0, -1]
    p = torch.softmax(logits.double() / 1.5, -1).detach()
    first = generate(
        model, Bytes(), ["x"] * count, max_new_tokens=1, temperature=1.5, batch_size=500
    )
    for token in torch.topk(p[1:], 3).indices + 1:
        seen = first.count(chr(int(token))) / count
        assert abs(seen - float(p[token])) < 4 * float((p[token] * (1 - p[token]) / count).sqrt())


def test_wrong_use_is_refused(model: Phi) -> None:
    with pytest.raises(InputError, match="prompt 1"):
        generate(model, Bytes(), ["x", "y" * 128])
    for options in ({"top_p": 0.0}, {"temperature": -1.0}, {"stop": [""]}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            generate(model, Bytes(), ["x"], **options)  # type: ignore[arg-type]
    assert generate(model, Bytes(), []) == []


def test_mode_is_put_back(model: Phi) -> None:
    model.train()
    generate(model, Bytes(), ["x"], max_new_tokens=1)
    assert model.training
    model.eval()
