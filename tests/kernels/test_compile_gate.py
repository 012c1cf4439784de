"""The compile gate (`kernels/compile_gate.py`), in processes of its own: no GPU is needed.

`make test` puts both ends of the supported range of Triton beside the environment; each is compiled
with and compared with its rows of `kernels/compiled.json`.
"""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
GATE = ROOT / "kernels" / "compile_gate.py"
TABLE = json.loads((ROOT / "kernels" / "compiled.json").read_text(encoding="utf-8"))
ENDS = ("3.6.0", "3.9.0")


def folders() -> list[Path]:
    """Where Triton versions other than the installed one are."""
    named = [Path(name) for name in os.environ.get("HORNBOOK_TRITON", "").split(os.pathsep) if name]
    return named or sorted((ROOT / ".venv").glob("triton-*"))


def run_gate(folder: Path | None, cache: Path, *options: str) -> str:
    path = [str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(([str(folder)] if folder else []) + path),
        "TRITON_CACHE_DIR": str(cache),
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(GATE), *options], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def gate() -> Any:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    found = importlib.util.spec_from_file_location("compile_gate", GATE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["compile_gate"] = module
    found.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)
def test_the_kernels_of_a_trainer_compile_to_what_is_on_record(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(run_gate, folder, tmp_path, "--quick", "--jobs", "1")
            for folder in [*folders(), *([] if folders() else [None])]
        ]
    for run in runs:
        assert " 0 faults" in run.result()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_compiles_to_what_is_on_record(tmp_path: Path) -> None:
    for folder in folders() or [None]:
        assert " 0 faults" in run_gate(folder, tmp_path)


def test_the_gate_notices(gate: Any) -> None:
    rows = dict(list(TABLE[ENDS[0]].items())[:3])
    assert gate.judge(rows, TABLE[ENDS[0]]) == []
    name = next(iter(rows))
    changed = copy.deepcopy(rows)
    changed[name]["registers"] += 1
    assert [fault.startswith(name) for fault in gate.judge(changed, rows)] == [True]
    assert gate.judge(changed, None) == []
    changed[name]["spills"] = 5
    assert "5 spills" in gate.judge(changed, None)[0]
    assert "not in" in gate.judge(rows, {})[0]
    # What registers and spills do not show: products one by one, and numbers one by one.
    for field, value, fault in (("waits", 9999, "one by one"), ("widest", 2, "wider than 2 bytes")):
        changed = copy.deepcopy(rows)
        changed[name][field] = value
        assert fault in gate.judge(changed, None)[0]


def test_a_row_is_of_its_kernel_and_configuration(
    gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(gate.cases(90, False))
    before = case.source()
    assert replace(case, options=case.options | {"num_warps": 1}).source() != before
    assert replace(case, constants=case.constants | {"ROWS": 16}).source() != before
    text = Path(gate.attention.__file__).read_text(encoding="utf-8")
    for old, new, same in [
        ("    # A row may have seen", "    # One may have seen", True),
        ('"""The online softmax', '"""An online softmax', True),
        ("tl.exp2(top - base)", "tl.exp2(base - top)", False),
    ]:
        assert old in text
        changed = text.replace(old, new)
        with monkeypatch.context() as patch:
            gate._functions.cache_clear()
            patch.setattr(gate.inspect, "getsource", lambda _, changed=changed: changed)
            assert (case.source() == before) == same
    gate._functions.cache_clear()


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_the_gate_gives_the_types_that_a_launch_does(
    gate: Any, documents: bool, dropout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that registers and spills are those of what runs."""
    launched: dict[str, tuple[Any, ...]] = {}

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **_: launched.update({self.name: arguments})

    cases = {}
    for name in ("forward", "backward_q", "backward_kv"):
        case = gate.attention_case(name, 90, 64, torch.bfloat16, dropout, documents)
        cases[name] = case
        monkeypatch.setattr(gate.attention, f"{name}_kernel", Kernel(name))
    x = torch.empty(2, 9, 32, 64, dtype=torch.bfloat16)
    bounds = torch.empty(2, 2, 9, dtype=torch.int32) if documents else None
    rest = (bounds, torch.tensor(1) if dropout else None, 26 if dropout else 0, True, 0.1)
    out, lse = gate.attention.forward(x, x, x, *rest, architecture=90)
    gate.attention.backward(
        out, None, x, x, x, out, lse, *rest, (x, x, x), architecture=90,
    )  # fmt: skip
    restart = gate._rotary(torch.bfloat16, restart=documents)
    cases["rotary"] = restart
    monkeypatch.setattr(gate.rotary, "rotary_kernel", Kernel("rotary"))
    table = torch.empty(9, 16)
    starts = None if bounds is None else bounds[0]
    gate.rotary.rotate(x[:, :, None], x[:, :, None], table, table, starts, False, False)
    kinds = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32",
             torch.int64: "*i64"}  # fmt: skip
    for name, case in cases.items():
        given = dict(zip(case.types, launched[name], strict=True))
        pointers = {key: kinds[part.dtype] for key, part in given.items() if key.endswith("_ptr")}
        assert pointers == {key: case.types[key] for key in pointers}


LAUNCH = """
import sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Card:
    is_active = staticmethod(lambda: True)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

driver.set_active(Card())
run = JITFunction.run
JITFunction.run = lambda self, *given, **options: run(self, *given, **options | {"warmup": True})
import compile_gate
from hornbook_kernels.gpu import attention
entries = lambda: len(list(Path(sys.argv[1]).iterdir()))
for documents in (False, True):
    case = ("forward", 90, 64, torch.bfloat16, documents, documents)
    compile_gate.compile_case(compile_gate.attention_case(*case), 90)
    before = entries()
    x = torch.empty(2, 64, 32, 64, dtype=torch.bfloat16)
    bounds, seed = torch.empty(2, 2, 64, dtype=torch.int32), torch.tensor(1)
    given = (bounds, seed, 26) if documents else (None, None, 0)
    attention.forward(x, x, x, *given, True, 0.1, architecture=90)
    assert entries() == before, (documents, before, entries())
"""


def test_a_launch_finds_what_the_gate_has_compiled(gate: Any, tmp_path: Path) -> None:
    """`benchmarks/kernels.py --tune` compiles its tiles by the gate, several at a time."""
    for folder in folders() or [None]:
        path = [str(folder)] if folder else []
        cache = tmp_path / (folder.name if folder else "installed")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, str(ROOT / "kernels")]),
            "TRITON_CACHE_DIR": str(cache),
        }
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-c", LAUNCH, str(cache)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


def test_the_table_is_whole_and_free_of_spills(gate: Any) -> None:
    """Both ends, every architecture and case, as the kernels are now; tensor cores where they are
    expected.
    """
    assert set(TABLE) == set(ENDS)
    sources = {
        f"sm_{arch} {case.name}": case.source()
        for arch in (80, 90, 100)
        for case in gate.cases(arch, False)
    }
    for rows in TABLE.values():
        # If not, `compile_gate.py --update` with each Triton compiles what changed.
        assert {name: row["source"] for name, row in rows.items()} == sources
        for name, row in rows.items():
            assert row["spills"] == 0, name
            assert row["registers"] <= 255
            assert row["shared"] <= (227 if "sm_80" not in name else 163) * 1024
            exact = re.search(r"sm_[89]0 .*_kv d64 fp32|_kv d(96|128) fp32", name)
            assert (row["matrix"] > 0) == ("attention" in name and not exact), name
