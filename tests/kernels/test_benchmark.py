"""`benchmarks/kernels.py` on a CPU, with this package alone on the path."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kernels.json"


def run(*options: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "kernels"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HORNBOOK_KERNELS", None)
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with nothing reported yet."""
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "kernel_times", raising=False)
    monkeypatch.delenv("HORNBOOK_BENCHMARK_JOURNAL", raising=False)
    spec = importlib.util.spec_from_file_location("benchmark_of_kernels", folder / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kernel_times"]


@pytest.fixture
def times(benchmark: Any) -> Any:
    return sys.modules["kernel_times"]


@pytest.fixture
def in_this_process(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts run here, where a test can replace what they call."""

    def run_child(command: list[str], seconds: float, **_: Any) -> tuple[str, str]:
        assert command[-2] == "--part"
        benchmark.run_part(command[-1], benchmark.arguments())
        return "", ""

    monkeypatch.setattr(benchmark, "run_child", run_child)
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)


def test_every_dtype_passes_at_the_number_of_tokens_of_a_card(benchmark: Any) -> None:
    """The gradients of a mean over so many would not be numbers that fp16 can hold."""
    benchmark.check_losses(4096, 300, 16)
    checks = benchmark.report["checks"]
    assert len(checks) == 12
    assert all(entry["holds"] for entry in checks), checks


@pytest.mark.usefixtures("in_this_process")
def test_one_of_ours_that_raises_is_a_failed_check(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_resources(*_: Any, **options: Any) -> None:
        raise RuntimeError("shared memory")

    monkeypatch.setattr(benchmark.hk, "attention", out_of_resources)
    monkeypatch.setattr(benchmark, "check_rotary", lambda: None)
    out = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--quick", "--out", str(out)])
    assert benchmark.main() == 1
    checks = json.loads(out.read_text(encoding="utf-8"))["checks"]
    bad = [entry["what"] for entry in checks if not entry["holds"]]
    assert all(word in " ".join(bad) for word in ("attention torch.float32 d128", "bits", "T=449",
               "repeats", "training"))  # fmt: skip
    assert any(entry["holds"] and "cross_entropy" in entry["what"] for entry in checks)


@pytest.mark.usefixtures("in_this_process")
def test_what_was_checked_is_kept_when_the_run_is_stopped(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "check_attention", lambda *_: None)
    monkeypatch.setattr(benchmark, "check_losses", stop)
    out = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    assert len(json.loads(out.read_text(encoding="utf-8"))["checks"]) == 12


BEGIN = """
import json, os, sys, time
file = open(os.environ["HORNBOOK_BENCHMARK_JOURNAL"], "a", buffering=1)
file.write(json.dumps(["checks", {"what": sys.argv[1], "holds": True, "value": 1}]) + chr(10))
"""
PARTS = {
    "raises": "raise RuntimeError('an illegal memory access' + chr(10) + 'Device-side advice')",
    "dies": "file.write('[\"checks\", {'); file.flush(); os.abort()",
    "hangs": "time.sleep(600)",
    "ends": "print('to stderr', file=sys.stderr)",
}


def test_a_part_that_dies_or_hangs_loses_only_what_it_had_not_done(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kept: list[int] = []
    checks = benchmark.report["checks"]

    def command(name: str) -> list[str]:
        return [sys.executable, "-c", BEGIN + PARTS[name], name]

    monkeypatch.setattr(benchmark, "command", command)
    benchmark.run_parts(list(PARTS), 6.0, math.inf, lambda: kept.append(len(checks)))
    assert kept == [2, 4, 6, 7]
    assert [entry["what"] for entry in checks if entry["holds"]] == list(PARTS)
    raised, died, hung = (entry for entry in checks if not entry["holds"])
    assert raised["value"] == "ended with status 1: RuntimeError: an illegal memory access"
    assert "Traceback" in raised["stderr"]
    assert "SIGABRT" in died["value"]
    assert hung["what"] == "hangs reaches its end"
    assert hung["value"] == "timed out after 6 s"
    assert "line 5 in <module>" in hung["stderr"]  # where it hung
    assert "to stderr" in capfd.readouterr().err


def test_a_part_for_which_no_time_is_left_is_no_success(benchmark: Any) -> None:
    benchmark.run_parts(["attention"], 75.0, time.monotonic() + 1, lambda: None)
    (entry,) = benchmark.report["checks"]
    assert not entry["holds"]
    assert entry["value"] == "out of time"


def test_a_spoilt_context_ends_the_process(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt() -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(times, "GPU", True)
    monkeypatch.setattr(torch.cuda, "synchronize", spoilt)
    with pytest.raises(RuntimeError, match="CUDA error"), times.attempt("ours"):
        raise ValueError("x" * 5000 + "the end")
    (entry,) = times.report["checks"]
    assert entry["value"].startswith("ValueError: xxx")
    assert entry["value"].endswith("the end")
    assert len(entry["value"]) < 1100


def test_the_model_that_is_trained_needs_rotary(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotary = benchmark.hk.apply_rotary

    def none_of_ours(x: Any, *tables: Any) -> Any:
        ours = os.environ[benchmark.dispatch.OVERRIDE] == "triton"
        return x if ours else rotary(x, *tables)

    monkeypatch.setattr(benchmark.hk, "apply_rotary", none_of_ours)
    benchmark.check_training(60, 4, 64)
    gap = benchmark.report["checks"][0]
    assert not gap["holds"]
    assert gap["value"] > 0.1


def test_what_was_measured_can_be_written_beside_the_results(times: Any, tmp_path: Path) -> None:
    path = ROOT / "kernels" / "hornbook_kernels" / "measured.json"
    before = path.read_bytes()
    times.report["card"] = "Card"
    times.row("attention", {"ours": 1.0, "sdpa flash": 3.0, "sdpa cudnn": 2.0}, packed=False,
              length=2048, dropout=0.1, documents=False)  # fmt: skip
    times.record(tmp_path / "made" / "measured.json")
    made = json.loads((tmp_path / "made" / "measured.json").read_text(encoding="utf-8"))
    assert made["cards"] == [*json.loads(before)["cards"], "Card"]
    assert made["attention"][-1]["ratio"] == 2.0
    assert path.read_bytes() == before
    times.check("a part reaches its end", False)
    times.record(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_peer_that_can_not_be_built_ends_no_other(
    times: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import flex_attention

    def broken(*_: Any, **options: Any) -> None:
        raise RuntimeError("no blocks")

    monkeypatch.setattr(flex_attention, "create_block_mask", broken)
    leaves = tuple(torch.zeros(1, 4, 1, 8, requires_grad=True) for _ in range(3))
    flex = times.Peer(times.flex_call(leaves, None), leaves)
    ours = times.Peer(lambda: leaves[0] + leaves[1] + leaves[2] + 1.0, leaves)
    kept = times.agreeing({"ours": ours, "flex": flex}, torch.ones(1, 4, 1, 8))
    assert list(kept) == ["ours"]
    assert times.report["skipped"][0]["what"] == "flex"
    # Neither does a kind of timing that raises.
    monkeypatch.setattr(times, "attention_peers", broken)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    times.time_attention(512, 0.0)
    assert len(times.report["checks"]) == 2
    assert not any(entry["holds"] for entry in times.report["checks"])


def test_work_of_documents_is_counted_by_document(times: Any) -> None:
    assert times.seen_keys(2048, False) == times.BATCH * 2048**2 // 2
    squares = sum((b - a) ** 2 for row in times.cuts(2048) for a, b in itertools.pairwise(row))
    assert times.seen_keys(2048, True) == squares // 2
    assert squares < times.BATCH * 2048**2 / 4


def test_the_card_sleeps_for_as_long_as_python_queues(
    times: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = math.nan

        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, other: "Event") -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: slept.append(cycles / 2e9))
    ms = times.measure({"ours": lambda: time.sleep(1e-3)}, rounds=3)["ours"]
    count = min(round(0.02 / 1e-3), 100)
    assert min(slept) > 0.5 * count * ms / 1e3
    assert max(slept) <= 0.1


def test_tuning_leaves_out_what_is_not_compiled_in_time(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from hornbook_kernels.gpu import attention

    table = benchmark.configs.attention("forward", 90, 64, torch.bfloat16, False)
    tiles = benchmark.candidates("forward", table)
    assert tiles[0] == table
    futures: list[Future[bool]] = [Future() for _ in tiles]
    for future, fits in zip(futures, (True, False, True), strict=False):
        future.set_result(fits)
    measured: list[str] = []

    def measure(calls: dict[str, Any], **_: Any) -> dict[str, float]:
        measured.extend(calls)
        return {name: 2.0 - i for i, name in enumerate(calls)}

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "rand", lambda *shape: torch.zeros(1))
    monkeypatch.setattr(attention, "forward", lambda *arguments, **_: (None, None))
    queued = dict(zip(tiles, futures, strict=True))
    best = benchmark.best_tile("forward", 90, 64, False, False, queued, 0.01)
    assert measured == [benchmark.line(table), benchmark.line(tiles[2])]
    assert best == benchmark.line(tiles[2])
    assert all(future.cancelled() for future in futures[3:])
    assert benchmark.report["times"][0]["compiled"] == f"3 of {len(tiles)}"


def test_checks_run_without_a_card_and_say_what_they_left_out(tmp_path: Path) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    out = tmp_path / "made" / "kernels.json"
    text = run("--quick", "--record", "--out", str(out))
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["card"] is None
    assert len(report["checks"]) > 30
    assert all(entry["holds"] for entry in report["checks"])
    skipped = "\n".join(entry["what"] for entry in report["skipped"])
    for word in ("races", "200 repeats", "tutorial", "qkv, rotary", "--record"):
        assert word in skipped
    assert str(out) in text
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


def test_kernels_are_compiled_ahead_and_what_is_missed_least_comes_last(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert benchmark.compiles(90, "rotary d64 r32 bf16")
    assert not benchmark.compiles(90, "no such kernel")
    monkeypatch.setattr(benchmark, "GPU", True)
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--quick"])
    names = list(benchmark.parts_of(benchmark.arguments()))
    assert names[0] == benchmark.AHEAD
    assert names[-1] == "other attention"
    timed = [name for name in names if not benchmark.is_check(name)]
    assert timed == [
        benchmark.AHEAD,
        "attention S=2048 dropout=0.0",
        "attention S=2048 dropout=0.1",
        "block",
        "head and memory",
    ]
    # Timings for which there was no time are no fault; checks are.
    benchmark.run_parts(["block", "training"], 6.0, -math.inf, lambda: None)
    assert [entry["what"] for entry in benchmark.report["checks"]] == ["training runs"]
