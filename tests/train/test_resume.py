"""Going on after every kind of end: signals, kill -9, torn checkpoints; and two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hornbook.errors import InputError
from hornbook.model import PhiConfig
from hornbook.train import TrainConfig, checkpoint, train

RUN = Path(__file__).with_name("run.py")
LENGTH, VOCABULARY = 24, 32
SHAPE = PhiConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)
OPTIONS: dict[str, Any] = {
    "steps": 14,
    "batch_size": 8,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "dropout": 0.1,
    "threads": 1,
    "save_every": 4,
}
CONFIG = TrainConfig(sequence_length=LENGTH, **OPTIONS)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(out)]


def start(out: Path, **changes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(RUN), str(out), json.dumps({**OPTIONS, **changes})],
        stdout=subprocess.PIPE,
        text=True,
    )


def strike(out: Path, *, after: int, by: signal.Signals) -> tuple[int, str]:
    """Starts a run, sends a signal once a step is reported, and waits for the end."""
    process = start(out, pause=0.2)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == after:
            process.send_signal(by)
            break
    rest = process.stdout.read()
    process.stdout.close()
    return process.wait(), rest


@pytest.fixture
def undisturbed(tmp_path: Path, rows: Any) -> Path:
    train(CONFIG, data=rows, out=tmp_path / "whole", model=SHAPE)
    return tmp_path / "whole"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "killed"
    for after in (6, 11):
        code, _ = strike(out, after=after, by=signal.SIGKILL)
        assert code == -signal.SIGKILL
    result = train(CONFIG, data=rows, out=out, model=SHAPE)
    assert result.resumed_from == 8
    assert curve(out) == curve(undisturbed)
    assert (out / "final/model.safetensors").read_bytes() == (
        undisturbed / "final/model.safetensors"
    ).read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_asked_to_stop_saves_and_exits_3(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "stopped"
    code, said = strike(out, after=5, by=signal.SIGTERM)
    assert code == 3
    assert "saved" in said
    result = train(CONFIG, data=rows, out=out, model=SHAPE)
    assert result.resumed_from in (5, 6, 7)
    assert curve(out) == curve(undisturbed)


def test_stop_step_then_more(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "out"
    train(replace(CONFIG, stop_step=5), data=rows, out=out, model=SHAPE)
    assert len(curve(out)) == 5
    train(CONFIG, data=rows, out=out, model=SHAPE)
    assert curve(out) == curve(undisturbed)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["torn", "changed", "missing"])
def test_torn_checkpoint_is_refused_and_the_one_before_used(
    tmp_path: Path, rows: Any, undisturbed: Path, name: str, harm: str
) -> None:
    if name == "state.json" and harm == "changed":
        pytest.skip("the file that holds the hashes has none")
    newest = checkpoint.found(undisturbed / "checkpoints")[-1]
    file = newest / name
    data = bytearray(file.read_bytes())
    if harm == "torn":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "changed":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        checkpoint.check(newest)
    before = curve(undisturbed)
    result = train(CONFIG, data=rows, out=undisturbed, model=SHAPE)
    assert result.resumed_from == 12
    assert name in result.refused[0]
    assert curve(undisturbed) == before


def test_checkpoints_are_kept_by_number_and_are_models(undisturbed: Path) -> None:
    found = checkpoint.found(undisturbed / "checkpoints")
    assert [folder.name for folder in found] == ["step-00000012", "step-00000014"]
    assert (undisturbed / "checkpoints/latest").read_text() == "step-00000014\n"
    assert not list((undisturbed / "checkpoints").glob(".*"))
    names = {file.suffix for file in found[0].iterdir()}
    assert names == {".json", ".safetensors"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="gloo under torchrun's environment")
def test_two_processes_equal_one(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "two"
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(RUN), str(out), json.dumps(OPTIONS)]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    for two, one in zip(curve(out), curve(undisturbed), strict=True):
        assert two[0] == one[0]
        assert abs(two[1] - one[1]) < 5e-7 * max(1.0, one[1])
        assert abs(two[2] - one[2]) < 1e-5 * max(1.0, one[2])
