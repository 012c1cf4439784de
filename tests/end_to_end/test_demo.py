"""The whole recipe at a toy size: every stage runs, resumes, skips and reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOY = [
    "source.raw=['pool', 'code']",
    "source.pool_files=300",
    "annotate.samples=200",
    "generate.textbooks.characters=60000",
    "generate.exercises.count=150",
    "tokenizer.vocab_size=384",
    "tokenizer.characters=60000",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.partial_rotary_factor=0.5",
    "pretrain.steps=12",
    "pretrain.warmup_steps=2",
    "finetune.steps=6",
    "finetune.warmup_steps=1",
    "evaluate.heldout=12",
    "evaluate.max_new_tokens=16",
]


def hornbook(folder: Path, *arguments: str, settings: list[str] = TOY) -> subprocess.Popen:
    command = [sys.executable, "-m", "hornbook", *arguments]
    for setting in settings:
        command += ["--set", setting]
    env = {**os.environ, "COLUMNS": "200"}
    env.pop("HORNBOOK_DATA", None)
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    return out


def data_bytes(run: Path) -> dict[str, str]:
    """The hash of every data part of a run (not of what training makes)."""
    hashes = {}
    for manifest in sorted(run.rglob("manifest.json")):
        data = json.loads(manifest.read_text())
        if data["stage"] not in ("train", "evaluate", "report", "study contamination"):
            for part in data["parts"]:
                hashes[f"{manifest.parent.relative_to(run)}/{part['name']}"] = part["xxh3"]
    return hashes


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    code = folder / "code"
    code.mkdir()
    for path in sorted(Path(json.__file__).parent.glob("*.py")):
        (code / path.name).write_text(path.read_text())
    (code / "broken.py").write_bytes(b"x = '\xff'\n")
    return folder


@pytest.fixture(scope="module")
def run(toy) -> Path:
    finish(hornbook(toy, "demo", "--out", "run"))
    return toy / "run"


def test_report_has_every_arm(run):
    report = json.loads((run / "report.json").read_text())
    assert set(report["arms"]) == {"raw", "filtered", "filtered+textbooks", "none"}
    for name, arm in report["arms"].items():
        assert set(arm) == ({"finetuned"} if name == "none" else {"base", "finetuned"})
        for score in arm.values():
            assert score["n"] == 12
            assert 0 <= score["pass@1"] <= 1
            assert score["stderr"] >= 0
    for stage in report["stages"]:
        assert {"name", "seconds", "in", "kept", "dropped"} <= set(stage)
    assert report["filter"]["pool_truth"]["precision"] is not None
    assert report["samples"]
    assert all(report["loss"][arm]["finetuned"] for arm in report["arms"])


def test_page_stands_alone(run):
    page = (run / "report.html").read_text()
    assert page.count("<svg") >= 3
    for outside in ("http://www.w3.org", "https://www.w3.org"):
        page = page.replace(outside, "")
    assert "<script" not in page
    assert "src=" not in page
    assert 'href="http' not in page
    assert "not finished" not in page


def test_page_says_every_number_of_the_data(run):
    page = (run / "report.html").read_text()
    table = page[page.index(">zstd<") : page.index("</table>", page.index(">zstd<"))]
    assert "–" not in table


def test_bad_file_was_set_aside(run):
    rejected = (run / "source" / "rejected" / "rows.jsonl").read_text()
    assert "broken.py" in rejected
    assert "not UTF-8" in rejected


def test_the_study_is_printed_by_arm_and_threshold(toy, run):
    lines = finish(hornbook(toy, "study", "contamination", "run", settings=[])).split("\n")
    assert lines[0].split()[:5] == ["arm", "seed", "model", "tau", "similar"]
    assert lines[1].split()[:4] == ["raw", "seed-0", "base", "0.95"]
    recipe = json.loads((run / "recipe.json").read_text())
    # Four arms, of which one has no base model.
    assert len(lines) == 1 + 7 * len(recipe["study"]["thresholds"]) + 1


def test_a_torn_log_costs_no_report(toy, run):
    whole = (run / "log.jsonl").read_text()
    page = (run / "report.html").read_text()
    (run / "log.jsonl").write_text(whole + '12\n"words"\n{"event": "step"}\n{"event": "st')
    finish(hornbook(toy, "report", "run", settings=[]))
    assert (run / "report.html").read_text() == page
    (run / "log.jsonl").write_text(whole)


def test_second_run_does_nothing(toy, run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}
    out = finish(hornbook(toy, "demo", "--out", "run", "--json"))
    assert json.loads(out)["done"] == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")} == before


def test_killed_run_goes_on_to_the_same_bytes(toy, run):
    """SIGKILL at moments spread over the run; the data must come out as if nothing had happened."""
    for moment in (0.8, 1.6, 3.0, 5.0):
        process = hornbook(toy, "demo", "--out", "killed")
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Its steps ended with it: nobody writes there any more.
    before = sorted((p, p.stat().st_mtime_ns) for p in (toy / "killed").rglob("*"))
    time.sleep(2)
    assert sorted((p, p.stat().st_mtime_ns) for p in (toy / "killed").rglob("*")) == before
    finish(hornbook(toy, "demo", "--out", "killed"))
    assert data_bytes(toy / "killed") == data_bytes(run)


def test_verify_and_trace(toy, run):
    total = json.loads(finish(hornbook(toy, "verify", "run", "--json", settings=[])))
    assert total["ok"]
    assert total["files"] > 10
    from hornbook import corpus

    row = next(iter(corpus.read([run / "filter"])))
    told = finish(hornbook(toy, "trace", row["id"], "--run", "run", settings=[]))
    assert "source (" in told
    assert "filter (" in told
    assert "quality_score" in told


def test_folder_of_another_recipe_is_refused(toy, run):
    (toy / "other.toml").write_text('extends = "demo"\nname = "other"\n')
    process = hornbook(toy, "run", "other.toml", "--out", "run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "holds a run of the recipe `demo`" in err


def test_second_run_in_the_same_folder_is_refused(toy):
    first = hornbook(toy, "demo", "--out", "busy")
    time.sleep(3)
    second = hornbook(toy, "demo", "--out", "busy")
    _, err = second.communicate(timeout=60)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=90)
    assert second.returncode == 1
    assert "another run is at work" in err
    assert first.returncode == 3


def test_interrupt_exits_3_and_goes_on(toy):
    process = hornbook(toy, "demo", "--out", "stopped")
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 3
    finish(hornbook(toy, "run", "demo", "--out", "stopped", "--only", "dedup"))
