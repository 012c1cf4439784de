"""Which implementation runs, and why: from device, dtype, shape and card, never from a failure.

`impl="auto"` takes ours only where `measured.json` says that it is at least as fast on that card at
that shape, or where torch has nothing that computes the same (keyed dropout, the log-sum-exp).
A measurement speaks for lengths up to twice or half its own, and for nothing else that differs.

    python -c "import torch, hornbook_kernels as hk; print(hk.explain(torch.ones(1, 8, 3, 2, 64)))"
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

IMPLEMENTATIONS = ("auto", "triton", "sdpa", "reference")
OVERRIDE = "HORNBOOK_KERNELS"
HEAD_DIMS = (32, 64, 96, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ARCHITECTURES = {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}
_RECORD: dict[str, Any] = json.loads(
    Path(__file__).with_name("measured.json").read_text(encoding="utf-8")
)
# In words here, because torch.compile can not format numbers that it holds for symbols.
_MEASURED: list[dict[str, Any]] = [
    row | {"reason": f"{row['ratio']:.2f}x of torch's at {row['length']}"}
    for row in _RECORD["attention"]
]
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Choice:
    """What will run.

    Attributes:
        impl: `"triton"` (our operator, which on a CPU is its plain form), `"sdpa"` (torch's
            fused attention) or `"reference"`.
        reason: Why.
    """

    impl: str
    reason: str


@cache
def _card(index: int) -> tuple[str, int | None]:
    """A CUDA device's name and the architecture whose kernels run on it."""
    return torch.cuda.get_device_name(index), _ARCHITECTURES.get(
        torch.cuda.get_device_capability(index)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def card(device: torch.device) -> tuple[str, int | None]:
    """The name of a CUDA device and the architecture (80, 90, 100) whose kernels run on it.

    Args:
        device: A CUDA device.

    Returns:
        Name, and None where there are no kernels for it or no such device (fake tensors).
    """
    if not torch.cuda.is_available():
        return "no card", None
    return _card(torch.cuda.current_device() if device.index is None else device.index)


def unfit(device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str | None:
    """Why our kernels can not take a tensor.

    Args:
        device: Its device.
        dtype: Its dtype.
        head_dim: D, for attention.

    Returns:
        The reason; None if they can. A CPU can: its operators run the plain form.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"no kernels for {device.type}"
    if torch.version.hip:
        return "no kernels for ROCm"
    if not _HAS_TRITON:
        return "Triton is not installed"
    if dtype not in DTYPES:
        return f"no kernels for {dtype}"
    if head_dim is not None and head_dim not in HEAD_DIMS:
        return f"head dimension {head_dim} is none of {HEAD_DIMS}"
    name, architecture = card(device)
    return f"no configuration for {name}" if architecture is None else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _has_autocast(kind: str) -> bool:
    """Apart, because torch.compile of torch 2.11 does not see through torch's function."""
    return torch.amp.is_autocast_available(kind)


def working_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype to multiply in: autocast's, where it is on.

    Args:
        x: An input.

    Returns:
        The dtype; fp64 stays.
    """
    kind = x.device.type
    autocast = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    low: torch.dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
    return x.dtype if x.dtype == torch.float64 else low


def unproven(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why rotary's and the losses' operators run their plain form on a tensor.

    Args:
        device: Its device.
        dtype: Its dtype.

    Returns:
        The reason; None where our kernels run: on a card whose checks and timings are on record,
        or wherever they can if the variable HORNBOOK_KERNELS is `triton`; nowhere if it is
        `reference`.
    """
    reason, asked = unfit(device, dtype), os.environ.get(OVERRIDE)
    if reason or asked == "triton":
        return reason
    if asked == "reference":
        return "the plain form is asked for"
    name, _ = card(device)
    return None if name in _RECORD["cards"] else f"not yet checked on {name}"


def _measured(
    device: torch.device, dtype: torch.dtype, length: int, **shape: int | bool
) -> tuple[float, str] | None:
    """Our speed over torch's at the nearest length on record, and where that was."""
    name, _ = card(device)
    wanted = {"card": name, "dtype": str(dtype).removeprefix("torch."), **shape}
    nearest: dict[str, Any] | None = None
    # Not `min` with a key: torch.compile does not see through it where the length is a symbol.
    for row in _MEASURED:
        if any(row[key] != value for key, value in wanted.items()):
            continue
        if length <= 2 * row["length"] <= 4 * length and (
            nearest is None or abs(row["length"] - length) < abs(nearest["length"] - length)
        ):
            nearest = row
    if nearest is None:
        return None
    return nearest["ratio"], f"{nearest['reason']} on {name}"


def choose(
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    head_dim: int,
    *,
    packed: bool = False,
    grouped: bool = False,
    causal: bool = True,
    mask: bool = False,
    documents: bool = False,
    dropout: bool = False,
    keyed: bool = False,
    lse: bool = False,
    impl: str = "auto",
) -> Choice:
    """Picks an implementation of attention.

    Args:
        device: Of q, k and v.
        dtype: Of q, k and v.
        length: T.
        head_dim: D.
        packed: Whether q, k and v are one tensor.
        grouped: Whether heads of `q` share heads of `k`.
        causal: Whether a query sees no later keys.
        mask: Whether there is an explicit mask.
        documents: Whether there are document boundaries.
        dropout: Whether weights are dropped.
        keyed: Whether the seed of the dropout is stated.
        lse: Whether the log-sum-exp is wanted.
        impl: What the caller asks for; "auto" may be overridden by the variable HORNBOOK_KERNELS.

    Returns:
        The choice.

    Raises:
        ValueError: If what is asked for can not be had.
    """
    if impl == "auto":
        impl = os.environ.get(OVERRIDE, "auto")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} (or {OVERRIDE}) must be one of {IMPLEMENTATIONS}")
    no_ours = "an explicit mask" if mask else unfit(device, dtype, head_dim)
    exact = (dropout and keyed) or lse
    no_torch = "torch has no keyed dropout and returns no log-sum-exp" if exact else None
    if impl == "triton" and no_ours:
        raise ValueError(f"impl 'triton' is not possible: {no_ours}")
    if impl == "sdpa" and no_torch:
        raise ValueError(f"impl 'sdpa' is not possible: {no_torch}")
    if impl != "auto":
        return Choice(impl, "asked for")
    if no_torch:
        return Choice("reference", no_ours) if no_ours else Choice("triton", no_torch)
    if no_ours or device.type == "cpu":
        return Choice("sdpa", no_ours or "a CPU: torch's is the fused one")
    found = _measured(
        device, dtype, length, head_dim=head_dim, packed=packed, grouped=grouped, causal=causal,
        dropout=dropout, documents=documents,
    )  # fmt: skip
    if found is None:
        no_row = f"no measurement of such a shape on {card(device)[0]}: see benchmarks/kernels.py"
        return Choice("sdpa", no_row)
    return Choice("triton" if found[0] >= 1.0 else "sdpa", found[1])
