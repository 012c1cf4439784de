"""The attention operator on a CPU: bits, gradients, and what torch asks of an operator."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hornbook_kernels as hk
from hornbook_kernels import philox

SEED = -1234567890123456789
LOW = 0xFFFFFFFF
CUTS = [[0, 3, 3, 7, 9], [0, 9]]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def plain_philox(key: int, counter: list[int], rounds: int = 7) -> list[int]:
    """Philox4x32 as its paper defines it, in Python integers."""
    x0, x1, x2, x3 = counter
    k0, k1 = key & LOW, key >> 32 & LOW
    for _ in range(rounds):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = b >> 32 ^ x1 ^ k0, b & LOW, a >> 32 ^ x3 ^ k1, a & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return [x0, x1, x2, x3]


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, [0] * 4, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (-1, [LOW] * 4, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_philox_gives_the_published_answers(key: int, counter: list[int], words: str) -> None:
    """The known answers for 7 rounds that are published with Random123."""
    expected = [int(word, 16) for word in words.split()]
    assert plain_philox(key, counter) == expected
    made = philox.philox(torch.tensor(key), tuple(torch.tensor(x) for x in counter))  # type: ignore[arg-type]
    assert [int(word) for word in made] == expected


@settings(max_examples=20, deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.tuples(*[st.integers(1, n) for n in (2, 3, 5, 150)]),
    st.integers(1, 255),
)
def test_dropout_bits_against_an_independent_philox(
    seed: int, shape: tuple[int, int, int, int], level: int
) -> None:
    made = philox.kept(torch.tensor(seed), shape, level)
    batch, heads, rows, keys = shape
    for b, h, i in itertools.product(range(batch), range(heads), range(rows)):
        for j in range(0, keys, 7):
            c = j % 64
            byte = 2 * (c // 8) + c % 2
            words = plain_philox(seed, [i, j // 64 * 4 + c % 8 // 2, b * heads + h, 0])
            assert bool(made[b, h, i, j]) == (words[byte // 4] >> 8 * (byte % 4) & 255 >= level)


def test_dropout_share_is_the_stated_one() -> None:
    assert philox.threshold(0.0) == 0
    assert philox.threshold(0.1) == 26
    assert philox.threshold(1e-9) == 1
    assert philox.threshold(0.9999) == 255
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout_p"):
            philox.threshold(bad)
    share = 1 - philox.kept(torch.tensor(3), (2, 4, 256, 256), 26).double().mean()
    assert abs(float(share) - 26 / 256) < 4 * (0.1 * 0.9 / (2 * 4 * 256 * 256)) ** 0.5


CASES = [
    pytest.param({}, id="causal"),
    pytest.param({"causal": False}, id="full"),
    pytest.param({"dropout_p": 0.3, "seed": SEED}, id="dropout"),
    pytest.param({"cu_seqlens": CUTS, "dropout_p": 0.1, "seed": 5}, id="documents"),
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("shared", [1, 4])
def test_operator_equals_reference_and_finite_differences(options: dict, shared: int) -> None:
    q, k, v = rand(2, 9, 4, 8), rand(2, 9, shared, 8, seed=1), rand(2, 9, shared, 8, seed=2)
    inputs = [part.requires_grad_(True) for part in (q, k, v)]
    ours, ours_lse = hk.attention(*inputs, impl="triton", return_lse=True, **options)
    plain, lse = hk.attention(*inputs, impl="reference", return_lse=True, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours_lse, lse, rtol=1e-12, atol=1e-12)
    pull = rand(*ours.shape, seed=3)
    pull_lse = rand(*lse.shape, seed=4)
    got = torch.autograd.grad((ours, ours_lse), inputs, (pull, pull_lse))
    expected = torch.autograd.grad((plain, lse), inputs, (pull, pull_lse))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    small = [part[:1, :9, :, :4].detach().requires_grad_(True) for part in inputs]
    few = dict(options, cu_seqlens=CUTS[:1]) if "cu_seqlens" in options else options
    assert torch.autograd.gradcheck(lambda *x: hk.attention(*x, impl="triton", **few), small)


@pytest.mark.parametrize("options", CASES)
def test_packed_equals_separate(options: dict) -> None:
    qkv = rand(2, 9, 3, 2, 8).requires_grad_(True)
    packed = hk.attention(qkv, impl="triton", **options)
    separate = hk.attention(*qkv.unbind(2), impl="triton", **options)
    assert torch.equal(packed, separate)
    pull = rand(*packed.shape, seed=1)
    ours, theirs = (torch.autograd.grad(out, qkv, pull)[0] for out in (packed, separate))
    assert torch.equal(ours, theirs)


def test_any_strides_and_cached_keys() -> None:
    wide = rand(2, 3, 12, 16).transpose(1, 2)[..., ::2]
    keys = rand(2, 12, 3, 8, seed=1)
    out = hk.attention(wide[:, 5:], keys, keys, impl="triton")
    expected = hk.attention(wide.contiguous()[:, 5:], keys, keys, impl="reference")
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match="at most S"):
        hk.attention(keys, keys[:, :5], keys[:, :5])
    with pytest.raises(ValueError, match="G dividing H"):
        hk.attention(keys, keys[:, :, :2], keys[:, :, :2])


def test_half_precision_and_autocast() -> None:
    qkv = rand(1, 40, 3, 2, 16, dtype=torch.float32)
    exact = hk.attention(qkv.double(), impl="reference", dropout_p=0.1, seed=1)
    for dtype, limit in ((torch.bfloat16, 6e-3), (torch.float16, 1e-3)):
        low = hk.attention(qkv.to(dtype), impl="triton", dropout_p=0.1, seed=1)
        assert low.dtype == dtype
        assert (low.double() - exact).norm() / exact.norm() < limit
    low = qkv.bfloat16().requires_grad_(True)
    for impl in ("triton", "reference"):
        plain = hk.attention(low, impl=impl, dropout_p=0.1, seed=1)
        (grad,) = torch.autograd.grad(plain.sum(), low)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # products stay in fp32 within
            cast = hk.attention(qkv, impl=impl, dropout_p=0.1, seed=1)
            made = hk.attention(low, impl=impl, dropout_p=0.1, seed=1)
            assert torch.equal(cast, plain)
            if impl == "triton":  # autograd repeats the reference's products, under autocast
                assert torch.equal(torch.autograd.grad(made.sum(), low)[0], grad)


def test_bounds_from_boundaries_and_from_ids() -> None:
    bounds = hk.document_bounds(CUTS, 9)
    assert bounds[0].tolist() == [[0, 0, 0, 3, 3, 3, 3, 7, 7], [0] * 9]
    assert bounds[1].tolist() == [[3, 3, 3, 7, 7, 7, 7, 9, 9], [9] * 9]
    ids = torch.tensor([[4, 4, 4, 1, 1, 1, 1, 4, 4], [0] * 9])
    assert torch.equal(hk.document_bounds(ids=ids), bounds)
    qkv = rand(2, 9, 3, 2, 4)
    for impl in ("triton", "sdpa", "reference"):
        torch.testing.assert_close(
            hk.attention(qkv, bounds=bounds, impl=impl),
            hk.attention(qkv, mask=hk.document_mask(CUTS, 9)),
        )
    for wrong in ({}, {"ids": ids, "cu_seqlens": CUTS}, {"cu_seqlens": CUTS}, {"ids": ids[0]}):
        with pytest.raises(ValueError, match="ids"):
            hk.document_bounds(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bounds"):
        hk.attention(qkv, bounds=bounds[:, :1])


def test_dispatch_says_what_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = rand(1, 4, 3, 2, 64, dtype=torch.float32)
    assert hk.explain(qkv).impl == "sdpa"
    assert hk.explain(qkv, dropout_p=0.1).impl == "sdpa"
    keyed = hk.explain(qkv, dropout_p=0.1, seed=True)
    assert (keyed.impl, "keyed" in keyed.reason) == ("triton", True)
    with pytest.raises(ValueError, match="keyed"):
        hk.attention(qkv, dropout_p=0.1, seed=1, impl="sdpa")
    with pytest.raises(ValueError, match="mask"):
        hk.attention(qkv, mask=torch.ones(4, 4, dtype=torch.bool), impl="triton")
    with pytest.raises(ValueError, match="must be one of"):
        hk.attention(qkv, impl="cuda")
    monkeypatch.setenv("HORNBOOK_KERNELS", "triton")
    assert hk.explain(qkv).impl == "triton"
    monkeypatch.setenv("HORNBOOK_KERNELS", "fast")
    with pytest.raises(ValueError, match="HORNBOOK_KERNELS"):
        hk.attention(qkv)


def test_dispatch_on_a_card_follows_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    from hornbook_kernels import dispatch

    q = (torch.device("cuda"), torch.bfloat16, 2048, 64)
    odd = (*q[:3], 80)
    monkeypatch.setattr(dispatch, "card", lambda device: ("Card", 90))
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    assert "on Card" in dispatch.choose(*q).reason
    assert dispatch.choose(*q).impl == "sdpa"
    assert dispatch.choose(*q, lse=True).impl == "triton"
    assert dispatch.choose(*odd, lse=True).impl == "reference"
    row = {"card": "Card", "dtype": "bfloat16", "head_dim": 64, "packed": False, "grouped": False,
           "causal": True, "dropout": False, "documents": True, "reason": "1.30x"}  # fmt: skip
    rows = [row | {"length": 1024, "ratio": 1.3}, row | {"length": 8192, "ratio": 0.9}]
    monkeypatch.setattr(dispatch, "_MEASURED", rows)
    assert dispatch.choose(*q, documents=True).impl == "triton"
    for other in ("packed", "grouped"):
        assert dispatch.choose(*q, documents=True, **{other: True}).impl == "sdpa"
    assert dispatch.choose(*q, documents=True, causal=False).impl == "sdpa"
    assert dispatch.choose(*q).impl == "sdpa"
    far = (*q[:2], 2049, 64)
    assert "no measurement" in dispatch.choose(*far, documents=True).reason
    near = (*q[:2], 512, 64)
    assert dispatch.choose(*near, documents=True).impl == "triton"
    rows[0]["length"] = 4000
    assert dispatch.choose(*q, documents=True).impl == "triton"
    rows[1]["length"] = 2000
    assert dispatch.choose(*q, documents=True).impl == "sdpa"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in dispatch.choose(*q).reason
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    with pytest.raises(ValueError, match="not installed"):
        dispatch.choose(*q, impl="triton")
    assert dispatch.choose(*q, lse=True).impl == "reference"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("lengths", [(1024,), (1024, 2048)])
def test_a_record_does_not_break_a_graph_of_any_length(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hornbook_kernels import dispatch

    card = torch.compiler.assume_constant_result(lambda device: ("Card", 90))
    monkeypatch.setattr(dispatch, "card", card)
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    row = {"card": "Card", "dtype": "bfloat16", "head_dim": 64, "packed": False, "grouped": False,
           "causal": True, "dropout": False, "documents": False, "reason": "?"}  # fmt: skip
    rows = [row | {"length": length, "ratio": 1024 / length} for length in lengths]
    monkeypatch.setattr(dispatch, "_MEASURED", rows)

    def choice(x: Tensor) -> Tensor:
        made = dispatch.choose(torch.device("cuda:0"), torch.bfloat16, x.shape[0], 64)
        return x + (1 if made.impl == "triton" else 2)

    torch._dynamo.reset()
    compiled = torch.compile(choice, fullgraph=True, backend="eager", dynamic=True)
    for length in (1100, 1200, 1990):
        assert torch.equal(compiled(torch.zeros(length)), choice(torch.zeros(length)))


@pytest.mark.parametrize("impl", ["auto", "sdpa", "reference"])
def test_bounds_may_be_on_another_device(impl: str) -> None:
    bounds = hk.document_bounds(CUTS, 9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        qkv = torch.empty(2, 9, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
        assert hk.attention(qkv, bounds=bounds, impl=impl).device.type == "cuda"


def test_tokens_too_far_apart_are_refused() -> None:
    pytest.importorskip("triton")
    import importlib

    module: Any = importlib.import_module("hornbook_kernels.attention")
    near = torch.empty(1, 2, 1, 64, device="meta")
    far = torch.empty_strided((1, 2, 1, 64), (2**25, 2**24, 64, 1), device="meta")
    rest = (None, None, 0, True, 0.1)
    lse = torch.empty(1, 1, 2, device="meta")
    wide = torch.empty_strided((1, 2, 3, 1, 64), (2**25, 2**24, 64, 64, 1), device="meta")
    for call, arguments in (
        (module._forward_cuda, (near, far, near)),
        (module._backward_cuda, (far, None, near, near, near, near, lse)),
        (module._backward_cuda, (near, None, near, near, far, near, lse)),
        (module._packed_backward_cuda, (near, None, wide, near, lse)),
    ):
        with pytest.raises(ValueError, match=r"2\*\*24"):
            call(*arguments, *rest)
    assert module._dense(far[:, :1]) is not None  # one token is nowhere apart from another


def operator_arguments(documents: bool) -> tuple[Any, ...]:
    bounds = hk.document_bounds(CUTS, 9) if documents else None
    seed = torch.tensor(7) if documents else None
    return bounds, seed, 26 if documents else 0, True, 0.35


@pytest.mark.parametrize("documents", [False, True])
def test_opcheck(documents: bool) -> None:
    rest = operator_arguments(documents)
    q, k, v = (rand(2, 9, 2, 4, seed=i).requires_grad_(True) for i in range(3))
    ops = torch.ops.hornbook
    torch.library.opcheck(ops.attention, (q, k, v, *rest))
    qkv = rand(2, 9, 3, 2, 4).requires_grad_(True)
    torch.library.opcheck(ops.attention_packed, (qkv, *rest))
    plain = [part.detach() for part in (q, k, v)]
    out, lse = ops.attention(*plain, *rest)
    torch.library.opcheck(ops.attention_backward, (out, lse, *plain, out, lse, *rest))
    torch.library.opcheck(ops.attention_packed_backward, (out, None, qkv.detach(), out, lse, *rest))


def test_fake_and_meta_shapes_dtypes_strides() -> None:
    with FakeTensorMode():
        qkv = torch.empty(2, 9, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
        out, lse = torch.ops.hornbook.attention_packed(qkv, None, None, 0, True, 0.125)
        grad = torch.ops.hornbook.attention_packed_backward(
            out, None, qkv, out, lse, None, None, 0, True, 0.125
        )
    assert (out.device.type, out.shape, out.dtype) == ("cuda", (2, 9, 4, 64), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 4, 9), torch.float32)
    assert (grad.shape, grad.stride()) == (qkv.shape, qkv.stride())
    meta = torch.empty(2, 9, 3, 4, 64, device="meta", requires_grad=True)
    made = torch.ops.hornbook.attention(*meta.unbind(2), None, None, 0, True, 0.125)[0]
    made.sum().backward()
    assert meta.grad is not None
    assert meta.grad.shape == meta.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_without_graph_breaks() -> None:
    bounds = hk.document_bounds(CUTS, 9)

    def step(qkv: Tensor, seed: Tensor) -> Tensor:
        out = hk.attention(qkv, bounds=bounds, dropout_p=0.2, seed=seed, impl="triton")
        return out.square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(1), torch.tensor(2)):
        ours, theirs = (rand(2, 9, 3, 2, 8).requires_grad_(True) for _ in range(2))
        a, b = compiled(ours, seed), step(theirs, seed)
        torch.testing.assert_close(a, b)
        a.backward()
        b.backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_and_checkpointing() -> None:
    class Block(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return hk.attention(qkv, impl="triton")  # type: ignore[no-any-return]

    qkv = rand(1, 6, 3, 2, 8, dtype=torch.float32)
    exported = torch.export.export(Block(), (qkv,))
    torch.testing.assert_close(exported.module()(qkv), Block()(qkv))

    def dropped(x: Tensor) -> Tensor:
        return hk.attention(x, dropout_p=0.5, impl="triton")  # type: ignore[no-any-return]

    grads = []
    for wrap in (lambda x: dropped(x), lambda x: checkpoint(x)):
        x = qkv.clone().requires_grad_(True)
        torch.manual_seed(3)
        wrap(x).square().sum().backward()
        grads.append(x.grad)

    assert torch.equal(grads[0], grads[1])


def checkpoint(x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint as recompute

    made: Tensor = recompute(
        lambda y: hk.attention(y, dropout_p=0.5, impl="triton"), x, use_reentrant=False
    )
    return made
