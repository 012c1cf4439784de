"""Every kernel in Triton's interpreter against fp64: run by `test_interpreter.py`, in a process of
its own with TRITON_INTERPRET=1, because interpreted kernels can not be compiled any more.

Inputs lie in buffers full of NaN, so a stray read shows; outputs are poisoned with NaN between
guard bands, so a missing or a stray write shows. Races can not show here: programs run in turn.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

import hornbook_kernels as hk
from hornbook_kernels import philox, reference
from hornbook_kernels.documents import visible
from hornbook_kernels.gpu import attention, configs, cross_entropy, rotary
from hornbook_kernels.gpu.configs import Config

assert interpreter.InterpretedFunction in type(attention.forward_kernel).__mro__

# Relative Frobenius error against fp64.
LIMIT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
DTYPES = list(LIMIT)
GUARD = 64
SEED = -1234567890123456789


def _bf16(x: np.ndarray) -> np.ndarray:
    """fp32 to the bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _fp32(handle: Any) -> np.ndarray:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture(autouse=True, scope="module")
def _bf16_shim() -> Iterator[None]:
    """The interpreter multiplies bf16 as the integers it stores, and truncates casts to it."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return dot(self, a, b, d, *rest)
        return interpreter.TensorHandle(np.matmul(_fp32(a), _fp32(b)) + d.data, d.dtype.scalar)

    def cast_impl(self: Any, src: Any, kind: Any) -> Any:
        if src.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_bf16(src.data), tl.bfloat16)
        return cast(self, src, kind)

    patch = pytest.MonkeyPatch()
    patch.setattr(builder, "create_dot", create_dot)
    # The conversions call `cast_impl` by its name, at each use.
    patch.setattr(builder, "cast_impl", cast_impl)
    yield
    patch.undo()


def guarded(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A contiguous tensor full of NaN and the buffer around it, full of NaN too."""
    size = int(np.prod(shape))
    buffer = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
    return buffer[GUARD : GUARD + size].view(shape), buffer


def rand(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    inside, _ = guarded(*shape, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    return inside.copy_(torch.randn(shape, generator=generator))


class Guarded:
    """Stands for torch in a module of launches: what it allocates is poisoned and guarded."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: Any) -> Tensor:
        self.made.append(guarded(*shape, dtype=dtype))
        return self.made[-1][0]

    def empty_like(self, x: Tensor) -> Tensor:
        return self.empty(tuple(x.shape), dtype=x.dtype, device=None)

    def check(self) -> None:
        for inside, buffer in self.made:
            check_guards(inside, buffer)


def check_guards(inside: Tensor, buffer: Tensor) -> None:
    assert not inside.isnan().any(), "an output was not written, or a stray NaN was read"
    assert buffer[:GUARD].isnan().all()
    assert buffer[-GUARD:].isnan().all()


def close(made: Tensor, exact: Tensor, limit: float, scale: float = 0.0) -> None:
    error = float((made.double() - exact).norm())
    assert error <= limit * max(float(exact.norm()), scale)


def run_attention(
    batch: int,
    t: int,
    s: int,
    heads: int,
    shared: int,
    dim: int,
    dtype: torch.dtype,
    *,
    cuts: list[list[int]] | None = None,
    dropout: float = 0.0,
    causal: bool = True,
    packed: bool = False,
    lse_too: bool = False,
    tiles: tuple[Config, Config, Config] | tuple[None, None, None] = (None, None, None),
) -> None:
    """Forward and backward against fp64 autograd."""
    level, scale = philox.threshold(dropout), 1.3 * dim**-0.5
    if packed:
        qkv = rand(batch, t, 3, heads, dim, seed=1, dtype=dtype)
        q, k, v = qkv.unbind(2)
        grad, buffer = guarded(*qkv.shape, dtype=dtype)
        grads = grad.unbind(2)
    else:
        q = rand(batch, heads, t, dim, seed=1, dtype=dtype).transpose(1, 2)
        k = rand(batch, s, shared, dim, seed=2, dtype=dtype)
        v = rand(s, batch, shared, dim, seed=3, dtype=dtype).transpose(0, 1)
        made = [guarded(*x.shape, dtype=dtype) for x in (q, k, v)]
        grads = tuple(inside for inside, _ in made)
    dout = rand(heads, t, batch, dim, seed=4, dtype=dtype).permute(2, 1, 0, 3)
    bounds = hk.document_bounds(cuts, t) if cuts else None
    seed = torch.tensor(SEED)
    patch = pytest.MonkeyPatch()
    memory = Guarded()
    patch.setattr(attention, "torch", memory)
    with patch.context():
        rest = (bounds, seed if level else None, level, causal, scale)
        out, lse = attention.forward(q, k, v, *rest, architecture=90, config=tiles[0])
        dlse = rand(batch, heads, t, seed=5, dtype=torch.float32) if lse_too else None
        attention.backward(
            dout, dlse, q, k, v, out, lse, *rest, grads, architecture=90,
            config_q=tiles[1], config_kv=tiles[2],
        )  # fmt: skip
    patch.undo()
    memory.check()
    if packed:
        check_guards(grad, buffer)
    else:
        for inside, around in made:
            check_guards(inside, around)
    exact = [x.double().requires_grad_(True) for x in (q, k, v)]
    mask = None if bounds is None else visible(bounds)
    plain, plain_lse = reference.attention(
        *exact, mask=mask, dropout_p=dropout, seed=seed, causal=causal, scale=scale
    )
    pulls = (dout.double(), torch.zeros_like(plain_lse) if dlse is None else dlse.double())
    expected = torch.autograd.grad((plain, plain_lse), exact, pulls)
    close(out, plain.detach(), LIMIT[dtype])
    close(lse, plain_lse.detach(), 1e-6, scale=plain_lse.numel() ** 0.5)
    # A single token's dq and dk are exactly zero; rounding is of the size of the other gradient.
    most = max(float(part.norm()) for part in expected)
    for ours, theirs in zip(grads, expected, strict=True):
        close(ours, theirs, 1.5 * LIMIT[dtype], scale=0.3 * most)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 63, 65, 127, 200])
def test_attention_lengths(length: int, dtype: torch.dtype) -> None:
    cuts = [[0, length // 3, length // 3, length // 2, length]]
    run_attention(1, length, length, 1, 1, 64, dtype, cuts=cuts, dropout=0.1, packed=True)


@pytest.mark.parametrize(
    ("t", "s", "heads", "shared", "dim", "options"),
    [
        (130, 130, 2, 2, 64, {}),
        (130, 130, 2, 1, 64, {"dropout": 0.3, "lse_too": True}),
        (70, 150, 4, 2, 32, {"dropout": 0.1}),
        (129, 65, 2, 2, 64, {"causal": False, "dropout": 0.1}),
        (64, 100, 2, 1, 96, {"causal": False}),
        (65, 65, 2, 1, 128, {"lse_too": True}),
    ],
)
def test_attention_shapes(
    t: int, s: int, heads: int, shared: int, dim: int, options: dict[str, Any]
) -> None:
    run_attention(2 if dim == 32 else 1, t, s, heads, shared, dim, torch.float16, **options)


def test_attention_many_documents() -> None:
    ends = [0, 1, 2, 2, 63, 64, 65, 100, 127, 128, 129, 190, 200]
    run_attention(2, 200, 200, 1, 1, 64, torch.float32, cuts=[ends, [0, 200]], dropout=0.2)


@pytest.mark.parametrize("rows", [32, 128])
@pytest.mark.parametrize("columns", [32, 128])
def test_other_tiles_see_the_same_bits(rows: int, columns: int) -> None:
    tile = Config(rows, columns, 4, 1)
    cuts = [[0, 40, 150]]
    run_attention(1, 150, 150, 1, 1, 32, torch.float32, cuts=cuts, dropout=0.3, tiles=(tile,) * 3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.integers(1, 150), st.sampled_from([(1, 1), (2, 1), (2, 2)]), st.sampled_from(DTYPES),
    st.booleans(), st.data(),
)  # fmt: skip
def test_attention_drawn(
    length: int, heads: tuple[int, int], dtype: torch.dtype, dropped: bool, data: st.DataObject
) -> None:
    cuts = data.draw(st.none() | st.lists(st.integers(0, length), max_size=6).map(sorted))
    run_attention(
        1, length, length, *heads, 32, dtype, dropout=0.1 if dropped else 0.0,
        cuts=None if cuts is None else [[0, *cuts, length]],
    )  # fmt: skip


@pytest.mark.parametrize(("t", "s", "causal"), [(0, 0, True), (0, 70, False), (5, 0, False)])
def test_attention_of_no_tokens(t: int, s: int, causal: bool) -> None:
    q, k = (rand(1, length, 2, 32, seed=1, dtype=torch.float32) for length in (t, s))
    out, lse = attention.forward(q, k, k, None, None, 0, causal, 0.1, architecture=90)
    plain, plain_lse = reference.attention(q, k, k, causal=causal, scale=0.1)
    assert torch.equal(out, plain)
    assert torch.equal(lse, plain_lse)
    grads = tuple(torch.full_like(x, float("nan")) for x in (q, k, k))
    attention.backward(
        out, None, q, k, k, out, lse, None, None, 0, causal, 0.1, grads, architecture=90
    )
    assert all(not grad.any() for grad in grads)


def test_far_scores_do_not_overflow() -> None:
    """Rows whose log-sum-exp is far below and far above zero, as long training makes them."""
    q = rand(1, 70, 1, 64, seed=1, dtype=torch.float16)
    for sign in (-1.0, 1.0):
        k = (sign * q.abs().sum(-1, keepdim=True) * q.sign()).to(torch.float16)
        out, lse = attention.forward(q, k, q, None, None, 0, True, 1.0, architecture=90)
        plain, exact = reference.attention(*(x.double() for x in (q, k, q)), scale=1.0)
        assert float(exact.abs().max()) > 1000
        close(out, plain, 1e-3)
        close(lse, exact, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(dtype: torch.dtype, interleaved: bool) -> None:
    cos, sin = hk.rotary_tables(70, 24)
    bounds = hk.document_bounds([[0, 5, 37], [0, 37]], 37)
    layout = "interleaved" if interleaved else "half"
    for restart in (False, True):
        wide = rand(2, 37, 3, 5, 40, seed=1, dtype=dtype)
        x = wide[..., :36]  # heads do not touch: what lies between them must stay
        starts = bounds[0] if restart else None
        exact = hk.apply_rotary(
            x.double(), cos[:37].double(), sin[:37].double(),
            bounds=bounds if restart else None, layout=layout,
        )  # fmt: skip
        out, buffer = guarded(2, 37, 3, 5, 36, dtype=dtype)
        rotary.rotate(x, out, cos, sin, starts, interleaved, False)
        check_guards(out, buffer)
        close(out, exact, LIMIT[dtype])
        assert torch.equal(out[:, :, 2], x[:, :, 2])
        assert torch.equal(out[..., 24:], x[..., 24:])
        before = wide.clone()
        rotary.rotate(x, x, cos, sin, starts, interleaved, False)
        assert torch.equal(x, out)
        assert torch.equal(wide[..., 36:], before[..., 36:])
        by_row = (table[:37].expand(2, -1, -1).contiguous() for table in (cos, sin))
        if not restart:
            rotary.rotate(x, x, *by_row, None, interleaved, True)
            close(x, before[..., :36].double(), 2 * LIMIT[dtype])


def test_rotary_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for more rows than a grid is deep."""
    x = rand(3, 9, 3, 2, 32, seed=1, dtype=torch.float32)
    cos, sin = (rand(3, 9, 8, seed=seed, dtype=torch.float32) for seed in (2, 3))
    starts = hk.document_bounds([[0, 4, 9], [0, 9], [0, 1, 9]], 9)[0]
    made = []
    for depth in (3, 2):
        monkeypatch.setattr(rotary, "_DEPTH", depth)
        for restart in (None, starts):
            out, buffer = guarded(*x.shape, dtype=torch.float32)
            rotary.rotate(x, out, cos, sin, restart, False, False)
            check_guards(out, buffer)
            made.append(out)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the row that is all NaN
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 100, 4096, 9001])
def test_cross_entropy(dtype: torch.dtype, vocabulary: int) -> None:
    logits = rand(5, vocabulary + 3, seed=1, dtype=dtype)[:, :vocabulary]
    logits *= 8
    logits[3] = float("nan")
    labels = torch.tensor([0, vocabulary - 1, vocabulary // 2, 0, 0])
    factors = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])
    exact = logits.double().nan_to_num().requires_grad_(True)
    lse = exact.logsumexp(-1)
    losses = F.cross_entropy(exact, labels, reduction="none") + 0.01 * lse.square()
    (expected,) = torch.autograd.grad(losses, exact, factors.double())
    losses = losses * factors
    for together in (True, False):
        x, buffer = guarded(*logits.shape, dtype=dtype)
        x.copy_(logits)
        (made, around), (made_lse, _) = (guarded(5, dtype=torch.float32) for _ in range(2))
        cross_entropy.run(x, labels, factors, made, made_lse, 0.01, together)
        if not together:
            assert torch.equal(x.nan_to_num(), logits.nan_to_num())
            cross_entropy.run(x, labels, factors, None, made_lse, 0.01, True)
        check_guards(made, around)
        check_guards(x, buffer)
        close(made, losses.detach(), 1e-5, scale=1.0)
        close(x, expected, LIMIT[dtype], scale=0.1)


def test_a_label_outside_the_vocabulary_has_no_number_for_a_loss() -> None:
    logits = rand(5, 10, seed=1, dtype=torch.float32)
    labels = torch.tensor([3, -1, 10, 7, 2**40])
    losses, lse = (torch.empty(5) for _ in range(2))
    for gradient in (False, True):
        cross_entropy.run(logits, labels, torch.ones(5), losses, lse, 0.0, gradient)
        assert losses.isnan().tolist() == [False, True, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("length", [15, 16, 17, 64, 128, 257, 512])
def test_attention_grid(
    length: int, documents: bool, dropout: float, dim: int, dtype: torch.dtype
) -> None:
    cuts = [[0, length // 5, length // 2, length]] if documents else None
    run_attention(1, length, length, 2, 1, dim, dtype, cuts=cuts, dropout=dropout)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", configs.ARCHITECTURES)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_configuration(architecture: int, dim: int, extras: bool, dtype: torch.dtype) -> None:
    names = ("forward", "backward_q", "backward_kv")
    tiles = tuple(configs.attention(name, architecture, dim, dtype, extras) for name in names)
    run_attention(
        1, 200, 200, 1, 1, dim, dtype, cuts=[[0, 70, 200]] if extras else None,
        dropout=0.1 if extras else 0.0, tiles=tiles,  # type: ignore[arg-type]
    )  # fmt: skip
