"""Each function against its plain form: values and gradients, odd sizes, and finite differences."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hornbook_kernels as hk


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(True)


def same(fast: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    pull = torch.randn_like(fast)
    ours = torch.autograd.grad(fast, inputs, pull)
    theirs = torch.autograd.grad(plain, inputs, pull)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 2, 7, 33])
@pytest.mark.parametrize("causal", [True, False])
def test_attention(length: int, causal: bool) -> None:
    qkv = rand(2, length, 3, 3, 8)
    fast = hk.attention(qkv, causal=causal, scale=0.3)
    plain = hk.reference.attention(*qkv.unbind(2), causal=causal, scale=0.3)[0]
    same(fast, plain, [qkv])


def test_attention_over_a_cache_aligns_with_the_end() -> None:
    q, k, v = rand(2, 3, 2, 8), rand(2, 9, 2, 8, seed=1), rand(2, 9, 2, 8, seed=2)
    same(hk.attention(q, k, v), hk.reference.attention(q, k, v)[0], [q, k, v])
    one = q[:, -1:].detach()
    torch.testing.assert_close(hk.attention(one, k, v), hk.attention(q, k, v)[:, -1:])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.data())
def test_documents_equal_separate_rows(length: int, data: st.DataObject) -> None:
    cuts = data.draw(
        st.lists(st.lists(st.integers(0, length), max_size=5).map(sorted), min_size=1, max_size=3)
    )
    cu_seqlens = [[0, *row, length] for row in cuts]
    qkv = rand(len(cuts), length, 3, 2, 4)
    packed = hk.attention(qkv, cu_seqlens=cu_seqlens)
    additive = hk.document_mask(cu_seqlens, length, dtype=torch.float64)
    torch.testing.assert_close(hk.attention(qkv, mask=additive), packed)
    for row, bounds in enumerate(cu_seqlens):
        for start, end in itertools.pairwise(bounds):
            if start < end:
                alone = hk.reference.attention(*qkv[row : row + 1, start:end].unbind(2))[0]
                torch.testing.assert_close(packed[row : row + 1, start:end], alone)


@pytest.mark.parametrize("bounds", [[1, 4], [0, 3, 2, 4], [0, 5], []])
def test_wrong_boundaries_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        hk.document_mask([bounds], 4)


@pytest.mark.parametrize("flat", [[0, 2, 4], torch.tensor([0, 2, 4]), torch.arange(3).numpy()])
def test_boundaries_without_rows_are_refused(flat: Any) -> None:
    with pytest.raises(ValueError, match="for each row"):
        hk.attention(rand(1, 4, 3, 2, 4), cu_seqlens=flat)
    rows = torch.tensor([[0, 2, 4]])
    assert torch.equal(hk.document_bounds(rows, 4), hk.document_bounds([[0, 2, 4]], 4))


def test_attention_dropout_is_keyed_and_unbiased() -> None:
    qkv = rand(1, 40, 3, 4, 8).detach()
    once = hk.attention(qkv, dropout_p=0.25, seed=5)
    assert torch.equal(once, hk.attention(qkv, dropout_p=0.25, seed=5))
    assert not torch.equal(once, hk.attention(qkv, dropout_p=0.25, seed=6))
    mean = sum(hk.attention(qkv, dropout_p=0.25, seed=seed) for seed in range(400)) / 400
    assert (mean - hk.attention(qkv)).abs().mean() < 0.05


def test_attention_wants_whole_inputs() -> None:
    qkv = rand(1, 4, 3, 2, 4)
    with pytest.raises(ValueError, match="packed"):
        hk.attention(qkv[:, :, 0])
    with pytest.raises(ValueError, match="causal"):
        hk.attention(qkv, cu_seqlens=[[0, 4]], causal=False)


@pytest.mark.parametrize("dims", [4, 8])
def test_rotary(dims: int) -> None:
    cos, sin = (t.double() for t in hk.rotary_tables(11, dims))
    x = rand(2, 11, 3, 8)
    same(hk.apply_rotary(x, cos, sin), hk.reference.apply_rotary(x, cos, sin), [x])
    back = hk.apply_rotary(hk.apply_rotary(x, cos, sin), cos, sin, inverse=True)
    torch.testing.assert_close(back, x)
    qkv = rand(2, 11, 3, 3, 8)
    parts = [hk.reference.apply_rotary(t, cos, sin) for t in qkv.unbind(2)[:2]]
    same(hk.apply_rotary(qkv, cos, sin), torch.stack([*parts, qkv[:, :, 2]], 2), [qkv])


def test_rotary_positions_by_row_and_half_precision() -> None:
    cos, sin = hk.rotary_tables(16, 4)
    positions = torch.tensor([[3, 4, 5], [0, 1, 2]])
    x = rand(2, 3, 2, 8).detach().float()
    got = hk.apply_rotary(x, cos[positions], sin[positions])
    torch.testing.assert_close(got[0], hk.apply_rotary(x[:1], cos[3:6], sin[3:6])[0])
    half = hk.apply_rotary(x.bfloat16(), cos[:3], sin[:3])
    exact = hk.reference.apply_rotary(x.bfloat16().float(), cos[:3], sin[:3]).bfloat16()
    assert torch.equal(half, exact)
    with pytest.raises(ValueError, match="do not fit"):
        hk.apply_rotary(x, cos, sin)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_rotary_with_documents(layout: str, inverse: bool, by_row: bool) -> None:
    cos, sin = (t.double() for t in hk.rotary_tables(9, 6))
    if by_row:
        cos, sin = (torch.stack((t, t.flip(0))) for t in (cos, sin))
    x = rand(2, 9, 3, 8)
    options: dict[str, Any] = {"layout": layout, "inverse": inverse}
    for bounds in (None, hk.document_bounds([[0, 3, 3, 7, 9], [0, 9]], 9)):
        for turn in (hk.apply_rotary, hk.apply_rotary_):
            plain = hk.reference.apply_rotary(x, cos, sin, bounds=bounds, **options)
            same(turn(x * 1, cos, sin, bounds=bounds, **options), plain, [x])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("z_loss", [0.0, 0.02])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction: str, z_loss: float, weighted: bool) -> None:
    logits = rand(7, 11)
    labels = torch.tensor([3, -100, 0, 10, 2, -100, 0])
    weights = torch.arange(7.0, dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {"weights": weights, "reduction": reduction, "z_loss": z_loss}
    plain = hk.reference.cross_entropy(logits, labels, **options)
    same(hk.cross_entropy(logits * 1, labels, **options), plain, [logits])
    # The plain form is torch's own, where that has such options.
    if z_loss == 0.0 and not weighted:
        torch.testing.assert_close(plain, F.cross_entropy(logits, labels, reduction=reduction))
    assert torch.autograd.gradcheck(lambda x: hk.cross_entropy(x, labels, **options), logits)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["sum", "mean"]),
    st.sampled_from([0.0, 0.02]),
)
def test_linear_cross_entropy(
    count: int, chunk: int, biased: bool, weighted: bool, reduction: str, z_loss: float
) -> None:
    hidden, weight, bias = rand(count, 5), rand(13, 5, seed=1), rand(13, seed=2)
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 13, (count,), generator=generator)
    labels[1::3] = -100
    weights = torch.rand(count, generator=generator, dtype=torch.float64) if weighted else None
    arguments = (hidden, weight, bias if biased else None, labels)
    options: dict[str, Any] = {"weights": weights, "reduction": reduction, "z_loss": z_loss}
    fast = hk.linear_cross_entropy(*arguments, chunk=chunk, **options)
    plain = hk.reference.linear_cross_entropy(*arguments, **options)
    same(fast, plain, [hidden, weight, bias] if biased else [hidden, weight])


def test_linear_cross_entropy_by_finite_differences() -> None:
    labels = torch.tensor([1, -100, 0, 2])
    inputs = (rand(4, 3), rand(5, 3, seed=1), rand(5, seed=2))
    assert torch.autograd.gradcheck(
        lambda *parts: hk.linear_cross_entropy(*parts, labels, chunk=3), inputs
    )


def test_linear_cross_entropy_shapes_and_autocast() -> None:
    hidden, weight = rand(2, 6, 8).detach().float(), rand(11, 8, seed=1).detach().float()
    labels = torch.arange(12).reshape(2, 6) % 11
    loss = hk.linear_cross_entropy(hidden, weight, None, labels)
    torch.testing.assert_close(
        loss, F.cross_entropy((hidden @ weight.t()).flatten(0, 1), labels.flatten())
    )
    weight.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = hk.linear_cross_entropy(hidden, weight, None, labels)
    low.backward()
    assert low.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert abs(float(low.detach()) - float(loss)) < 0.05
    with pytest.raises(ValueError, match="do not fit"):
        hk.linear_cross_entropy(hidden, weight, None, labels[:1])
    with pytest.raises((RuntimeError, IndexError)):
        hk.linear_cross_entropy(hidden, weight, None, labels - 5)
