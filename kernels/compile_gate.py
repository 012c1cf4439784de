"""Does every kernel still compile without spills, to the registers and memory that are on record?

Compiles each kernel and configuration for sm_80, sm_90 and sm_100 with the assembler inside the
Triton wheel: no GPU, driver or CUDA toolkit. `compiled.json` holds, for each Triton version,
registers a thread, spill instructions, bytes of shared memory a program, matrix instructions, waits
for asynchronous ones, bytes of the widest access to global memory and instructions in all; a spill,
a wait for every product, narrow accesses, or a row that changed, fails. A row also holds a hash of
what it was compiled from, so that no kernel or configuration can change without its rows being made
again.

    python kernels/compile_gate.py            # every kernel for the Triton that is installed
    python kernels/compile_gate.py --quick    # the ones a phi-1 trainer uses, sm_80 and sm_90
    python kernels/compile_gate.py --update   # write rows whose source changed, on purpose
    PYTHONPATH=kernels:/path/to/another/triton python kernels/compile_gate.py
"""

import argparse
import ast
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hornbook_kernels.gpu import attention, configs, cross_entropy, rotary

TABLE = Path(__file__).with_name("compiled.json")
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
        name: Its row in the table, less the architecture.
        kernel: The Triton function.
        types: Type of each run-time argument, by name.
        constants: Value of each compile-time argument, by name.
        options: `num_warps` and the like.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]

    def source(self) -> str:
        """A hash of all that the compiler is given, but for its version and the architecture."""
        given = (self.kernel.__name__, self.types, self.constants, self.options)
        text = _functions(self.kernel.__module__) + repr(given)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _functions(module: str) -> str:
    """A module's Triton functions and constants, without comments, docstrings and layout."""
    loaded = sys.modules[module]
    parts = [
        f"{name} = {value.value}"
        for name, value in sorted(vars(loaded).items())
        if isinstance(value, triton.language.constexpr)
    ]
    for node in ast.parse(inspect.getsource(loaded)).body:
        if isinstance(node, ast.FunctionDef) and "triton.jit" in map(
            _decorator, node.decorator_list
        ):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            parts.append(ast.unparse(node))
    return "\n".join(parts)


def _decorator(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


# What is not of the inputs' dtype (pointers) or a 32-bit integer.
SPECIAL = {
    "lse_ptr": "*fp32", "delta_ptr": "*fp32", "dlse_ptr": "*fp32", "starts_ptr": "*i32",
    "ends_ptr": "*i32", "seed_ptr": "*i64", "scale": "fp32", "rescale": "fp32",
    "cos_ptr": "*fp32", "sin_ptr": "*fp32", "labels_ptr": "*i64", "factors_ptr": "*fp32",
    "losses_ptr": "*fp32", "z_loss": "fp32",
}  # fmt: skip
# Triton's launches from 3.7 on list every compile-time argument as one without attributes; before,
# the strings among them.
ALL_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
# Pointers to what only some launches have, and the constant that says whether they do.
OPTIONAL = (
    ("starts_ptr", "DOCUMENTS"), ("starts_ptr", "RESTART"), ("ends_ptr", "DOCUMENTS"),
    ("seed_ptr", "DROPOUT"),
)  # fmt: skip


def _types(function: Any, dtype: torch.dtype, constants: dict[str, Any]) -> dict[str, str]:
    pointer = f"*{NAMES[dtype]}"
    types = {
        name: SPECIAL.get(name, pointer if name.endswith("_ptr") else "i32")
        for name in function.arg_names
        if name not in constants
    }
    # Without documents or dropout a launch passes in their place an fp32 tensor that it has anyway.
    for name, flag in OPTIONAL:
        if name in types and not constants.get(flag, True):
            types[name] = "*fp32"
    return types


def _named(name: str, flags: dict[str, bool]) -> str:
    return " ".join([name, *(word for word, on in flags.items() if on)])


def attention_case(
    kernel: str,
    architecture: int,
    head_dim: int,
    dtype: torch.dtype,
    dropout: bool,
    documents: bool,
    *,
    group: int = 1,
    causal: bool = True,
    pulled: bool = False,
    config: configs.Config | None = None,
) -> Case:
    """An attention kernel.

    Args:
        kernel: `"forward"`, `"backward_q"` or `"backward_kv"`.
        architecture: 80, 90 or 100.
        head_dim: D.
        dtype: Of q, k and v.
        dropout: Whether weights are dropped.
        documents: Whether there are documents.
        group: Heads of queries to a head of keys.
        causal: Whether a query sees no later keys.
        pulled: Whether the log-sum-exp has a gradient.
        config: In place of the table's.

    Returns:
        The case.
    """
    function = getattr(attention, f"{kernel}_kernel")
    extras = dropout or documents
    config = config or configs.attention(kernel, architecture, head_dim, dtype, extras, group > 1)
    like = torch.empty(1, 1, 32, head_dim, dtype=dtype, device="meta")
    constants = attention.constants(
        like, like[:, :, : 32 // group], documents, dropout, causal, config
    )
    if kernel == "backward_q":
        constants["PULLED"] = pulled
    flags = {"dropout": dropout, "documents": documents, f"group{group}": group > 1,
             "full": not causal, "lse": pulled}  # fmt: skip
    name = _named(f"attention.{kernel} d{head_dim} {NAMES[dtype]}", flags)
    return Case(name, function, _types(function, dtype, constants), constants, config.options())


def _rotary(
    dtype: torch.dtype,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    restart: bool = False,
    copy: bool = False,
) -> Case:
    function = rotary.rotary_kernel
    constants = rotary.constants(64, 16, interleaved, inverse, restart, copy)
    flags = {"interleaved": interleaved, "inverse": inverse, "documents": restart, "copy": copy}
    name = _named(f"rotary d64 r32 {NAMES[dtype]}", flags)
    types = _types(function, dtype, constants)
    return Case(name, function, types, constants, rotary.CONFIG.options())


def _cross_entropy(dtype: torch.dtype, loss: bool, gradient: bool) -> Case:
    function, config = cross_entropy.cross_entropy_kernel, cross_entropy.CONFIG
    constants = {"LOSS": loss, "GRADIENT": gradient, "COLUMNS": config.columns}
    name = _named(f"cross_entropy {NAMES[dtype]}", {"loss": loss, "gradient": gradient})
    return Case(name, function, _types(function, dtype, constants), constants, config.options())


def cases(architecture: int, quick: bool) -> Iterator[Case]:
    """What is compiled for one architecture.

    Args:
        architecture: 80, 90 or 100.
        quick: Only what a phi-1 trainer uses.

    Yields:
        One case after another.
    """
    plain, dropped, cut, both = (False, False), (True, False), (False, True), (True, True)
    half, whole = torch.bfloat16, torch.float32
    for kernel in ("forward", "backward_q", "backward_kv"):
        make = partial(attention_case, kernel, architecture)
        if quick:
            for flags in [plain, both] if architecture == 90 else [both]:
                yield make(64, half, *flags)
            continue
        # Whatever holds most registers is compiled with every option, the rest with none and all.
        for dtype, head_dim in product((half, whole), (32, 64, 96, 128)):
            every = (dtype, head_dim) == (half, 64)
            every = every or (kernel == "backward_kv" and head_dim in (64, 128))
            for flags in [plain, dropped, cut, both] if every else [plain, both]:
                yield make(head_dim, dtype, *flags)
        for flags in (plain, both):
            yield make(64, torch.float16, *flags)
        for dtype, head_dim in ((half, 64), (half, 128), (whole, 64)):
            yield make(head_dim, dtype, *both, group=4)
            if kernel == "backward_kv":  # the one whose loops are over a group
                yield make(head_dim, dtype, *plain, group=4)
                yield make(head_dim, dtype, *dropped, causal=False)
            if kernel == "backward_q":
                yield make(head_dim, dtype, *both, pulled=True)
        for flags in (plain, dropped)[: 1 if kernel == "backward_kv" else 2]:
            yield make(64, half, *flags, causal=False)
    yield _rotary(half)
    yield _cross_entropy(half, True, True)
    if not quick:
        yield _rotary(half, restart=True)
        yield _rotary(half, inverse=True, copy=True)
        for dtype in (half, whole):
            yield _rotary(dtype, interleaved=True, restart=True, copy=True)
        for dtype in (half, torch.float16, whole):
            yield _cross_entropy(dtype, True, False)
            yield _cross_entropy(dtype, False, True)
        for dtype in (torch.float16, whole):
            yield _rotary(dtype)
            yield _cross_entropy(dtype, True, True)


Row = dict[str, int | str]


def compile_case(case: Case, architecture: int) -> Row:
    """Compiles and reads what the assembler says.

    Args:
        case: What to compile.
        architecture: For which card.

    Returns:
        registers a thread, spill instructions, shared bytes a program, matrix instructions, waits
        for them (sm_90), bytes of the widest access to global memory, instructions in all, and the
        hash of what was compiled.
    """
    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    plain = {case.kernel.params[i].name for i in range(len(names))
             if case.kernel.params[i].do_not_specialize}  # fmt: skip
    # As a launch makes them, empty ones included, so that it finds in the cache what this compiles.
    attrs: dict[tuple[int], list[list[str | int]]] = {}
    for i, name in enumerate(names):
        if signature[name] == "constexpr":
            if ALL_CONSTANTS or isinstance(case.constants[name], str):
                attrs[i,] = []
        elif signature[name][0] in "*i" and name not in plain:
            attrs[i,] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, case.constants, attrs)
    target = GPUTarget("cuda", architecture, 32)
    made = triton.compile(source, target=target, options=case.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("cuobjdump", "-sass", file.name)
    registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
    return {
        "registers": registers,
        "spills": len(re.findall(r"\bSTL\b", sass)),
        "shared": made.metadata.shared,
        "matrix": len(re.findall(r"\b(?:HGMMA|HMMA|UTCHMMA)\b", sass)),
        "waits": len(re.findall(r"\bWARPGROUP\.DEPBAR\b", sass)),
        "widest": max(
            _bytes(found) for found in re.findall(r"\b(?:LDG|STG|LDGSTS)((?:\.\w+)*)", sass)
        ),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.M)),
        "source": case.source(),
    }


def _bytes(suffixes: str) -> int:
    """How much one access to global memory moves."""
    found = re.search(r"\.(U8|S8|U16|S16|64|128)\b", suffixes)
    return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[found[1]] if found else 4


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([path, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def compile_named(architecture: int, name: str) -> Row:
    """`compile_case` of one of `cases`, by its name: for other processes."""
    case = next(case for case in cases(architecture, quick=False) if case.name == name)
    return compile_case(case, architecture)


def measure(
    architectures: list[int], quick: bool, jobs: int, known: dict[str, Row]
) -> dict[str, Row]:
    """Compiles cases, several at a time.

    Args:
        architectures: For which cards.
        quick: Only what a phi-1 trainer uses.
        jobs: Processes.
        known: Rows that are taken over where nothing that they were compiled from has changed.

    Returns:
        Rows by `"sm_90 <case>"`.
    """
    rows, todo = {}, []
    for arch in architectures:
        for case in cases(arch, quick):
            name = f"sm_{arch} {case.name}"
            if known.get(name, {}).get("source") == case.source():
                rows[name] = known[name]
            else:
                todo.append((arch, case.name))
    with ProcessPoolExecutor(jobs) as pool:
        made = pool.map(compile_named, *zip(*todo, strict=True)) if todo else ()
        for (arch, name), row in zip(todo, made, strict=True):
            rows[f"sm_{arch} {name}"] = row
    return rows


def judge(rows: dict[str, Row], recorded: dict[str, Row] | None) -> list[str]:
    """What is wrong with freshly compiled rows.

    Args:
        rows: From `measure`.
        recorded: The table's rows for this Triton; None for a version that has none, whose rows
            must only be free of spills.

    Returns:
        A sentence for each fault.
    """
    faults = [f"{name}: {row['spills']} spills" for name, row in rows.items() if row["spills"]]
    for name, row in rows.items():
        if row["waits"] and int(row["waits"]) >= int(row["matrix"]):
            faults.append(f"{name}: {row['waits']} waits for {row['matrix']} products, one by one")
        if int(row["widest"]) < 16:
            faults.append(f"{name}: no access to memory wider than {row['widest']} bytes")
    if recorded is not None:
        for name, row in rows.items():
            known = recorded.get(name)
            if known is None:
                faults.append(f"{name}: not in {TABLE.name}; run with --update")
            elif known != row:
                faults.append(f"{name}: {row}, on record {known}; if meant, run with --update")
    return faults


def write(table: dict[str, dict[str, Row]]) -> None:
    """Writes the table, one row a line.

    Args:
        table: Rows by Triton version.
    """
    blocks = []
    for version in sorted(table):
        lines = [
            f"  {json.dumps(name)}: {json.dumps(row)}"
            for name, row in sorted(table[version].items())
        ]
        blocks.append(f"{json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n}")
    TABLE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


def main() -> int:
    """Compiles, compares, prints; 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the kernels of a phi-1 trainer only")
    parser.add_argument("--update", action="store_true", help="record what was compiled")
    parser.add_argument("--arch", type=int, nargs="+", choices=configs.ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    options = parser.parse_args()
    architectures = options.arch or list(configs.ARCHITECTURES)[: 2 if options.quick else 3]
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    recorded = table.get(triton.__version__)
    known = (recorded or {}) if options.update else {}
    rows = measure(architectures, options.quick, options.jobs, known)
    if options.update:
        kept = known if options.quick or options.arch else {}
        recorded = table[triton.__version__] = kept | rows
        write(table)
    faults = judge(rows, recorded)
    print(f"Triton {triton.__version__}: {len(rows)} rows, {len(faults)} faults")
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
