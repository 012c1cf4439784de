"""Rotary and cross-entropy operators on a CPU: conventions, documents, in place, torch's checks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hornbook_kernels as hk

CUTS = [[0, 3, 3, 7, 9], [0, 9]]
OPS = torch.ops.hornbook


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def tables(length: int, dims: int) -> list[Tensor]:
    return [table.double() for table in hk.rotary_tables(length, dims)]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_rotary_against_complex_numbers(layout: str, restart: bool, packed: bool) -> None:
    """Each pair is a complex number that turns by position times frequency."""
    dims = 6
    x = rand(2, 9, 3, 2, 8) if packed else rand(2, 9, 2, 8)
    bounds = hk.document_bounds(CUTS, 9)
    start = bounds[0] if restart else torch.zeros_like(bounds[0])
    position = torch.arange(9) - start
    frequency = 10_000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = (position.float()[..., None] * frequency).double()
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = x[:, :, :2] if packed else x
    pairs = turned[..., :dims]
    shape = (*pairs.shape[:-1], 2, 3) if layout == "half" else (*pairs.shape[:-1], 3, 2)
    axis = -2 if layout == "half" else -1
    real, imaginary = pairs.reshape(shape).unbind(axis)
    while turn.dim() < real.dim():
        turn = turn.unsqueeze(2)
    made = torch.complex(real, imaginary) * turn
    expected = x.clone()
    view = expected[:, :, :2] if packed else expected
    view[..., :dims] = torch.stack((made.real, made.imag), axis).flatten(-2)
    cos, sin = tables(9, dims)
    options = {"bounds": bounds if restart else None, "layout": layout}
    got = hk.apply_rotary(x, cos, sin, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    back = hk.apply_rotary(got, cos, sin, inverse=True, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(back, x)
    in_place = x.clone()
    assert hk.apply_rotary_(in_place, cos, sin, **options) is not None  # type: ignore[arg-type]
    assert torch.equal(in_place, got)


def test_rotary_in_place_has_the_same_gradient() -> None:
    cos, sin = tables(9, 4)
    grads = []
    for turn in (hk.apply_rotary, hk.apply_rotary_):
        x = rand(2, 9, 3, 2, 8).requires_grad_(True)
        turn(x * 2, cos, sin).pow(3).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    x = rand(1, 9, 2, 8).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: hk.apply_rotary_(y * 1, cos, sin), x)
    with pytest.raises(RuntimeError, match="leaf"):
        hk.apply_rotary_(x, cos, sin)
    with pytest.raises(ValueError, match="layout"):
        hk.apply_rotary(x, cos, sin, layout="neox")
    with pytest.raises(ValueError, match="bounds"):
        hk.apply_rotary(x, cos, sin, bounds=hk.document_bounds([[0, 8]], 8))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_cross_entropy_and_its_gradient_over_the_logits(reduction: str, z_loss: float) -> None:
    labels = torch.tensor([[1, -100, 4], [0, 2, 2]])
    weights = rand(2, 3, seed=1).abs()
    start = rand(2, 3, 5, seed=2)
    ours, theirs = start.clone().requires_grad_(True), start.clone().requires_grad_(True)
    copied = ours * 1
    loss = hk.cross_entropy(copied, labels, weights=weights, reduction=reduction, z_loss=z_loss)
    plain = F.cross_entropy(theirs.flatten(0, 1), labels.flatten(), reduction="none")
    plain = plain.reshape(2, 3) + z_loss * theirs.logsumexp(-1).square() * (labels != -100)
    plain = plain * weights
    if reduction != "none":
        plain = plain.sum()
    if reduction == "mean":
        plain = plain / (weights * (labels != -100)).sum()
    torch.testing.assert_close(loss, plain)
    loss.sum().backward(retain_graph=True)
    plain.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(copied, theirs.grad)  # the logits have become their gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_cross_entropy_spares_a_leaf_and_checks_its_input() -> None:
    logits = rand(4, 5).requires_grad_(True)
    before = logits.detach().clone()
    hk.cross_entropy(logits, torch.arange(4)).backward()
    assert torch.equal(logits.detach(), before)
    for wrong in ({"reduction": "max"}, {"labels": torch.arange(3)}):
        with pytest.raises(ValueError, match=r"must be|do not fit"):
            hk.cross_entropy(**({"logits": logits, "labels": torch.arange(4)} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("view", [lambda x: x.view(-1, 5), lambda x: x[:, :-1], lambda x: x[0]])
def test_cross_entropy_spares_a_leaf_of_which_it_is_given_a_view(view: Any) -> None:
    leaf = rand(2, 4, 5).requires_grad_(True)
    before = leaf.detach().clone()
    labels = torch.zeros(view(leaf).shape[:-1], dtype=torch.int64)
    hk.cross_entropy(view(leaf), labels).backward()
    assert torch.equal(leaf.detach(), before)
    other = before.clone().requires_grad_(True)
    hk.reference.cross_entropy(view(other), labels).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the view: the compiler asks for it
def test_a_compiled_cross_entropy_spares_what_it_is_given() -> None:
    labels = torch.tensor([1, -100, 4, 0])
    torch._dynamo.reset()
    loss = torch.compile(lambda x: hk.cross_entropy(x, labels), fullgraph=True, backend="aot_eager")
    leaf = rand(2, 2, 5).requires_grad_(True)
    before = leaf.detach().clone()
    for _ in range(2):
        made = loss(leaf.view(-1, 5))
        made.backward(retain_graph=True)
        made.backward()
    assert torch.equal(leaf.detach(), before)
    other = before.clone().requires_grad_(True)
    (4 * F.cross_entropy(other.view(-1, 5), labels)).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_without_a_loss_has_zeros_for_gradients(weighted: bool) -> None:
    labels = torch.tensor([1, 0, 4]) if weighted else torch.full((3,), -100)
    weights = torch.zeros(3) if weighted else None
    for module in (hk, hk.reference):
        logits = rand(3, 5).requires_grad_(True)
        module.cross_entropy(logits * 1, labels, weights=weights).backward()
        parts = [rand(*shape).requires_grad_(True) for shape in ((3, 4), (5, 4), (5,))]
        module.linear_cross_entropy(*parts, labels, weights=weights).backward()
        for part in (logits, *parts):
            assert part.grad is not None
            assert torch.equal(part.grad, torch.zeros_like(part))


def test_an_ignored_token_takes_no_notice_of_its_gradient() -> None:
    labels = torch.tensor([1, -100, 4])
    grads = []
    for function in (hk.cross_entropy, hk.reference.cross_entropy):
        logits = rand(3, 5).requires_grad_(True)
        losses = function(logits * 1, labels, reduction="none")
        losses.backward(torch.tensor([1.0, float("inf"), 2.0], dtype=torch.float64))
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)


def test_rows_without_loss_may_hold_anything() -> None:
    logits = rand(3, 5)
    logits[1] = float("nan")
    labels = torch.tensor([1, -100, 2])
    ours = logits.clone().requires_grad_(True)
    loss = hk.cross_entropy(ours, labels)
    loss.backward()
    expected = F.cross_entropy(logits[::2], labels[::2])
    torch.testing.assert_close(loss.detach(), expected)
    assert ours.grad is not None
    assert torch.equal(ours.grad[1], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("z_loss", [0.0, 0.02])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_hidden_states_without_loss_may_be_anything(bad: float, z_loss: float) -> None:
    hidden, weight, bias = rand(6, 4), rand(5, 4, seed=1), rand(5, seed=2)
    labels = torch.tensor([3, -100, 0, 2, -100, 1])
    weights = torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0, 1.0])
    hidden[1], hidden[2] = bad, -bad
    kept = torch.tensor([0, 3, 4, 5])
    made = []
    for rows, function in ((slice(None), hk), (slice(None), hk.reference), (kept, hk)):
        parts = [part.clone().requires_grad_(True) for part in (hidden[rows], weight, bias)]
        loss = function.linear_cross_entropy(
            *parts, labels[rows], weights=weights[rows], z_loss=z_loss
        )
        loss.backward()
        grads = [part.grad for part in parts if part.grad is not None]
        if rows != slice(None):
            grads[0] = torch.zeros_like(hidden).index_copy(0, kept, grads[0])
        made.append((loss.detach(), *grads))
    torch.testing.assert_close(made[0], made[2])
    # Autograd multiplies what is not finite by zero: of the plain form only the loss is compared.
    torch.testing.assert_close(made[1][0], made[2][0])


@pytest.mark.parametrize("chunk", [2, 7])
def test_linear_cross_entropy_with_z_loss(chunk: int) -> None:
    labels = torch.tensor([3, -100, 0, 2, 2, 1, 0])
    inputs = [rand(7, 4), rand(5, 4, seed=1), rand(5, seed=2)]
    inputs = [part.requires_grad_(True) for part in inputs]
    ours = hk.linear_cross_entropy(*inputs, labels, chunk=chunk, z_loss=0.02)
    plain = hk.cross_entropy(F.linear(*inputs), labels, z_loss=0.02)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(
        lambda *x: hk.linear_cross_entropy(*x, labels, chunk=chunk, z_loss=0.02), inputs
    )


def test_head_gradient_is_summed_in_fp32() -> None:
    """Many small steps: summed in bf16 they would stall."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_(True)
    labels = torch.zeros(4096, dtype=torch.int64)
    hk.linear_cross_entropy(hidden, weight, None, labels, reduction="sum", chunk=1).backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-2048.0, 2048.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_have_the_scale_of_the_mean(dtype: torch.dtype) -> None:
    """1 / 2040 is 0.39% off in bf16, and an error that all gradients share does not average out."""
    parts = [rand(2040, 16), rand(30, 16, seed=1) * 0.3, rand(30, seed=2)]
    low = [part.to(dtype).requires_grad_(True) for part in parts]
    wide = [part.detach().double().requires_grad_(True) for part in low]
    labels = torch.arange(2040) % 30
    (made,) = torch.autograd.grad(hk.linear_cross_entropy(*low, labels), low[:1])
    (exact,) = torch.autograd.grad(hk.reference.linear_cross_entropy(*wide, labels), wide[:1])
    assert abs(float((made.double() * exact).sum() / exact.square().sum()) - 1) < 1e-3
    # A scaled loss, whose scale alone is beyond fp16.
    loss = hk.linear_cross_entropy(*low, labels) * 2.0**17
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(loss, low))


def test_losses_refuse_a_second_derivative() -> None:
    labels = torch.tensor([1, 0, 4])
    hidden, weight = (rand(*shape).requires_grad_(True) for shape in ((3, 4), (5, 4)))
    logits = rand(3, 5, seed=1).requires_grad_(True)
    for loss, leaf in (
        (hk.linear_cross_entropy(hidden, weight, None, labels), hidden),
        (hk.cross_entropy(logits, labels), logits),
    ):
        (grad,) = torch.autograd.grad(loss.square(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_bounds_may_be_on_another_device() -> None:
    bounds = hk.document_bounds(CUTS, 9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 9, 3, 4, 64, device="cuda")
        cos, sin = (torch.empty(9, 16, device="cuda") for _ in range(2))
        for turn in (hk.apply_rotary, hk.apply_rotary_):
            assert turn(x, cos, sin, bounds=bounds).device.type == "cuda"


def test_rotary_of_more_rows_than_a_grid_is_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from hornbook_kernels.gpu import rotary

    depths, offsets = [], []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            depths.append(grid[2])
            return lambda *tensors, **_: offsets.append([x.storage_offset() for x in tensors[:5]])

    monkeypatch.setattr(rotary, "rotary_kernel", Kernel())
    x, table = torch.empty(70_000, 5, 1, 1, 32), torch.empty(70_000, 5, 8)
    starts = torch.empty(70_000, 5, dtype=torch.int32)
    rotary.rotate(x, x, table, table, starts, False, False)
    assert depths == [65_535, 70_000 - 65_535]
    assert offsets == [[0] * 5, [65_535 * 5 * n for n in (32, 32, 8, 8, 1)]]
    rotary.rotate(x, x, table[0], table[0], None, False, False)
    assert offsets[3] == [65_535 * 5 * 32] * 2 + [0] * 3


def test_opcheck() -> None:
    cos, sin = tables(9, 4)
    x = rand(2, 9, 3, 2, 8).requires_grad_(True)
    starts = hk.document_bounds(CUTS, 9)[0]
    torch.library.opcheck(OPS.rotary, (x, cos, sin, starts, False, True))
    torch.library.opcheck(OPS.rotary_, (x.detach().clone(), cos, sin, None, True, False))
    logits, labels, factors = rand(4, 5), torch.arange(4), rand(4, seed=1).abs()
    torch.library.opcheck(OPS.cross_entropy, (logits, labels, factors, 0.1))
    lse = logits.logsumexp(-1)
    torch.library.opcheck(OPS.cross_entropy_backward_, (logits, labels, factors, lse, 0.0))
    hidden, weight, bias = (rand(*s).requires_grad_(True) for s in ((4, 3), (5, 3), (5,)))
    for gradients in (True, False):
        for shift in (bias, None):
            learned = [p if gradients or p is None else p.detach() for p in (hidden, weight, shift)]
            torch.library.opcheck(
                OPS.linear_cross_entropy,
                (*learned, labels, factors, torch.float64, 3, 0.0, gradients),
            )


def test_fake_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 9, 3, 4, 64, device="cuda", dtype=torch.bfloat16)
        turned = OPS.rotary(x.transpose(1, 3), x, x, None, False, False)
        hidden, weight = x.new_empty(9, 64), x.new_empty(11, 64)
        labels, factors = torch.empty(9, device="cuda").long(), torch.empty(9, device="cuda")
        low = torch.bfloat16
        made = OPS.linear_cross_entropy(hidden, weight, None, labels, factors, low, 4, 0.0, True)
    assert turned.is_contiguous()
    assert [part.shape for part in made] == [(), (9, 64), (11, 64), (0,)]
    assert made[0].dtype == torch.float32


def test_meta_shapes_and_gradients() -> None:
    """Every function, forward and backward, on tensors that hold nothing."""
    x = torch.empty(2, 9, 3, 4, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    cos, sin = hk.rotary_tables(9, 32, device="meta")
    bounds = torch.empty(2, 2, 9, device="meta", dtype=torch.int32)
    labels = torch.empty(2, 9, device="meta", dtype=torch.int64)
    weight = torch.empty(11, 256, device="meta", requires_grad=True)
    turned = hk.apply_rotary_(hk.apply_rotary(x, cos, sin, bounds=bounds) * 1, cos, sin)
    assert (turned.shape, turned.dtype, turned.is_contiguous()) == (x.shape, x.dtype, True)
    hidden = hk.attention(turned, bounds=bounds).flatten(2).float()
    one = hk.linear_cross_entropy(hidden, weight, None, labels, z_loss=0.1)
    each = hk.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    assert (one.shape, each.shape, each.dtype) == ((), (2, 9), torch.float32)
    (one + each.sum()).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


class Loss(torch.nn.Module):
    """Both rotary functions and both losses."""

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        cos, sin = hk.rotary_tables(x.shape[1], 4)
        hidden = hk.apply_rotary_(hk.apply_rotary(x, cos, sin) * 1, cos, sin).flatten(2)
        loss = hk.linear_cross_entropy(hidden, weight, None, labels, chunk=4)
        return loss + hk.cross_entropy(hidden @ weight.t(), labels)


def loss_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = rand(1, 9, 2, 8, dtype=torch.float32).requires_grad_(True)
    weight = rand(5, 16, seed=1, dtype=torch.float32).requires_grad_(True)
    return x, weight, torch.tensor([[3, -100, 0, 2, 2, 1, 0, 1, 1]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export() -> None:
    inputs = tuple(part.detach() for part in loss_inputs())
    exported = torch.export.export(Loss(), inputs)
    torch.testing.assert_close(exported.module()(*inputs), Loss()(*inputs))


def test_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    grads = []
    for wrapped in (False, True):
        x, weight, labels = loss_inputs()
        block = Loss()
        call = (x, weight, labels)
        loss = checkpoint(block, *call, use_reentrant=False) if wrapped else block(*call)
        loss.backward()
        grads.append((x.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_without_graph_breaks() -> None:
    block = Loss()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, block):
        x, weight, labels = loss_inputs()
        loss = run(x, weight, labels)
        loss.backward()
        results.append((loss.detach(), x.grad, weight.grad))
    torch.testing.assert_close(*results)
