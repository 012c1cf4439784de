"""Our kernels beside their peers on a GPU: what `kernels.py` runs once its checks are done.

Every number is of one run: calls in turn, order reversed every round, medians of events.
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hornbook_kernels as hk
from hornbook_kernels import dispatch, reference
from hornbook_kernels.documents import visible

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH, HEADS, DIM = 8, 32, 64
VOCABULARY, WIDTH = 51_200, 2048
SEED = 1234
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
report: dict[str, Any] = {"checks": [], "times": [], "ratios": [], "skipped": []}


def skip(what: str, why: str) -> None:
    report["skipped"].append({"what": what, "why": why})
    print(f"skipped  {what}: {why}", flush=True)


def check(what: str, holds: bool, value: float | str = "") -> None:
    report["checks"].append({"what": what, "holds": bool(holds), "value": value})
    print(f"{'ok    ' if holds else 'WRONG '}   {what}  {value}", flush=True)


def rand(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def cuts(length: int, count: int = 8) -> list[list[int]]:
    """Rows of `count` documents of uneven lengths, the same for every row but shifted."""
    base = [round(length * (i / count) ** 1.2) for i in range(count + 1)]
    return [
        sorted({0, *(min(length, end + 3 * row) for end in base[1:-1]), length})
        for row in range(BATCH)
    ]


def measure(calls: dict[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn; calls that fail are reported and left out.

    A round queues each call several times between two events, so that the card is never waiting
    for Python; the order turns round every time.
    """
    ready: dict[str, int] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(3):
                call()
            torch.cuda.synchronize()
            ready[name] = max(3, min(100, round(0.02 / ((time.perf_counter() - start) / 3))))
        except Exception as failure:  # a peer that does not run here must not end the others
            torch.cuda.synchronize()
            skip(name, f"{type(failure).__name__}: {str(failure)[:160]}")
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        for name in list(ready)[:: 1 if turn % 2 else -1]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The card sleeps while Python fills its queue: about 50 microseconds a call.
            torch.cuda._sleep(100_000 * ready[name])
            start.record()
            for _ in range(ready[name]):
                calls[name]()
            end.record()
            torch.cuda.synchronize()
            samples[name].append(start.elapsed_time(end) / ready[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def row(what: str, times: dict[str, float], ours: str = "ours", **more: Any) -> None:
    report["times"].append({"what": what, "ms": times, **more})
    text = "  ".join(f"{name} {ms:.3f}" for name, ms in times.items())
    print(f"time     {what}: {text} ms", flush=True)
    if ours in times:
        for name, ms in times.items():
            if name != ours:
                report["ratios"].append({"what": what, "peer": name, "ratio": ms / times[ours]})
        peers = [ms for name, ms in times.items() if name != ours]
        if peers:
            print(f"ratio    {what}: {min(peers) / times[ours]:.2f}x of the best peer", flush=True)


def attention_calls(
    length: int, dropout: float, documents: bool
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Tensor], Tensor]:
    """Forward calls by name, the leaf of each, and the output's gradient in `[B, T, H, D]`."""
    shape = (BATCH, length, HEADS, DIM)
    qkv = rand(BATCH, length, 3, HEADS, DIM).requires_grad_(True)
    bounds = hk.document_bounds(cuts(length), length, device=DEVICE) if documents else None
    seed = torch.tensor(SEED, device=DEVICE)
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: hk.attention(
            qkv, bounds=bounds, dropout_p=dropout, seed=seed if dropout else None, impl="triton"
        )
    }
    leaves = {"ours": qkv}
    mask = visible(bounds) if bounds is not None else None

    def sdpa(leaf: Tensor, backend: SDPBackend) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in leaf.unbind(0))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
            ).transpose(1, 2)

    for name, backend in BACKENDS.items():
        if documents and backend != SDPBackend.EFFICIENT_ATTENTION:
            continue  # flash takes no mask; cuDNN's backward pass gives NaN with one (torch 2.11)
        leaves[name] = rand(3, *shape).requires_grad_(True)
        calls[name] = partial(sdpa, leaves[name], backend)
    if dropout == 0.0:
        add_flex(calls, leaves, length, bounds)
        if documents:
            add_varlen(calls, leaves, length)
    return calls, leaves, rand(*shape)


def add_flex(
    calls: dict[str, Callable[[], Tensor]],
    leaves: dict[str, Tensor],
    length: int,
    bounds: Tensor | None,
) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) if bounds is None else (i >= j) & (j >= bounds[0, b, i])

    rows = None if bounds is None else BATCH
    blocks = create_block_mask(seen, rows, None, length, length, device=DEVICE)
    compiled = torch.compile(flex_attention)
    leaf = leaves["flex"] = rand(3, BATCH, length, HEADS, DIM).requires_grad_(True)
    calls["flex"] = lambda: compiled(
        *(part.transpose(1, 2) for part in leaf.unbind(0)), block_mask=blocks
    ).transpose(1, 2)


def add_varlen(
    calls: dict[str, Callable[[], Tensor]], leaves: dict[str, Tensor], length: int
) -> None:
    try:
        import inspect

        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        skip("varlen flash", "this torch has no torch.nn.attention.varlen")
        return
    ends = [row * length + end for row, cut in enumerate(cuts(length)) for end in cut[:-1]]
    starts = torch.tensor([*ends, BATCH * length], device=DEVICE, dtype=torch.int32)
    longest = int((starts[1:] - starts[:-1]).max())
    names = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}
    leaf = leaves["varlen flash"] = rand(3, BATCH, length, HEADS, DIM).requires_grad_(True)

    def call() -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in leaf.unbind(0))
        made = varlen_attn(q, k, v, starts, starts, longest, longest, **causal)
        return made.unflatten(0, (BATCH, length))

    calls["varlen flash"] = call


def time_attention(lengths: list[int]) -> None:
    """Forward, and forward + backward, beside every peer that computes the same."""
    for length, dropout, documents in itertools.product(lengths, (0.0, 0.1), (False, True)):
        calls, leaves, dout = attention_calls(length, dropout, documents)
        what = f"attention S={length} dropout={dropout} documents={documents}"
        flops = 2 * BATCH * HEADS * length * length * DIM
        with torch.no_grad():
            forward = measure(calls)
        row(f"{what} forward", forward, flops=flops)

        def both(name: str, calls: Any = calls, leaves: Any = leaves, dout: Tensor = dout) -> None:
            torch.autograd.grad(calls[name](), leaves[name], dout)

        whole = measure({name: partial(both, name) for name in forward})
        row(f"{what} forward+backward", whole, flops=3.5 * flops, dropout=dropout,
            documents=documents, length=length)  # fmt: skip
        backward = {name: whole[name] - forward[name] for name in whole}
        row(f"{what} backward", backward, flops=2.5 * flops)
        del calls, leaves, dout
        torch.cuda.empty_cache()


def time_block(length: int) -> None:
    """Packed qkv to rotary to attention, forward + backward, beside compiled rotary and SDPA."""
    cos, sin = hk.rotary_tables(length, 32, device=DEVICE)
    dout = rand(BATCH, length, HEADS, DIM)

    def ours(leaf: Tensor) -> None:
        out = hk.attention(hk.apply_rotary(leaf, cos, sin), impl="triton")
        torch.autograd.grad(out, leaf, dout)

    def peer(backend: SDPBackend, leaf: Tensor) -> None:
        q, k, v = turn(leaf)
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out.transpose(1, 2), leaf, dout)

    @torch.compile
    def turn(leaf: Tensor) -> list[Tensor]:
        q, k, v = leaf.unbind(2)
        q, k = (reference.apply_rotary(part, cos, sin) for part in (q, k))
        return [part.transpose(1, 2) for part in (q, k, v)]

    leaf = rand(BATCH, length, 3, HEADS, DIM).requires_grad_(True)
    calls = {"ours": partial(ours, leaf)}
    for name, backend in BACKENDS.items():
        calls[f"compiled rotary, {name}"] = partial(peer, backend, leaf)
    row(f"qkv, rotary, attention S={length} forward+backward", measure(calls))


def time_memory() -> None:
    """Rotary and cross-entropy as a share of the bandwidth of a copy measured here."""
    from hornbook_kernels.gpu import cross_entropy, rotary

    size = 1 << 30
    source, target = rand(size), rand(size)
    copy = measure({"copy": lambda: target.copy_(source)})["copy"]
    bandwidth = 4 * size / copy * 1e-6
    report["copy GB/s"] = bandwidth
    print(f"time     copy: {bandwidth:.0f} GB/s", flush=True)
    length = 2048
    buffers = [rand(BATCH, length, 3, HEADS, DIM) for _ in range(4)]
    tables = hk.rotary_tables(length, 32, device=DEVICE)
    turns = itertools.cycle(buffers)

    def rotate() -> None:
        x = next(turns)
        rotary.rotate(x, x, *tables, None, False, False)

    rows = BATCH * length
    logits = rand(rows, VOCABULARY)
    labels = torch.randint(VOCABULARY, (rows,), device=DEVICE)
    factors, losses, lse = (torch.ones(rows, device=DEVICE) for _ in range(3))
    measured = measure({
        "rotary in place": rotate,
        "cross_entropy forward": lambda: cross_entropy.run(
            logits, labels, factors, losses, lse, 0.0, False),
        "cross_entropy gradient": lambda: cross_entropy.run(
            logits, labels, factors, None, lse, 0.0, True),
    })  # fmt: skip
    # Bytes that must move: rotated numbers of q and k, read and written; logits read (and written).
    moved = {
        "rotary in place": 2 * 2 * BATCH * length * 2 * HEADS * 32,
        "cross_entropy forward": 2 * rows * VOCABULARY,
        "cross_entropy gradient": 4 * rows * VOCABULARY,
    }
    for name, ms in measured.items():
        share = moved[name] / ms * 1e-6 / bandwidth
        row(name, {"ours": ms}, share_of_copy=share)
        print(f"ratio    {name}: {share:.0%} of the copy's bandwidth", flush=True)


def time_head() -> None:
    """`linear_cross_entropy`: time and peak memory over the inputs."""
    rows = BATCH * 2048
    parts = [rand(rows, WIDTH), rand(VOCABULARY, WIDTH) * 0.02]
    hidden, weight = (part.requires_grad_(True) for part in parts)
    labels = torch.randint(VOCABULARY, (rows,), device=DEVICE)

    def unfused() -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels)

    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: hk.linear_cross_entropy(hidden, weight, None, labels),
        "unfused": unfused,
        "compiled unfused": torch.compile(unfused),
    }
    if hasattr(F, "linear_cross_entropy"):
        losses["torch"] = lambda: F.linear_cross_entropy(hidden, weight, labels)
    else:
        skip("torch's linear_cross_entropy", "needs torch 2.13")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        losses["liger"] = lambda: LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, labels)[0]  # fmt: skip
    except ImportError:
        skip("Liger", "liger-kernel is not installed")
    times = measure(
        {
            name: lambda call=call: torch.autograd.grad(call(), (hidden, weight))
            for name, call in losses.items()
        },
        rounds=7,
    )
    peaks = {}
    for name in times:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        grads = torch.autograd.grad(losses[name](), (hidden, weight))
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        del grads
    row("linear_cross_entropy 16384 x 2048 x 51200", times, peak_mib=peaks)
    print(f"memory   { ({name: round(mib) for name, mib in peaks.items()}) } MiB", flush=True)


def time_all(lengths: list[int]) -> None:
    """Every timing; attention at each of these lengths."""
    skip("Triton's tutorial kernel", "not part of Triton's wheel")
    time_attention(lengths)
    time_block(2048)
    time_memory()
    time_head()


def tune() -> None:
    """Times candidate tiles of the attention kernels; the fastest are rows for the table."""
    from hornbook_kernels.gpu import attention, configs
    from hornbook_kernels.gpu.configs import Config

    architecture = dispatch.card(torch.device(DEVICE))[1]
    assert architecture is not None
    grid = itertools.product((32, 64, 128), (64, 128), (4, 8), (2, 3, 4), (0, 128, 168))
    candidates = [Config(*values) for values in grid]
    q, k, v, dout = (rand(BATCH, 2048, HEADS, DIM) for _ in range(4))
    seed = torch.tensor(SEED, device=DEVICE)
    for level in (0, 26):
        rest: tuple[Any, ...] = (None, seed if level else None, level, True, 0.125)
        out, lse = attention.forward(q, k, v, *rest, architecture=architecture)
        grads = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))

        def backward(known: Any = (out, lse, *rest, grads), **tiles: Any) -> None:
            attention.backward(dout, None, q, k, v, *known, architecture=architecture, **tiles)

        def forward(rest: Any = rest, **tiles: Any) -> None:
            attention.forward(q, k, v, *rest, architecture=architecture, **tiles)

        kernels = {"forward": (forward, "config"), "backward_q": (backward, "config_q"),
                   "backward_kv": (backward, "config_kv")}  # fmt: skip
        for kernel, (call, argument) in kernels.items():
            known = configs.attention(kernel, architecture, DIM, torch.bfloat16, level > 0)
            times = measure(
                {
                    str(dataclasses.astuple(tile)): partial(call, **{argument: tile})
                    for tile in {known, *candidates}
                    if tile.rows * tile.columns <= 128 * 128 // (1 if kernel == "forward" else 2)
                },
                rounds=5,
            )
            best = sorted(times.items(), key=lambda item: item[1])[:5]
            what = f"{kernel} {'dropout' if level else 'plain'}"
            report["times"].append({"what": f"tune {what}", "ms": dict(best)})
            print(
                f"tune     {what}: {best}; the table has {dataclasses.astuple(known)}", flush=True
            )


def record() -> None:
    """Writes what was measured where `impl="auto"` looks; only rows whose checks all hold."""
    if not all(entry["holds"] for entry in report["checks"]):
        print("not recorded: a check failed", flush=True)
        return
    path = Path(dispatch.__file__).with_name("measured.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    card = report["card"]
    rows = [known for known in data["attention"] if known["card"] != card]
    for entry in report["times"]:
        peers = [ms for name, ms in entry["ms"].items() if name.startswith("sdpa")]
        if entry["what"].endswith("forward+backward") and "length" in entry and peers:
            rows.append({
                "card": card, "dtype": "bfloat16", "head_dim": DIM, "length": entry["length"],
                "dropout": entry["dropout"] > 0, "documents": entry["documents"],
                "ratio": round(min(peers) / entry["ms"]["ours"], 3),
            })  # fmt: skip
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in rows)
    what = json.dumps(data["what"])
    cards = json.dumps(sorted({*data["cards"], card}))
    path.write_text(
        f'{{\n  "what": {what},\n  "cards": {cards},\n  "attention": [\n{lines}\n  ]\n}}\n',
        encoding="utf-8",
    )
