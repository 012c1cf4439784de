"""Are our kernels right, and faster than torch's and other peers, on this card, in one run?

On a CPU it checks what a CPU can check and says what it skipped. On a GPU it checks every kernel
against fp64 or fp32, repeats them for equal bits, trains a small model with and without them, times
them beside their peers in turn, and writes `results/kernels.json` with card, versions and date.

    PYTHONPATH=kernels python benchmarks/kernels.py           # S = 512 to 8192
    PYTHONPATH=kernels python benchmarks/kernels.py --quick   # S = 2048: under 4 minutes
    PYTHONPATH=kernels python benchmarks/kernels.py --tune    # times tiles; rows for gpu/configs.py
    PYTHONPATH=kernels python benchmarks/kernels.py --record  # and lets impl="auto" use the result
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from kernel_times import (
    BATCH,
    DEVICE,
    DIM,
    GPU,
    HEADS,
    SEED,
    VOCABULARY,
    WIDTH,
    check,
    cuts,
    rand,
    record,
    report,
    skip,
    time_all,
    tune,
)
from torch import Tensor, nn

import hornbook_kernels as hk
from hornbook_kernels import dispatch, philox, reference
from hornbook_kernels.documents import visible

RESULTS = Path(__file__).parent / "results"
LIMITS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def error(made: Tensor, exact: Tensor) -> float:
    return float((made.double() - exact.double()).norm() / exact.double().norm())


def check_attention(quick: bool) -> None:
    """Values, gradients and log-sum-exp against fp32; quick: every option and size, not product."""
    # As many heads as in the timings, so that those find their kernels compiled.
    length, batch, heads = (1024, 1, HEADS) if GPU else (130, 2, 2)
    cases = itertools.product(
        (torch.bfloat16, torch.float16, torch.float32), (32, 64, 96, 128), (0.0, 0.1), (False, True)
    )
    few = [(torch.bfloat16, dim) for dim in (32, 96, 128)]
    few += [(torch.float16, DIM), (torch.float32, DIM), (torch.float32, 128)]
    for dtype, dim, dropout, documents in cases:
        if dispatch.unfit(torch.device(DEVICE), dtype, dim):
            continue
        main = dtype == torch.bfloat16 and dim == DIM
        if quick and not main and not (dropout and documents and (dtype, dim) in few):
            continue
        t = length - (37 if documents else 0)
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
        errors = [error(out, plain), error(grad, expected)]
        worst = max(errors) if all(map(math.isfinite, errors)) else math.inf
        name = f"attention {dtype} d{dim} dropout {dropout} documents {documents}"
        check(name, worst <= LIMITS[dtype], round(worst, 7))
        check(f"{name}: lse", error(lse, plain_lse) < 1e-5)


def check_edges() -> None:
    """Odd lengths, grouped heads, scaled gradients, far scores, dropout bits on this device."""
    kept = philox.kept(torch.tensor(SEED, device=DEVICE), (1, 1, 128, 128), 26)
    eye = torch.eye(128, DIM, device=DEVICE)
    v = torch.stack([eye, eye.roll(64, 0)])
    zero = torch.zeros(2, 128, 1, DIM, device=DEVICE)
    out = hk.attention(
        zero[:1], zero[:1], v[:1, :, None], causal=False, dropout_p=0.1, seed=SEED, impl="triton"
    )
    check(
        "dropout bits, read through the kernel", torch.equal(out[0, :, 0] > 0, kept[0, 0, :, :64])
    )
    for t in (1, 15, 63, 65, 127, 200, 449):
        q, k = rand(2, t, 4, DIM, dtype=torch.float16), rand(2, t + 5, 2, DIM, dtype=torch.float16)
        made = hk.attention(q, k, k, impl="triton")
        worst = error(made, reference.attention(q.float(), k.float(), k.float())[0])
        check(f"attention T={t} S={t + 5}, grouped heads", worst < 1e-3, round(worst, 7))
    qkv = rand(1, 192, 3, 2, DIM, dtype=torch.float16).requires_grad_(True)
    hk.attention(qkv, impl="triton").backward(rand(1, 192, 2, DIM, dtype=torch.float16) * 2**12)
    assert qkv.grad is not None
    check("fp16, gradient scaled by 4096, is finite", bool(qkv.grad.isfinite().all()))
    far = rand(1, 192, 2, DIM, dtype=torch.float16)
    made = hk.attention(far, -far * far.norm(dim=-1, keepdim=True), far, impl="triton")
    check("log-sum-exp far below zero", bool(made.isfinite().all()))


def check_repeats(count: int) -> None:
    """The same bits every time: a race would show as a difference."""
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
    check(f"attention: {count} repeats bitwise equal", same)


def check_losses() -> None:
    """Rotary and both losses against fp64."""
    rows, vocabulary, width = (4096, VOCABULARY, WIDTH) if GPU else (64, 500, 32)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        logits = (rand(rows, vocabulary, dtype=dtype) * 4).requires_grad_(True)
        labels = torch.randint(vocabulary, (rows,), device=DEVICE)
        labels[::5] = -100
        hk.cross_entropy(logits * 1, labels).backward()
        exact = logits.detach().double().requires_grad_(True)
        F.cross_entropy(exact, labels).backward()
        worst = error(logits.grad, exact.grad)
        check(f"cross_entropy {dtype}", worst <= LIMITS[dtype], round(worst, 7))
        del logits, exact
        parts = [rand(rows, width, dtype=dtype), rand(vocabulary, width, dtype=dtype) * 0.02]
        parts = [part.requires_grad_(True) for part in parts]
        wide = [part.detach().float().requires_grad_(True) for part in parts]
        ours = torch.autograd.grad(
            hk.linear_cross_entropy(*parts, None, labels, chunk=rows // 3), parts
        )
        theirs = torch.autograd.grad(reference.linear_cross_entropy(*wide, None, labels), wide)
        worst = max(error(a, b) for a, b in zip(ours, theirs, strict=True))
        limit = 1e-2 if dtype == torch.bfloat16 else 3e-3
        check(f"linear_cross_entropy {dtype}, gradients", worst <= limit, round(worst, 7))
        del parts, wide, ours, theirs
        x = rand(2, 131, 3, 5, DIM, dtype=dtype)
        cos, sin = hk.rotary_tables(131, 32, device=DEVICE)
        for layout in ("half", "interleaved"):
            exact = hk.apply_rotary(x.double(), cos.double(), sin.double(), layout=layout)
            made = hk.apply_rotary(x, cos, sin, layout=layout)
            in_place = hk.apply_rotary_(x.clone(), cos, sin, layout=layout)
            good = error(made, exact) <= LIMITS[dtype] and torch.equal(made, in_place)
            check(f"rotary {dtype} {layout}, also in place", good)


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


def check_training(steps: int) -> None:
    """The loss with our kernels follows the loss with the plain form."""
    length, rows = (256, 8) if GPU else (64, 2)
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(512, (512,), generator=generator)
    curves = []
    for impl in ("triton", "reference"):
        torch.manual_seed(0)
        model = Small(impl).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator.manual_seed(1)
        bounds = hk.document_bounds([[0, 40, length]] * rows, length, device=DEVICE)
        losses = []
        for step in range(steps):
            tokens = [torch.randint(512, (rows,), generator=generator)]
            for _ in range(length):
                noise = torch.randint(512, (rows,), generator=generator)
                kept = torch.rand(rows, generator=generator) < 0.8
                tokens.append(torch.where(kept, table[tokens[-1]], noise))
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                loss = model(torch.stack(tokens, 1).to(DEVICE), bounds, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    gap = float((curves[0] - curves[1])[-50:].mean().abs())
    fell = float(curves[0][-1] < curves[0][0])
    check(f"training, {steps} steps: loss within 0.01 of the plain form's", gap <= 0.01, gap)
    check("training: the loss fell", bool(fell), float(curves[0][-1]))


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Checks, times, writes; 1 if a check failed."""
    # Rotary and the losses otherwise wait for this benchmark's record of the card.
    os.environ[dispatch.OVERRIDE] = "triton"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one length: under 4 minutes")
    parser.add_argument("--tune", action="store_true", help="time tiles instead of peers")
    parser.add_argument("--record", action="store_true", help='let impl="auto" use the result')
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    options = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(0)
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
    if options.tune and GPU:
        tune()
    else:
        check_attention(options.quick)
        check_edges()
        check_repeats(200 if GPU else 3)
        check_losses()
        check_training(200 if GPU else 20)
        if GPU:
            time_all([2048] if options.quick else [512, 2048, 4096, 8192])
            if options.record:
                record()
        else:
            skip("races: programs run in turn here", "no GPU")
            skip("attention beside SDPA, FlexAttention, varlen flash", "no GPU")
            skip("rotary and cross-entropy: share of the copy's bandwidth", "no GPU")
            skip("linear_cross_entropy beside torch's and Liger's", "no GPU")
    report["seconds"] = round(time.perf_counter() - began)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    bad = [entry["what"] for entry in report["checks"] if not entry["holds"]]
    print(f"{len(report['checks'])} checks, {len(bad)} wrong; {report['seconds']} s; {options.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
