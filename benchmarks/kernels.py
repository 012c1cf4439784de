"""Are our kernels right, and faster than torch's and other peers, on this card, in one run?

On a CPU it checks what a CPU can check and says what it skipped. On a GPU it checks every kernel
against fp64 or fp32, repeats them for equal bits, trains a small model with and without them, times
them beside their peers in turn, and writes `results/kernels.json` with card, versions and date.
Exits with 1 if a check failed or one of ours did not run.

Parts of it run in processes of their own, those that matter most first: what hangs, or spoils the
card's context, loses the rest of its part and no other. A part costs some 5 s to start.

    PYTHONPATH=kernels python benchmarks/kernels.py           # S = 512 to 8192
    PYTHONPATH=kernels python benchmarks/kernels.py --quick   # S = 2048: under 4 minutes
    PYTHONPATH=kernels python benchmarks/kernels.py --tune    # times tiles; rows for gpu/configs.py
    PYTHONPATH=kernels python benchmarks/kernels.py --tune --minutes 9    # as many as that allows
    PYTHONPATH=kernels python benchmarks/kernels.py --part training  # one part, in this process
    PYTHONPATH=kernels python benchmarks/kernels.py --tutorial 06-fused-attention.py
    PYTHONPATH=kernels python benchmarks/kernels.py --record  # and lets impl="auto" use the result
    PYTHONPATH=kernels python benchmarks/kernels.py --record measured.json  # to be put there
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from children import KEPT, run_child
from kernel_times import (
    BATCH,
    DEVICE,
    DIM,
    GPU,
    HEADS,
    JOURNAL,
    SEED,
    VOCABULARY,
    WIDTH,
    attempt,
    check,
    cuts,
    error,
    measure,
    note,
    rand,
    recall,
    record,
    report,
    skip,
    time_attention,
    time_block,
    time_head,
    time_memory,
    time_tutorial,
    worst,
)
from torch import Tensor, nn

import hornbook_kernels as hk
from hornbook_kernels import dispatch, philox, reference
from hornbook_kernels.documents import visible
from hornbook_kernels.gpu import configs
from hornbook_kernels.gpu.configs import Config

RESULTS = Path(__file__).parent / "results"
IN_PLACE = Path()  # of --record: where `impl="auto"` looks
# Seconds of a part with --quick and without; none is begun with less than the least left.
QUICK_LIMIT, LIMIT, LEAST = 120.0, 1200.0, 15.0
AHEAD = "kernels compiled ahead"
Parts = dict[str, tuple[Callable[[], None], ...]]
LIMITS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}


@contextlib.contextmanager
def forced(impl: str) -> Iterator[None]:
    """Every operator runs this, whatever is on record of the card."""
    before = os.environ.get(dispatch.OVERRIDE)
    os.environ[dispatch.OVERRIDE] = impl
    try:
        yield
    finally:
        os.environ.pop(dispatch.OVERRIDE)
        if before is not None:
            os.environ[dispatch.OVERRIDE] = before


def check_attention(main: bool, quick: bool = False) -> None:
    """Values, gradients and log-sum-exp against fp32, of bf16 at the model's head size or of all
    else; quick: of that every option and size, not their product.
    """
    # As many heads as in the timings, so that those find their kernels compiled.
    length, batch, heads = (1024, 1, HEADS) if GPU else (130, 2, 2)
    cases = itertools.product(
        (torch.bfloat16, torch.float16, torch.float32), (32, 64, 96, 128), (0.0, 0.1), (False, True)
    )
    few = [(torch.bfloat16, dim) for dim in (32, 96, 128)]
    few += [(torch.float16, DIM), (torch.float32, DIM), (torch.float32, 128)]
    for dtype, dim, dropout, documents in cases:
        if (dtype == torch.bfloat16 and dim == DIM) != main:
            continue
        if dispatch.unfit(torch.device(DEVICE), dtype, dim):
            continue
        if quick and not (dropout and documents and (dtype, dim) in few):
            continue
        # Odd to every tile; but the bounds' second row is aligned, as in the timings, for which the
        # same kernel is compiled.
        t = length - (36 if documents else 0)
        name = f"attention {dtype} d{dim} dropout {dropout} documents {documents}"
        with attempt(name):
            qkv = rand(batch, t, 3, heads, dim, dtype=dtype).requires_grad_(True)
            dout = rand(batch, t, heads, dim, dtype=dtype)
            bounds = hk.document_bounds(cuts(t)[:batch], t, device=DEVICE) if documents else None
            out, lse = hk.attention(
                qkv, bounds=bounds, dropout_p=dropout, seed=SEED, impl="triton", return_lse=True
            )
            (grad,) = torch.autograd.grad(out, qkv, dout)
            exact = qkv.detach().float().requires_grad_(True)
            mask = visible(bounds) if bounds is not None else None
            plain, plain_lse = reference.attention(
                *exact.unbind(2), mask=mask, dropout_p=dropout, seed=SEED
            )
            (expected,) = torch.autograd.grad(plain, exact, dout.float())
            away = worst([(out, plain), (grad, expected)])
            check(name, away <= LIMITS[dtype], round(away, 7))
            check(f"{name}: lse", error(lse, plain_lse) < 1e-5)


def check_edges() -> None:
    """Odd lengths, grouped heads, scaled gradients, far scores, dropout bits on this device."""
    name = "dropout bits, read through the kernel"
    with attempt(name):
        kept = philox.kept(torch.tensor(SEED, device=DEVICE), (1, 1, 128, 128), 26)
        v = torch.eye(128, DIM, device=DEVICE)[None, :, None]
        zero = torch.zeros(1, 128, 1, DIM, device=DEVICE)
        out = hk.attention(
            zero, zero, v, causal=False, dropout_p=0.1, seed=SEED, impl="triton"
        )  # fmt: skip
        check(name, torch.equal(out[0, :, 0] > 0, kept[0, 0, :, :64]))
    for t in (1, 15, 63, 65, 127, 200, 449):
        name = f"attention T={t} S={t + 5}, grouped heads"
        with attempt(name):
            parts = [rand(2, t, 4, DIM, dtype=torch.float16)]
            parts += [rand(2, t + 5, 2, DIM, dtype=torch.float16) for _ in range(2)]
            parts = [part.requires_grad_(True) for part in parts]
            wide = [part.detach().float().requires_grad_(True) for part in parts]
            made, plain = hk.attention(*parts, impl="triton"), reference.attention(*wide)[0]
            dout = rand(*made.shape, dtype=torch.float16)
            grads = torch.autograd.grad(made, parts, dout)
            expected = torch.autograd.grad(plain, wide, dout.float())
            away = worst([(made, plain), *zip(grads, expected, strict=True)])
            check(name, away < 1e-3, round(away, 7))
    name = "documents, the bounds' second row unaligned"
    with attempt(name):
        t = 67
        qkv = rand(1, t, 3, HEADS if GPU else 2, DIM).requires_grad_(True)
        exact = qkv.detach().float().requires_grad_(True)
        bounds = hk.document_bounds([[0, 30, t]], t, device=DEVICE)
        out = hk.attention(qkv, bounds=bounds, impl="triton")
        plain = reference.attention(*exact.unbind(2), mask=visible(bounds))[0]
        dout = rand(*out.shape)
        (grad,) = torch.autograd.grad(out, qkv, dout)
        (expected,) = torch.autograd.grad(plain, exact, dout.float())
        away = worst([(out, plain), (grad, expected)])
        check(name, away <= LIMITS[torch.bfloat16], round(away, 7))
    name = "fp16, gradient scaled by 4096, is finite"
    with attempt(name):
        qkv = rand(1, 192, 3, 2, DIM, dtype=torch.float16).requires_grad_(True)
        hk.attention(qkv, impl="triton").backward(rand(1, 192, 2, DIM, dtype=torch.float16) * 2**12)
        assert qkv.grad is not None
        check(name, bool(qkv.grad.isfinite().all()))
    name = "log-sum-exp far below zero"
    with attempt(name):
        far = rand(1, 192, 2, DIM, dtype=torch.float16)
        made = hk.attention(far, -far * far.norm(dim=-1, keepdim=True), far, impl="triton")
        check(name, bool(made.isfinite().all()))


def check_repeats(count: int) -> None:
    """The same bits every time: a race would show as a difference."""
    name = f"attention: {count} repeats bitwise equal"
    with attempt(name):
        shape = (BATCH, 2048, 3, HEADS, DIM) if GPU else (1, 130, 3, 2, DIM)
        qkv = rand(*shape).requires_grad_(True)
        dout = rand(*shape[:2], *shape[3:])
        bounds = hk.document_bounds(cuts(shape[1])[: shape[0]], shape[1], device=DEVICE)
        first: list[Tensor] = []
        same = True
        for _ in range(count):
            out = hk.attention(qkv, bounds=bounds, dropout_p=0.1, seed=SEED, impl="triton")
            made = [out, *torch.autograd.grad(out, qkv, dout)]
            first = first or made
            same = same and all(torch.equal(a, b) for a, b in zip(first, made, strict=True))
        check(name, same)


def check_losses(rows: int, vocabulary: int, width: int) -> None:
    """Both losses against fp64, plain, and with weights and z-loss."""
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    labels[::5] = -100
    weighted = {"weights": torch.rand(rows, device=DEVICE), "z_loss": 1e-3}
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for dtype, options in itertools.product(dtypes, ({}, weighted)):
        what = f"{dtype}{', weights and z-loss' if options else ''}"
        name = f"cross_entropy {what}, loss and gradient"
        with attempt(name):
            away = cross_entropy_error(dtype, vocabulary, labels, options)
            check(name, away <= LIMITS[dtype], round(away, 7))
        name = f"linear_cross_entropy {what}, loss and gradients"
        with attempt(name):
            away = linear_error(dtype, vocabulary, width, labels, options)
            check(name, away <= LIMITS[dtype], round(away, 7))


# Sums, not means: a mean over thousands of tokens has gradients that fp16 alone can not hold.
# The mean is the same but for a factor, so of it only the loss is compared.


def cross_entropy_error(
    dtype: torch.dtype, vocabulary: int, labels: Tensor, options: dict[str, Any]
) -> float:
    logits = (rand(len(labels), vocabulary, dtype=dtype) * 4).requires_grad_(True)
    mean = hk.cross_entropy(logits.detach(), labels, **options)
    made = hk.cross_entropy(logits * 1, labels, reduction="sum", **options)
    made.backward()
    exact = logits.detach().double().requires_grad_(True)
    plain = reference.cross_entropy(exact, labels, reduction="sum", **options)
    plain.backward()
    plain_mean = reference.cross_entropy(exact.detach(), labels, **options)
    assert logits.grad is not None
    assert exact.grad is not None
    pairs = [(logits.grad, exact.grad), (made.detach(), plain.detach()), (mean, plain_mean)]
    return worst(pairs)


def linear_error(
    dtype: torch.dtype, vocabulary: int, width: int, labels: Tensor, options: dict[str, Any]
) -> float:
    shapes = ((len(labels), width), (vocabulary, width), (vocabulary,))
    parts = [rand(*shape, dtype=dtype) * (0.02 if i else 1) for i, shape in enumerate(shapes)]
    parts = [part.requires_grad_(True) for part in parts]
    wide = [part.detach().double().requires_grad_(True) for part in parts]
    pairs = []
    chunk = len(labels) // 3
    for reduction in ("mean", "sum"):
        made = hk.linear_cross_entropy(*parts, labels, chunk=chunk, reduction=reduction, **options)
        plain = reference.linear_cross_entropy(*wide, labels, reduction=reduction, **options)
        pairs.append((made.detach(), plain.detach()))
    grads = [torch.autograd.grad(loss, x) for loss, x in ((made, parts), (plain, wide))]
    return worst([*pairs, *zip(*grads, strict=True)])


def check_rotary() -> None:
    """Against fp64: both layouts, with documents, with tables by row."""
    length = 131
    tables = hk.rotary_tables(length, 32, device=DEVICE)
    by_row = [torch.stack((table, table.flip(0))) for table in tables]
    bounds = hk.document_bounds([[0, 50, length], [0, 3, 3, length]], length, device=DEVICE)
    cases = itertools.product(
        (torch.bfloat16, torch.float16, torch.float32), ("half", "interleaved"),
        (("", tables, None), (", documents", tables, bounds), (", tables by row", by_row, None)),
    )  # fmt: skip
    for dtype, layout, (what, (cos, sin), starts) in cases:
        name = f"rotary {dtype} {layout}{what}, also in place"
        with attempt(name):
            x = rand(2, length, 3, 5, DIM, dtype=dtype)
            options: dict[str, Any] = {"bounds": starts, "layout": layout}
            exact = hk.apply_rotary(x.double(), cos.double(), sin.double(), **options)
            made = hk.apply_rotary(x, cos, sin, **options)
            in_place = hk.apply_rotary_(x.clone(), cos, sin, **options)
            back = hk.apply_rotary(made, cos, sin, inverse=True, **options)
            away = error(made, exact)
            good = away <= LIMITS[dtype] and error(back, x.double()) <= 2 * LIMITS[dtype]
            check(name, good and torch.equal(made, in_place), round(away, 7))


class Small(nn.Module):
    """Two parallel blocks with rotary attention, to train in seconds."""

    def __init__(self, impl: str, width: int = 256, vocabulary: int = 512) -> None:
        super().__init__()
        self.impl = impl
        self.embed = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, bounds: Tensor, step: int) -> Tensor:
        inputs, labels = tokens[:, :-1], tokens[:, 1:]
        x = self.embed(inputs)
        tables = hk.rotary_tables(inputs.shape[1], 32, device=tokens.device)
        layers = zip(self.norms, self.qkv, self.out, strict=True)
        for i, (norm, project, back) in enumerate(layers):
            qkv = project(norm(x)).unflatten(-1, (3, -1, DIM))
            made = hk.attention(
                hk.apply_rotary(qkv, *tables), bounds=bounds, dropout_p=0.1,
                seed=2 * step + i, impl=self.impl,
            )  # fmt: skip
            x = x + back(made.flatten(2))
        return hk.linear_cross_entropy(x, self.head.weight, self.head.bias, labels)


def training_curve(impl: str, steps: int, rows: int, length: int) -> Tensor:
    """The losses of a small model, every operator of it by this implementation.

    A token follows from the one before the last, so that only a model that knows positions learns:
    without rotary the loss stays 1.6 above the true one's after 200 steps of 8 rows of 256.
    """
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(64, (64,), generator=generator)
    torch.manual_seed(0)
    model = Small(impl).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bounds = hk.document_bounds([[0, 40, length]] * rows, length, device=DEVICE)
    losses = []
    for step in range(steps):
        tokens = [*torch.randint(64, (2, rows), generator=generator)]
        while len(tokens) <= length:
            noise = torch.randint(64, (rows,), generator=generator)
            kept = torch.rand(rows, generator=generator) < 0.8
            tokens.append(torch.where(kept, table[tokens[-2]], noise))
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(torch.stack(tokens, 1).to(DEVICE), bounds, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def check_training(steps: int, rows: int, length: int) -> None:
    """The loss with our kernels (attention, rotary, the head's) follows that with the plain forms,
    where it can not fall without attention and positions.
    """
    name = f"training, {steps} steps: loss within 0.01 of the plain form's"
    with attempt(name):
        curves = []
        for impl in ("triton", "reference"):
            with forced(impl):
                curves.append(training_curve(impl, steps, rows, length))
        gap = float((curves[0] - curves[1]).abs()[-50:].mean())
        check(name, gap <= 0.01, gap)
        check("training: the loss fell", bool(curves[0][-1] < curves[0][0]), float(curves[0][-1]))


def compile_ahead(quick: bool) -> None:
    """Compiles on every processor what the other parts would compile one after another."""
    import compile_gate

    architecture = dispatch.card(torch.device(DEVICE))[1]
    assert architecture is not None
    rare = (" group", " full", " lse")
    names = [case.name for case in compile_gate.cases(architecture, quick=False)]
    names = [name for name in names if not (quick and any(word in name for word in rare))]
    jobs = max(1, min(16, (os.cpu_count() or 1) - 1))
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(compiles, itertools.repeat(architecture), names))
    except BrokenProcessPool as failure:  # the other parts compile for themselves
        skip(AHEAD, str(failure))
        return
    print(f"compiled {sum(made)} of {len(names)} kernels", flush=True)


def compiles(architecture: int, name: str) -> bool:
    """Whether a row of the compile gate compiles; what does not, its own part reports."""
    import compile_gate

    try:
        compile_gate.compile_named(architecture, name)
    except Exception:
        return False
    return True


def fits(kernel: str, architecture: int, head_dim: int, dropout: bool, documents: bool,
         tile: Config) -> bool:  # fmt: skip
    """Whether a tile compiles, and without a spill: in a process of its own, without the card."""
    import compile_gate

    case = compile_gate.attention_case(
        kernel, architecture, head_dim, torch.bfloat16, dropout, documents, config=tile
    )
    try:
        return not compile_gate.compile_case(case, architecture)["spills"]
    except Exception:  # a tile that the compiler refuses is one tile fewer
        return False


def line(config: Config) -> str:
    """A configuration as `configs.py` has it."""
    return f"Config({', '.join(str(part) for part in astuple(config)[:5] if part)})"


def candidates(kernel: str, table: Config) -> list[Config]:
    """Tiles to try, those most like the table's first: time may not do for all."""
    grid = itertools.product((32, 64, 128), (64, 128), (4, 8), (2, 3, 4), (0, 128, 168))
    most = 128 * 128 // (1 if kernel == "forward" else 2)
    tiles = list(dict.fromkeys([table, *(Config(*values) for values in grid)]))
    tiles = [tile for tile in tiles if tile.rows * tile.columns <= most]
    return sorted(
        tiles,
        key=lambda tile: sum(a != b for a, b in zip(astuple(tile), astuple(table), strict=True)),
    )


def best_tile(kernel: str, architecture: int, head_dim: int, dropout: bool, documents: bool,
              tiles: dict[Config, Future[bool]], share: float | None) -> str:  # fmt: skip
    """The fastest tile of those that do not spill.

    Args:
        kernel: `"forward"`, `"backward_q"` or `"backward_kv"`.
        architecture: Of the card.
        head_dim: D.
        dropout: Whether weights are dropped.
        documents: Whether there are documents.
        tiles: Candidates and whether each is fit; the table's own first.
        share: Seconds for this row: three quarters to compile, the rest to time. None for no limit.

    Returns:
        The tile as a line of `configs.py`.
    """
    from hornbook_kernels.gpu import attention

    given = tuple(rand(BATCH, 2048, HEADS, head_dim) for _ in range(3))
    dout = rand(BATCH, 2048, HEADS, head_dim)
    grads = tuple(torch.empty_like(part) for part in given)
    bounds = hk.document_bounds(cuts(2048), 2048, device=DEVICE) if documents else None
    seed = torch.tensor(SEED, device=DEVICE) if dropout else None
    rest = (bounds, seed, 26 if dropout else 0, True, head_dim**-0.5)
    forward = partial(attention.forward, *given, *rest, architecture=architecture)
    backward = partial(attention.backward, dout, None, *given, *forward(), *rest, grads,
                       architecture=architecture)  # fmt: skip
    call, argument = {
        "forward": (forward, "config"),
        "backward_q": (backward, "config_q"),
        "backward_kv": (backward, "config_kv"),
    }[kernel]
    done, late = wait(tiles.values(), None if share is None else 0.75 * share)
    for future in late:
        future.cancel()
    # A worker that the compiler took down is one tile fewer, like those that wait behind it.
    ended = {future for future in done if future.exception() is None}
    fine = [tile for tile, future in tiles.items() if future in ended and future.result()]
    calls = {line(tile): partial(call, **{argument: tile}) for tile in fine}
    times = measure(calls, rounds=5, must=())
    best = dict(sorted(times.items(), key=lambda item: item[1])[:5])
    what = f"tune {kernel} d{head_dim} dropout={dropout} documents={documents}"
    table = line(next(iter(tiles)))
    tried = f"{len(ended)} of {len(tiles)}"
    note("times", {"what": what, "ms": best, "table": table, "compiled": tried})
    print(f"tune     {what}: {best}; the table has {table}; {tried} compiled in time", flush=True)
    return next(iter(best), table)


def tune(head_dims: list[int], documents: bool, minutes: float | None) -> None:
    """Times tiles of the attention kernels and prints the fastest as rows for `configs.py`.

    Args:
        head_dims: Which ones.
        documents: Whether what is timed with dropout also has documents.
        minutes: About how long it may take, shared out evenly; None for no limit.
    """
    architecture = dispatch.card(torch.device(DEVICE))[1]
    assert architecture is not None
    names = ("forward", "backward_q", "backward_kv")
    end = None if minutes is None else time.perf_counter() + 60 * minutes
    rows = list(itertools.product(head_dims, names, (False, True)))
    # One processor is left to the process that times.
    jobs = max(1, min(16, (os.cpu_count() or 1) - 1))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        # All at once, so that the next row's are compiled while one is timed.
        queued = []
        for head_dim, kernel, extras in rows:
            table = configs.attention(kernel, architecture, head_dim, torch.bfloat16, extras)
            case = (kernel, architecture, head_dim, extras, documents and extras)
            tiles = {tile: pool.submit(fits, *case, tile) for tile in candidates(kernel, table)}
            queued.append((case, tiles))
        pair: list[str] = []
        for i, (case, tiles) in enumerate(queued):
            left = None if end is None else max(0.0, end - time.perf_counter())
            share = None if left is None else left / (len(rows) - i)
            pair.append(best_tile(*case, tiles, share))
            if len(pair) == 2:
                kernel, _, head_dim, _, _ = case
                padded = 128 if head_dim == 96 else head_dim
                text = f"({architecture}, {padded}): ({', '.join(pair)}),"
                note("rows", f"{kernel} {text}")
                print(f"row      {kernel} {text}", flush=True)
                pair = []


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def parts_of(options: argparse.Namespace) -> Parts:
    """What there is to run, by process, in the order in which one would miss it."""
    if options.tune and GPU:
        return {"tune": (partial(tune, options.head_dims, options.documents, options.minutes),)}
    repeats, training = (200, (200, 8, 256)) if GPU else (3, (60, 4, 64))
    sizes = (4096, VOCABULARY, WIDTH) if GPU else (64, 500, 32)
    lengths = [2048] if options.quick else [2048, 512, 4096, 8192]
    ratios: Parts = {
        f"attention S={length} dropout={dropout}": (partial(time_attention, length, dropout),)
        for length, dropout in itertools.product(lengths, (0.0, 0.1))
    }
    checks: Parts = {
        "repeats and edges": (partial(check_repeats, repeats), check_edges),
        "losses and rotary": (partial(check_losses, *sizes), check_rotary),
        "training": (partial(check_training, *training),),
        "other attention": (partial(check_attention, False, options.quick),),
    }
    other: Parts = {
        "block": (partial(time_block, 2048),),
        "head and memory": (time_head, time_memory),
    }
    if options.tutorial is not None:
        other["tutorial"] = (partial(time_tutorial, options.tutorial, 2048),)
    first: Parts = {"attention": (partial(check_attention, True),)}
    if not GPU:
        return {**first, **checks}
    rest = {"other attention": checks.pop("other attention")}
    ahead: Parts = {AHEAD: (partial(compile_ahead, options.quick),)}
    return {**ahead, **first, **ratios, **checks, **other, **rest}


def is_check(name: str) -> bool:
    """Whether a part says that kernels are right, rather than how fast they are."""
    return name in (
        "attention",
        "other attention",
        "repeats and edges",
        "losses and rotary",
        "training",
    )


def run_part(name: str, options: argparse.Namespace) -> None:
    """In the part's own process."""
    torch.manual_seed(0)
    # Rotary and the losses otherwise wait for this benchmark's record of the card.
    with forced("triton"):
        for kind in parts_of(options)[name]:
            with attempt(name):
                kind()


def command(name: str) -> list[str]:
    """How a part is started: as this process was."""
    return [sys.executable, __file__, *sys.argv[1:], "--part", name]


def run_parts(names: list[str], limit: float, end: float, keep: Callable[[], None]) -> None:
    """Each in a process of its own; one that does not reach its end is a fault.

    Args:
        names: The parts.
        limit: Seconds of each, at most.
        end: When all must be over, by the monotonic clock; none is begun shortly before.
        keep: Called after each.
    """
    for name in names:
        left = end - time.monotonic()
        if left < LEAST:
            if is_check(name):
                check(f"{name} runs", False, "out of time")
            else:
                skip(name, "out of time")
            continue
        print(f"part     {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "journal.jsonl"
            environment = {**os.environ, JOURNAL: str(journal)}
            try:
                why, errors = run_child(command(name), min(limit, left), environment=environment)
                print(errors, end="\n" if errors else "", file=sys.stderr, flush=True)
            finally:
                recall(journal)
        if why and name == AHEAD:
            skip(name, why)
        elif why:
            check(f"{name} reaches its end", False, why, stderr=errors[-KEPT:])
        keep()


def skip_gpu() -> None:
    """Says what a machine without a card leaves open."""
    for what in (
        "races: programs run in turn here",
        "200 repeats for equal bits, 200 training steps: 3 and 60 here, at smaller sizes",
        "attention beside SDPA, FlexAttention, varlen flash",
        "attention beside Triton's tutorial kernel",
        "qkv, rotary, attention beside compiled rotary and SDPA",
        "rotary and cross-entropy: share of the copy's bandwidth",
        "linear_cross_entropy beside torch's and Liger's: time and peak memory",
    ):
        skip(what, "no GPU")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one length; 4 minutes")
    parser.add_argument("--tune", action="store_true", help="time tiles instead of peers")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[DIM], help="of --tune",
                        choices=dispatch.HEAD_DIMS)  # fmt: skip
    parser.add_argument("--documents", action="store_true",
                        help="of --tune: documents, too, where there is dropout")  # fmt: skip
    parser.add_argument("--minutes", type=float,
                        help="about how long it may take; 4 with --quick, else no limit. Tiles and "
                        "parts that are not done by then are left out")  # fmt: skip
    parser.add_argument("--record", type=Path, nargs="?", const=IN_PLACE, metavar="PATH",
                        help='let impl="auto" use the result; PATH is for what does so, '
                        "instead of the package's own file")  # fmt: skip
    parser.add_argument("--tutorial", type=Path, metavar="PATH",
                        help="a copy of Triton's 06-fused-attention.py: run and timed")  # fmt: skip
    parser.add_argument("--out", type=Path, help="the results' file: on a GPU, without --tune, "
                        f"{RESULTS.name}/kernels.json unless given")  # fmt: skip
    parser.add_argument("--part", help="run this part alone, in this process")
    options = parser.parse_args()
    if options.minutes is None and options.quick and GPU and not options.tune:
        options.minutes = 4.0
    if options.out is None and GPU and not options.tune:
        options.out = RESULTS / "kernels.json"
    return options


def save(began: float, out: Path | None) -> None:
    report["seconds"] = round(time.perf_counter() - began)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f"{out.name}.tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        temporary.replace(out)


def run(options: argparse.Namespace, keep: Callable[[], None]) -> None:
    seconds = math.inf if options.minutes is None else 60 * options.minutes
    limit = QUICK_LIMIT if options.quick and GPU else LIMIT
    if options.tune and GPU:
        # It keeps its time itself, but for the start and the last tile.
        seconds = limit = seconds + 60
    run_parts(list(parts_of(options)), limit, time.monotonic() + seconds, keep)
    if not GPU:
        skip_gpu()
        for name in ("tune", "record", "tutorial"):
            if getattr(options, name):
                skip(f"--{name}", "no GPU")
    elif not options.tune:
        if options.tutorial is None:
            skip("Triton's tutorial kernel", "no --tutorial PATH: it is not part of Triton's wheel")
        if options.record:
            record(None if options.record == IN_PLACE else options.record)


def main() -> int:
    """Checks, times, writes; 1 if a check failed."""
    options = arguments()
    if options.part:
        run_part(options.part, options)
        return 0
    # A part is in a group of its own, so it ends only if this process does so by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    began = time.perf_counter()
    report.update({
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": torch.cuda.get_device_name() if GPU else None,
        "versions": {name: version(name) for name in ("torch", "triton", "numpy")},
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    })  # fmt: skip
    ours = "triton" if GPU else "plain form of the operators"
    why = dispatch.unfit(torch.device(DEVICE), torch.bfloat16, DIM)
    print(f"{report['card'] or 'no GPU'}: checking the {ours}; {report['versions']}", flush=True)
    if why:
        skip("everything on the GPU", why)
        return 0
    # Written as it comes: a run may be stopped before its end.
    keep = partial(save, began, options.out)
    try:
        run(options, keep)
    finally:
        keep()
    bad = [entry["what"] for entry in report["checks"] if not entry["holds"]]
    print(f"{len(report['checks'])} checks, {len(bad)} wrong; {report['seconds']} s; "
          f"{options.out or 'not written: no GPU or --tune, and no --out'}")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
