"""Our kernels beside their peers on a GPU: what `kernels.py` runs beside its checks.

Every number is of one run: calls in turn, order reversed every round, medians of events. What is
found goes into a journal line by line, so that it outlives the process that found it.
"""

import contextlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
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
# Rounding differs between implementations; a mask that is not the same shows far above this.
NEAR = 0.03
BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Names the file that `note` writes to and `recall` reads.
JOURNAL = "HORNBOOK_BENCHMARK_JOURNAL"
report: dict[str, Any] = {"checks": [], "times": [], "ratios": [], "rows": [], "skipped": []}


def note(kind: str, entry: Any) -> None:
    """Adds to the report, and to the journal if there is one."""
    report[kind].append(entry)
    if JOURNAL in os.environ:
        with Path(os.environ[JOURNAL]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([kind, entry]) + "\n")


def recall(journal: Path) -> None:
    """Adds to the report what another process wrote to its journal."""
    if not journal.exists():
        return
    for text in journal.read_text(encoding="utf-8").splitlines(keepends=True):
        if text.endswith("\n"):  # or its process ended while it wrote
            note(*json.loads(text))


def skip(what: str, why: str) -> None:
    note("skipped", {"what": what, "why": why})
    print(f"skipped  {what}: {why}", flush=True)


def check(what: str, holds: bool, value: float | str = "", **more: str) -> None:
    note("checks", {"what": what, "holds": bool(holds), "value": value, **more})
    print(f"{'ok    ' if holds else 'WRONG '}   {what}  {value}", flush=True)


def rand(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def error(made: Tensor, exact: Tensor) -> float:
    made, exact = made.detach(), exact.detach()
    wide = torch.promote_types(exact.dtype, torch.float32)
    return float((made.to(wide) - exact.to(wide)).norm() / exact.to(wide).norm())


def worst(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest error of several; infinite if any is not finite, where `max` may pass over it."""
    errors = [error(made, exact) for made, exact in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def shortened(text: str, most: int = 1000) -> str:
    """The two ends of a text: some errors say first what is wrong, compilers last."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def failed(name: str, failure: Exception, must: Collection[str]) -> None:
    """Reports what did not run: a fault if it is ours, one peer fewer if it is not."""
    print(f"{name}:", file=sys.stderr)
    traceback.print_exception(failure)
    text = f"{type(failure).__name__}: {shortened(str(failure))}"
    if name in must:
        check(f"{name} runs", False, text)
    else:
        skip(name, text)
    if GPU:
        # Raises if the error spoilt the card's context. All else would fail in this process then,
        # so it ends here, and what is left runs in the next.
        torch.cuda.synchronize()


@contextlib.contextmanager
def attempt(name: str) -> Iterator[None]:
    """What raises in here is a failed check, and does not end the run."""
    try:
        yield
    except Exception as failure:
        failed(name, failure, must={name})


def cuts(length: int, count: int = 8) -> list[list[int]]:
    """Rows of `count` documents of uneven lengths, the same for every row but shifted."""
    base = [round(length * (i / count) ** 1.2) for i in range(count + 1)]
    return [
        sorted({0, *(min(length, end + 3 * row) for end in base[1:-1]), length})
        for row in range(BATCH)
    ]


def seen_keys(length: int, documents: bool) -> int:
    """The causal half of the pairs of a query and a key, in a batch of rows."""
    rows = cuts(length) if documents else [[0, length]] * BATCH
    sizes = [end - start for row in rows for start, end in itertools.pairwise(row)]
    return sum(size * size for size in sizes) // 2


@dataclass(frozen=True)
class Peer:
    """One implementation: what it computes, and what its gradient is taken of."""

    call: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]

    def whole(self, dout: Tensor | None) -> tuple[Tensor, ...]:
        """Output and gradients; those of a packed leaf one by one."""
        out = self.call()
        grads = torch.autograd.grad(out, self.leaves, dout)
        packed = len(grads) == 1 and grads[0].dim() == 5
        return (out.detach(), *(grads[0].unbind(2) if packed else grads))


OURS = ("ours", "ours packed")


def agreeing(peers: dict[str, Peer], dout: Tensor | None, limit: float = NEAR) -> dict[str, Peer]:
    """Those that run and whose output and gradients are those of the first; the others are
    reported, and not timed.
    """
    kept: dict[str, Peer] = {}
    exact: tuple[Tensor, ...] = ()
    for name, peer in peers.items():
        try:
            made = peer.whole(dout)
        except Exception as failure:  # a peer that does not run here must not end the others
            failed(name, failure, OURS)
            continue
        exact = exact or made
        away = worst(zip(made, exact, strict=True))
        if away <= limit:
            kept[name] = peer
        elif name in OURS:
            check(f"{name} computes what ours does", False, away)
        else:
            skip(name, f"WRONG: its output or a gradient is {away:.2g} away from ours")
    return kept


def measure(
    calls: dict[str, Callable[[], Any]], rounds: int = 15, must: Collection[str] = OURS
) -> dict[str, float]:
    """Median milliseconds of each call, taken in turn; calls that fail are reported and left out,
    and those that must not are faults.

    A round queues each call several times between two events, while the card sleeps for as long as
    Python takes to do so, so that it never waits for Python; the order turns round every time.
    """
    ready: dict[str, int] = {}
    sleeps: dict[str, int] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(3):
                call()
            queued = time.perf_counter() - start
            torch.cuda.synchronize()
            count = max(3, min(100, round(0.02 / ((time.perf_counter() - start) / 3))))
            # Half as long again as it took just now, in cycles of 2 GHz, which is a fast card's
            # clock; at most 0.1 s, should something have been compiled only now.
            sleeps[name] = min(200_000_000, round(1.5 * 2e9 * count * queued / 3))
            ready[name] = count
        except Exception as failure:
            failed(name, failure, must)
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        for name in list(ready)[:: 1 if turn % 2 else -1]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(sleeps[name])
            start.record()
            for _ in range(ready[name]):
                calls[name]()
            end.record()
            torch.cuda.synchronize()
            samples[name].append(start.elapsed_time(end) / ready[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def row(what: str, times: dict[str, float], **more: Any) -> None:
    note("times", {"what": what, "ms": times, **more})
    text = "  ".join(f"{name} {ms:.3f}" for name, ms in times.items())
    print(f"time     {what}: {text} ms", flush=True)
    peers = {name: ms for name, ms in times.items() if name not in OURS}
    for ours in OURS:
        if ours not in times or not peers:
            continue
        for name, ms in peers.items():
            ratio = {"what": what, "ours": ours, "peer": name, "ratio": ms / times[ours]}
            note("ratios", ratio)
        best = min(peers.values()) / times[ours]
        print(f"ratio    {what}: {ours} {best:.2f}x of the best peer", flush=True)


def backend_call(
    backend: SDPBackend, parts: Callable[[], Any], dropout: float, mask: Tensor | None
) -> Callable[[], Tensor]:
    """torch's attention by one backend, of what `parts` gives as `[B, T, H, D]` each."""

    def call() -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in parts())
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
            ).transpose(1, 2)

    return call


def attention_peers(
    length: int, dropout: float, documents: bool
) -> tuple[dict[str, Peer], dict[str, Peer]]:
    """Everything that computes this: from q, k and v apart, and from one packed tensor.

    A packed tensor costs torch's functions a pass that puts three gradients into one.
    """
    leaves = tuple(rand(BATCH, length, HEADS, DIM).requires_grad_(True) for _ in range(3))
    qkv = torch.stack([leaf.detach() for leaf in leaves], 2).requires_grad_(True)
    bounds = hk.document_bounds(cuts(length), length, device=DEVICE) if documents else None
    mask = visible(bounds) if bounds is not None else None
    ours = partial(
        hk.attention, bounds=bounds, dropout_p=dropout, impl="triton",
        seed=torch.tensor(SEED, device=DEVICE) if dropout else None,
    )  # fmt: skip
    together = Peer(partial(ours, qkv), (qkv,))
    apart = {"ours": Peer(partial(ours, *leaves), leaves), "ours packed": together}
    packed = {"ours packed": together}
    for name, backend in BACKENDS.items():
        if documents and backend == SDPBackend.FLASH_ATTENTION:
            continue  # it takes no mask
        call = backend_call(backend, lambda: leaves, dropout, mask)
        apart[name] = Peer(call, leaves)
        call = backend_call(backend, lambda: qkv.unbind(2), dropout, mask)
        packed[f"{name} packed"] = Peer(call, (qkv,))
    if dropout == 0.0:
        apart["flex"] = Peer(flex_call(leaves, bounds), leaves)
        if documents:
            add_varlen(apart, leaves)
    return apart, packed


def flex_call(leaves: tuple[Tensor, ...], bounds: Tensor | None) -> Callable[[], Tensor]:
    """torch's FlexAttention; built by the first call, where a failure is this peer's alone."""

    @cache
    def build() -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) if bounds is None else (i >= j) & (j >= bounds[0, b, i])

        length = leaves[0].shape[1]
        rows = None if bounds is None else BATCH
        blocks = create_block_mask(seen, rows, None, length, length, device=DEVICE)
        # Each length anew: after a few of them the compiler would go over to one code for all.
        torch._dynamo.reset()
        return partial(torch.compile(flex_attention, dynamic=False), block_mask=blocks)

    return lambda: build()(*(leaf.transpose(1, 2) for leaf in leaves)).transpose(1, 2)


def add_varlen(peers: dict[str, Peer], leaves: tuple[Tensor, ...]) -> None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        skip("varlen flash", "this torch has no torch.nn.attention.varlen")
        return
    length = leaves[0].shape[1]
    ends = [line * length + end for line, cut in enumerate(cuts(length)) for end in cut[:-1]]
    starts = torch.tensor([*ends, BATCH * length], device=DEVICE, dtype=torch.int32)
    longest = int((starts[1:] - starts[:-1]).max())
    names = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}

    def call() -> Tensor:
        q, k, v = (leaf.flatten(0, 1) for leaf in leaves)
        made = varlen_attn(q, k, v, starts, starts, longest, longest, **causal)
        return made.unflatten(0, (BATCH, length))

    peers["varlen flash"] = Peer(call, leaves)


def time_attention(length: int, dropout: float) -> None:
    """Forward, and forward + backward, beside every peer that computes the same."""
    for documents in (False, True):
        what = f"attention S={length} dropout={dropout} documents={documents}"
        with attempt(f"timing {what}"):
            time_attention_case(what, length, dropout, documents)
        torch.cuda.empty_cache()


def time_attention_case(what: str, length: int, dropout: float, documents: bool) -> None:
    apart, packed = attention_peers(length, dropout, documents)
    dout = rand(BATCH, length, HEADS, DIM)
    # Peers drop other weights: outputs then differ by sqrt(2 p), unrelated ones by sqrt(2).
    limit = NEAR + 1.5 * (2 * dropout) ** 0.5
    flops = 4 * HEADS * DIM * seen_keys(length, documents)
    case = {"length": length, "dropout": dropout, "documents": documents}
    apart = agreeing(apart, dout, limit)
    # As training calls it: without gradients FlexAttention would be compiled once more.
    forward = measure({name: peer.call for name, peer in apart.items()})
    row(f"{what} forward", forward, flops=flops)
    whole = measure({name: partial(apart[name].whole, dout) for name in forward})
    row(f"{what} forward+backward", whole, flops=3.5 * flops, packed=False, **case)
    backward = {name: whole[name] - forward[name] for name in whole}
    row(f"{what} backward", backward, flops=2.5 * flops)
    packed = agreeing(packed, dout, limit)
    times = measure({name: partial(peer.whole, dout) for name, peer in packed.items()})
    row(f"{what} packed, forward+backward", times, flops=3.5 * flops, packed=True, **case)


def time_block(length: int) -> None:
    """Packed qkv to rotary to attention, forward + backward, beside compiled rotary and SDPA."""
    cos, sin = hk.rotary_tables(length, 32, device=DEVICE)
    dout = rand(BATCH, length, HEADS, DIM)
    leaf = rand(BATCH, length, 3, HEADS, DIM).requires_grad_(True)

    @torch.compile(dynamic=False)
    def turn() -> list[Tensor]:
        q, k, v = leaf.unbind(2)
        return [*(reference.apply_rotary(part, cos, sin) for part in (q, k)), v]

    peers = {
        "ours": Peer(lambda: hk.attention(hk.apply_rotary(leaf, cos, sin), impl="triton"), (leaf,))
    }
    for name, backend in BACKENDS.items():
        call = backend_call(backend, turn, 0.0, None)
        peers[f"compiled rotary, {name}"] = Peer(call, (leaf,))
    peers = agreeing(peers, dout)
    times = measure({name: partial(peer.whole, dout) for name, peer in peers.items()})
    row(f"qkv, rotary, attention S={length} forward+backward", times)


def time_tutorial(path: Path, length: int) -> None:
    """A user's copy of Triton's 06-fused-attention.py: causal, plain, fp16, which it is made for.

    Importing it runs it: the file is as trusted as this one.
    """
    name = "Triton's tutorial kernel"
    leaves = tuple(
        rand(BATCH, HEADS, length, DIM, dtype=torch.float16).requires_grad_(True) for _ in range(3)
    )
    dout = rand(BATCH, HEADS, length, DIM, dtype=torch.float16)

    def ours() -> Tensor:
        out = hk.attention(*(leaf.transpose(1, 2) for leaf in leaves), impl="triton")
        return out.transpose(1, 2)  # type: ignore[no-any-return]

    try:
        spec = importlib.util.spec_from_file_location("tutorial", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names = inspect.signature(module._attention.forward).parameters
    except Exception as failure:
        failed(name, failure, ())
        return
    # Warp specialisation ends the compiler on cards before sm_100.
    rest = (True, DIM**-0.5, *([False] if "warp_specialize" in names else []))
    peers = {
        "ours": Peer(ours, leaves),
        name: Peer(lambda: module.attention(*leaves, *rest), leaves),
    }
    peers = agreeing(peers, dout)
    what = f"attention fp16 S={length} beside the tutorial"
    with torch.no_grad():
        row(f"{what} forward", measure({key: peer.call for key, peer in peers.items()}))
    whole = measure({key: partial(peer.whole, dout) for key, peer in peers.items()})
    row(f"{what} forward+backward", whole)


def time_memory() -> None:
    """Rotary and cross-entropy as a share of the bandwidth of a copy measured here."""
    from hornbook_kernels.gpu import cross_entropy, rotary

    size = 1 << 30
    source, target = rand(size), rand(size)
    copy = measure({"copy": lambda: target.copy_(source)})["copy"]
    bandwidth = 4 * size / copy * 1e-6
    row(f"copy of {2 * size >> 30} GiB", {"copy": copy}, gigabytes_per_second=round(bandwidth))
    print(f"copy     {bandwidth:.0f} GB/s", flush=True)
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
    calls = {
        "rotary in place": rotate,
        "cross_entropy forward": lambda: cross_entropy.run(
            logits, labels, factors, losses, lse, 0.0, False),
        "cross_entropy gradient": lambda: cross_entropy.run(
            logits, labels, factors, None, lse, 0.0, True),
    }  # fmt: skip
    # Bytes that must move: rotated numbers of q and k, read and written; logits read (and written).
    moved = {
        "rotary in place": 2 * 2 * BATCH * length * 2 * HEADS * 32,
        "cross_entropy forward": 2 * rows * VOCABULARY,
        "cross_entropy gradient": 4 * rows * VOCABULARY,
    }
    for name, ms in measure(calls, must=calls).items():
        share = moved[name] / ms * 1e-6 / bandwidth
        row(name, {"ours": ms}, share_of_copy=share)
        print(f"ratio    {name}: {share:.0%} of the copy's bandwidth", flush=True)


def time_head() -> None:
    """`linear_cross_entropy`, with a bias as the model has it: time and peak memory over inputs."""
    rows = BATCH * 2048
    hidden, weight, bias = leaves = tuple(
        part.requires_grad_(True)
        for part in (rand(rows, WIDTH), rand(VOCABULARY, WIDTH) * 0.02, rand(VOCABULARY) * 0.02)
    )
    labels = torch.randint(VOCABULARY, (rows,), device=DEVICE)

    def unfused() -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)

    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: hk.linear_cross_entropy(hidden, weight, bias, labels),
        "unfused": unfused,
        "compiled unfused": torch.compile(unfused, dynamic=False),
    }
    if hasattr(F, "linear_cross_entropy"):
        native = partial(F.linear_cross_entropy, hidden, weight, labels, linear_bias=bias)
        calls["torch chunked"] = lambda: native(options=torch.nn.LinearCrossEntropyOptions())
        calls["torch unfused"] = native
    else:
        skip("torch's linear_cross_entropy", "needs torch 2.13")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        calls["liger"] = lambda: LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, labels, bias)[0]  # fmt: skip
    except ImportError:
        skip("Liger", "liger-kernel is not installed")
    except Exception as failure:  # installed, but not for this torch or Triton
        failed("liger", failure, ())
    peers = agreeing({name: Peer(call, leaves) for name, call in calls.items()}, None)
    times = measure({name: partial(peer.whole, None) for name, peer in peers.items()}, rounds=7)
    peaks = {}
    for name in times:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made = peers[name].whole(None)
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        del made
    row("linear_cross_entropy 16384 x 2048 x 51200", times, peak_mib=peaks)
    print(f"memory   { ({name: round(mib) for name, mib in peaks.items()}) } MiB", flush=True)


def record(out: Path | None = None) -> None:
    """Writes what was measured where `impl="auto"` looks, or to another file to be put there; only
    if all checks hold.
    """
    if not all(entry["holds"] for entry in report["checks"]):
        print("not recorded: a check failed", flush=True)
        return
    path = Path(dispatch.__file__).with_name("measured.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    card = report["card"]
    rows = [known for known in data["attention"] if known["card"] != card]
    for entry in report["times"]:
        peers = [ms for name, ms in entry["ms"].items() if name.startswith("sdpa")]
        if "length" in entry and peers:
            ours = entry["ms"]["ours packed" if entry["packed"] else "ours"]
            rows.append({
                "card": card, "dtype": "bfloat16", "head_dim": DIM, "length": entry["length"],
                "packed": entry["packed"], "grouped": False, "causal": True,
                "dropout": entry["dropout"] > 0, "documents": entry["documents"],
                "ratio": round(min(peers) / ours, 3),
            })  # fmt: skip
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in rows)
    what = json.dumps(data["what"])
    cards = json.dumps(sorted({*data["cards"], card}))
    out = out or path
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f'{{\n  "what": {what},\n  "cards": {cards},\n  "attention": [\n{lines}\n  ]\n}}\n',
        encoding="utf-8",
    )
