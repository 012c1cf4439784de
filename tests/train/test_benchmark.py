"""`benchmarks/train.py`: what it says of several GPUs, whether its arms are one model, and what is
left of an arm that fails.
"""

import json
import math
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "train.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = spec_from_file_location("benchmark_train", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modelled_scaling_does_not_depend_on_the_rows_that_were_measured(
    benchmark: ModuleType,
) -> None:
    """At the same tokens a second, a step of 1024 rows takes as long however it is cut."""
    made = [
        benchmark.modelled_scaling(1_418_270_720, rows * 2048 / 40_000, rows)
        for rows in (8, 16, 32)
    ]
    assert made[0] == made[1] == made[2]
    compute = 1024 // 8 * 2048 / 40_000
    exchange = 2 * 7 / 8 * 4 * 1_418_270_720 / 360e9
    wanted = compute / (compute + exchange)
    assert made[0][0]["modelled_efficiency"] == pytest.approx(wanted, abs=1e-4)


def arms(*losses: float | None) -> dict[str, Any]:
    return {f"arm {place}": {"check_loss": loss} for place, loss in enumerate(losses)}


def test_the_check_tells_models_apart(benchmark: ModuleType) -> None:
    pytest.importorskip("transformers")
    tiny = benchmark.SHAPES["tiny"]
    ours = benchmark.check_loss({"model": "tiny"})
    peer = benchmark.check_loss({"model": "tiny", "peer": "transformers", "dropout": 0.1})
    assert benchmark.same_model(arms(ours, peer, None))
    for name, value in (
        ("num_attention_heads", 1),
        ("partial_rotary_factor", 0.0),
        ("num_hidden_layers", 1),
        ("layer_norm_eps", 0.1),
    ):
        benchmark.SHAPES["other"] = {**tiny, name: value}
        other = benchmark.check_loss({"model": "other"})
        assert math.isfinite(other)
        assert not benchmark.same_model(arms(ours, peer, other)), name


def test_no_losses_are_no_agreement(benchmark: ModuleType) -> None:
    assert benchmark.same_model(arms(None, None)) is None
    assert benchmark.same_model(arms(1.0)) is None
    assert benchmark.same_model(arms(1.0, math.nan)) is False
    assert benchmark.same_model(arms(1.0, 1.0005)) is True


def test_an_arm_that_fails_keeps_its_traceback(benchmark: ModuleType) -> None:
    made = benchmark.start_arm("ours", {"model": "no such", "threads": 1}, 250.0)
    assert made["failed"] == "ended with status 1: KeyError: 'no such'"
    assert "Traceback" in made["stderr"]
    assert "in shape_of" in made["stderr"]


def test_an_arm_that_writes_no_result_has_failed(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "run_child", lambda *_, **__: ("", "a warning"))
    made = benchmark.start_arm("ours", {}, 250.0)
    assert made == {"failed": "ended without a result", "stderr": "a warning"}


def test_a_process_that_hangs_is_ended_with_all_it_started(benchmark: ModuleType) -> None:
    import children

    sleep = "import time; time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{sleep}'])"
    read, write = os.pipe()
    with os.fdopen(read, "rb") as ours:
        with os.fdopen(write, "wb") as theirs:
            command = [sys.executable, "-c", code]
            why, text = children.run_child(command, 5.0, stdout=theirs)
        # The end of the pipe comes when nobody has it open any more.
        assert ours.read() == b""
    assert why == "timed out after 5 s"
    assert "subprocess.py" in text  # where it hung


def test_advice_after_an_error_is_not_the_error(benchmark: ModuleType) -> None:
    import children

    text = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Device-side assertions were explicitly omitted for this error check."""
    wanted = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert children.what_was_raised(text) == wanted
    assert children.what_was_raised("killed\nby a signal") == "by a signal"
    assert children.what_was_raised("") == "no reason given"


def measured(rate: float, recompute: bool = False, loss: float = 1.0) -> dict[str, Any]:
    return {
        "plan": {"recompute": recompute, "compile": True, "micro_batch_size": 16},
        "tokens_per_second": rate,
        "losses": [2.0, 1.0],
        "peak_memory_bytes": 1 << 30,
        "check_loss": loss,
    }


PEER = "transformers + SDPA + compile"


def test_only_arms_that_do_the_same_work_are_compared(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"ours": [measured(150.0, recompute=True)], PEER: [measured(100.0)]}
    batch = {"rows": 32, "arms": benchmark.summarise(results, 1, 1.0)}
    assert "ours_is_faster_by" not in batch["arms"][PEER]
    benchmark.print_table(batch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("micro-batches of 16, activations computed again")
    assert lines[2].endswith("only one of the two computes activations again")
    assert benchmark.judge_goals(batch)[0]["result"] == "open"
    results["ours, compile"] = [measured(104.0)]
    batch["arms"] = benchmark.summarise(results, 1, 1.0)
    assert batch["arms"][PEER]["ours_is_faster_by"] == 1.04
    goal = benchmark.judge_goals(batch)[0]
    assert (goal["measured"], goal["result"]) == (1.04, "missed")


@pytest.mark.parametrize(
    ("ours", "peer", "code"),
    [
        (measured(150.0), measured(100.0), 0),
        (measured(150.0), {"failed": "not installed", "stderr": ""}, 0),
        ({"failed": "timed out after 180 s", "stderr": "here"}, measured(100.0), 1),
        ({"failed": "out of memory"}, {"failed": "out of memory"}, 1),
        (measured(150.0), measured(100.0, loss=1.1), 1),
    ],
)
def test_the_exit_code_says_whether_ours_ran(
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ours: dict[str, Any],
    peer: dict[str, Any],
    code: int,
) -> None:
    limits: list[float] = []

    def start_arm(arm: str, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        limits.append(seconds)
        return ours if arm == "ours" else peer

    monkeypatch.setattr(benchmark, "start_arm", start_arm)
    monkeypatch.setattr(benchmark, "ceiling", lambda: 1e12)
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    out = tmp_path / "made" / "train.json"
    command = ["train.py", "--tiny", "--minutes", "2", "--arms", "ours", PEER, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmark.main() == code
    report = json.loads(out.read_text(encoding="utf-8"))
    both = [entry for entry in (ours, peer) if "failed" not in entry]
    assert report["losses_agree"] is (None if len(both) < 2 else code == 0)
    assert report["batches"][0]["arms"]["ours"].get("failed") == ours.get("failed")
    assert max(limits) <= 120


def test_a_run_without_time_for_ours_is_no_success(benchmark: ModuleType) -> None:
    report = {
        "batches": [{"rows": 16, "arms": {PEER: measured(1.0)}}],
        "left_out": [],
        "losses_agree": None,
    }
    assert benchmark.faults(report) == []
    report["left_out"] = ["16 rows, round 1 of 1: ours, kernels"]
    assert benchmark.faults(report) == ["none of ours ran: out of time"]
