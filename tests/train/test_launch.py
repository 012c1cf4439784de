"""Training from the command line, as one process and under torchrun, and the launchers."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import hornbook.commands.runs  # noqa: F401 (registers the command)
from hornbook.cli import main
from hornbook.commands.shared import app
from hornbook.errors import ConfigError, ResumeError
from hornbook.model import PhiConfig
from hornbook.train import TrainConfig, checkpoint, train_stage

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("run.py")
RECIPE = """
extends = "demo"
name = "mini"
[model]
vocab_size = 260
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64
[pretrain]
sequence_length = 24
batch_size = 8
micro_batch_size = 4
steps = 8
warmup_steps = 2
learning_rate = 1e-3
save_every = 5
threads = 1
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LATE = """
import os, sys, time
from hornbook import cli
from hornbook.train import stage
made = stage.run_stage
def run_stage(*args, **options):
    time.sleep(2.0 if os.environ["RANK"] == "0" else 0.0)
    return made(*args, **options)
stage.run_stage = run_stage
cli.main(sys.argv[1:])
"""
torchrun = pytest.mark.skipif(sys.platform != "linux", reason="gloo and torchrun")


@pytest.fixture
def command(tmp_path: Path, packed: tuple[Path, Path]) -> list[str]:
    recipe = tmp_path / "mini.toml"
    recipe.write_text(RECIPE)
    out = str(tmp_path / "deep" / "out")
    return ["train", str(recipe), "--data", str(packed[0]), "--out", out]


def test_training_says_what_came_of_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    said = capsys.readouterr().out
    final = tmp_path / "deep" / "out" / "final"
    shown = re.fullmatch(
        r"train: 8 steps; loss ([\d.]+); [\d,]+ tokens/s; .* s; model: (.*)\n", said
    )
    assert shown is not None, said
    assert 3 < float(shown[1]) < 8
    assert Path(shown[2]) == final
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["details"]["steps"] == 8


@torchrun
def test_two_processes_start_afresh_and_end_together(command: list[str], tmp_path: Path) -> None:
    """The first process is late, so that the others would make its folder before it could."""
    script = tmp_path / "late.py"
    script.write_text(LATE)

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TORCHRUN, str(script), *command, *more],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    done = start("--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["details"]["steps"] == 8
    other = start("--set", "pretrain.learning_rate=0.1")
    assert other.returncode == 1
    assert other.stderr.count("with train.learning_rate") == 2, other.stderr[-3000:]


@torchrun
def test_torchrun_passes_signals_on(tmp_path: Path) -> None:
    """A save that takes its time is waited for, and torchrun itself ends with 1."""
    options = {"steps": 4000, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}
    job = {"out": str(tmp_path), **options, "save_every": 10**6, "pause": 0.02, "slow": 0.5}
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    with subprocess.Popen(
        [*TORCHRUN, "--signals-to-handle", signals, str(RUN), json.dumps([job])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "3":
            pass
        process.send_signal(signal.SIGUSR1)
        said = process.stdout.read()
        assert process.wait(60) == 1
    assert said.count("stopped by a signal") == 2
    assert checkpoint.newest(tmp_path / "checkpoints")[0] is not None


SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
OPTIONS: dict[str, Any] = {
    "steps": 4,
    "batch_size": 8,
    "sequence_length": 24,
    "learning_rate": 1e-3,
    "threads": 1,
    "save_every": 2,
    "micro_batch_size": 4,
}


def stage(packed: tuple[Path, Path], out: Path, **changes: Any) -> Any:
    config = TrainConfig(**{**OPTIONS, **changes})
    return train_stage(config, PhiConfig(**SHAPE), {str(packed[0]): 1.0}, out)


def test_a_stage_with_other_results_has_another_key(
    tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    last = stage(packed, tmp_path / "last")
    free = {"save_every": 1, "keep": 1, "micro_batch_size": 2}
    assert stage(packed, tmp_path / "last", **free).reused
    assert last["key"] == stage(packed, tmp_path / "last2", **free)["key"]
    chosen = {"select": "loss", "validation": str(packed[1])}
    stage(packed, tmp_path / "loss", **chosen)
    for changes in ({"save_every": 1}, {"keep": 1}, {"keep_every": 2}):
        with pytest.raises(ResumeError, match=rf"with train\.{next(iter(changes))} .*\(now "):
            stage(packed, tmp_path / "loss", **chosen, **changes)
    with pytest.raises(ConfigError, match="does not fit"):
        stage(packed, tmp_path / "dropout", dropout=0.1, memory_gb=1e-6)
    # What was refused before its first step holds its folder for nobody.
    stage(packed, tmp_path / "dropout", dropout=0.1)
    with pytest.raises(ResumeError, match=r"train\.micro_batch_size 4 \(now 2\)"):
        stage(packed, tmp_path / "dropout", dropout=0.1, micro_batch_size=2)


AGAIN = """
import json, sys
from hornbook.model.config import PhiConfig
from hornbook.train import TrainConfig, train_stage
options, shape, data, out = json.loads(sys.argv[1])
assert train_stage(TrainConfig(**options), PhiConfig(**shape), data, out).reused
assert "torch" not in sys.modules
"""


def test_a_finished_stage_is_known_without_torch(tmp_path: Path, packed: tuple[Path, Path]) -> None:
    stage(packed, tmp_path / "out")
    asked = [OPTIONS, SHAPE, {str(packed[0]): 1.0}, str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", AGAIN, json.dumps(asked)], check=True)


def test_a_part_of_a_model_that_is_lost_is_made_of_its_last_checkpoint(
    tmp_path: Path, packed: tuple[Path, Path]
) -> None:
    stage(packed, tmp_path / "out")
    weights = tmp_path / "out" / "final" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert not stage(packed, tmp_path / "out").reused
    assert weights.read_bytes() == before
    steps = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "module",
    [
        *("train.loop", "train.data", "train.parallel", "train.stage", "train.select"),
        *("train.trackers", "train.checkpoint", "model.sample"),
    ],
)
def test_commands_in_docstrings_are_ours(module: str) -> None:
    text = str(import_module(f"hornbook.{module}").__doc__).replace("\\\n", " ")
    found = re.findall(r"^\s*(?:torchrun .*-m )?hornbook (.+)$", text, flags=re.MULTILINE)
    assert found
    for words in found:
        app.parse_args(shlex.split(words), exit_on_error=False, print_error=False)


SRUN = """#!/bin/bash
cp "$NEXT" "$OUT/events.jsonl"
exit $STATUS
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bash")
@pytest.mark.parametrize(
    ("before", "after", "status", "requeued"),
    [
        ([], ["started", "stopped"], 1, True),
        (["started", "stopped"], ["started", "stopped", "started", "stopped"], 1, True),
        (["started", "stopped"], ["started", "stopped", "started"], 1, False),
        (["started", "stopped"], ["started", "stopped"], 1, False),
        ([], ["started", "finished"], 0, False),
        ([], [], 2, False),
    ],
)
def test_slurm_goes_on_only_after_a_stop(
    tmp_path: Path, before: list[str], after: list[str], status: int, requeued: bool
) -> None:
    out, tools = tmp_path / "out", tmp_path / "tools"
    out.mkdir()
    tools.mkdir()
    lines = [[json.dumps({"time": 1.0, "event": e}) + "\n" for e in es] for es in (before, after)]
    if before:
        (out / "events.jsonl").write_text("".join(lines[0]))
    (tmp_path / "next").write_text("".join(lines[1]))
    scripts = {"srun": SRUN, "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/said\n'}
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "slurm.sbatch"), "recipe", "packed", str(out)],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "OUT": str(out),
            "STATUS": str(status),
            "NEXT": str(tmp_path / "next"),
            "SLURM_JOB_NODELIST": "a",
            "SLURM_NNODES": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_JOB_ID": "7",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("requeue 7" in (tmp_path / "said").read_text()) is requeued
    assert done.returncode == (0 if requeued else status), done.stderr
