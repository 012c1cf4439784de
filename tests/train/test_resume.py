"""Going on after every kind of end: signals, kill -9, torn checkpoints, a disk that refuses."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from hornbook.errors import InputError, StorageError
from hornbook.model import Phi, PhiConfig
from hornbook.train import Interrupted, TrainConfig, checkpoint, train

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
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def curve(out: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(out)]


def strike(out: Path, *, after: int, by: signal.Signals, **changes: Any) -> tuple[int, str]:
    """Starts a run, sends a signal once a step is reported, and waits for the end."""
    runs = [{"out": str(out), "pause": 0.2, **OPTIONS, **changes}]
    process = subprocess.Popen(
        [sys.executable, str(RUN), json.dumps(runs)], stdout=subprocess.PIPE, text=True
    )
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


def same(out: Path, undisturbed: Path) -> bool:
    weights = "final/model.safetensors"
    return curve(out) == curve(undisturbed) and (
        (out / weights).read_bytes() == (undisturbed / weights).read_bytes()
    )


@posix
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "killed"
    for after in (6, 11):
        code, _ = strike(out, after=after, by=signal.SIGKILL)
        assert code == -signal.SIGKILL
    result = train(CONFIG, data=rows, out=out, model=SHAPE)
    assert result.resumed_from == 8
    assert same(out, undisturbed)


@posix
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times_at_random_steps(tmp_path: Path, rows: Any) -> None:
    """With a checkpoint at every second step, so that writing one is often what is cut off."""
    config = replace(CONFIG, steps=400, save_every=2)
    train(config, data=rows, out=tmp_path / "whole", model=SHAPE)
    draw = random.Random(20)
    kills = at = 0
    while kills < 20:
        after = at + draw.randint(1, 3)
        code, _ = strike(
            tmp_path / "out",
            after=after,
            by=signal.SIGKILL,
            steps=400,
            save_every=2,
            pause=draw.choice([0.0, 0.02]),
        )
        assert code == -signal.SIGKILL
        kills += 1
        found, _ = checkpoint.newest(tmp_path / "out" / "checkpoints")
        at = 0 if found is None else found.step
    train(config, data=rows, out=tmp_path / "out", model=SHAPE)
    assert same(tmp_path / "out", tmp_path / "whole")


@posix
def test_asked_to_stop_saves_and_exits_3(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "stopped"
    code, said = strike(out, after=5, by=signal.SIGTERM)
    assert code == 3
    assert "saved" in said
    result = train(CONFIG, data=rows, out=out, model=SHAPE)
    assert result.resumed_from in (5, 6, 7)
    assert same(out, undisturbed)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need it"
)
def test_sigusr1_and_sigint_stop_too(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "out"
    for number, step in ((signal.SIGUSR1, 3), (signal.SIGINT, 9)):

        def on_step(record: Any, number: signal.Signals = number, step: int = step) -> None:
            if record["step"] == step:
                signal.raise_signal(number)

        with pytest.raises(Interrupted, match="saved") as caught:
            train(CONFIG, data=rows, out=out, model=SHAPE, on_step=on_step)
        assert caught.value.exit_code == 3
        # Known when the step after it sums up what all processes say.
        assert checkpoint.found(out / "checkpoints")[-1].name == f"step-{step + 1:08d}"
    train(CONFIG, data=rows, out=out, model=SHAPE)
    assert same(out, undisturbed)


def test_stop_step_then_more(tmp_path: Path, rows: Any, undisturbed: Path) -> None:
    out = tmp_path / "out"
    train(replace(CONFIG, stop_step=5, async_save=False), data=rows, out=out, model=SHAPE)
    assert len(curve(out)) == 5
    train(CONFIG, data=rows, out=out, model=SHAPE)
    assert same(out, undisturbed)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "config.json", "state.json"])
@pytest.mark.parametrize("harm", ["torn", "changed", "missing"])
def test_torn_checkpoint_is_refused_and_the_one_before_used(
    tmp_path: Path, rows: Any, undisturbed: Path, name: str, harm: str
) -> None:
    newest = checkpoint.found(undisturbed / "checkpoints")[-1]
    file = newest / name
    data = bytearray(file.read_bytes())
    if harm == "torn":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "changed" and name == "state.json":
        # The file that holds the hashes has none; one that names no pieces is refused.
        file.write_bytes(data.replace(b".metadata", b"metadata.", 1))
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
    events = (undisturbed / "events.jsonl").read_text()
    assert json.dumps(result.refused[0])[1:-1] in events
    assert curve(undisturbed) == before


def test_checkpoint_of_another_shape_is_refused(
    tmp_path: Path, rows: Any, undisturbed: Path
) -> None:
    """A whole checkpoint whose tensors are not this model's, in place of the newest."""
    root = undisturbed / "checkpoints"
    wide = Phi(replace(SHAPE, hidden_size=64), seed=0)
    tensors = {
        kind: {name: p.detach() for name, p in wide.named_parameters()}
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }
    state = checkpoint.check(checkpoint.found(root)[-1]).state
    saver = checkpoint.Saver(root, keep=0)
    saver.save(14, tensors, state, {"config": wide.config, "tokenizer": None})
    saver.wait()
    saver.close()
    assert checkpoint.check(root / "step-00000014").step == 14
    result = train(CONFIG, data=rows, out=undisturbed, model=SHAPE)
    assert result.resumed_from == 12
    assert "(32, 64), not (32, 32)" in result.refused[0]


def test_half_written_checkpoint_is_never_seen(
    tmp_path: Path, rows: Any, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    train(replace(CONFIG, stop_step=4), data=rows, out=out, model=SHAPE)
    whole = out / "checkpoints" / "step-00000004"
    torn = out / "checkpoints" / ".step-00000008.tmp"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes((whole / "__0_0.distcp").read_bytes()[:1000])
    result = train(CONFIG, data=rows, out=out, model=SHAPE)
    assert result.resumed_from == 4
    assert same(out, undisturbed)
    assert not list((out / "checkpoints").glob(".*"))


def save_and_wait(saver: checkpoint.Saver, tensors: Any, files: Any) -> None:
    saver.save(2, tensors, {}, files)
    saver.wait()


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_refuses_is_told_and_older_checkpoints_stay(
    tmp_path: Path, background: bool
) -> None:
    saver = checkpoint.Saver(tmp_path, background=background)
    tensors = {"model": {"w": torch.ones(3)}}
    files = {"config": SHAPE, "tokenizer": None}
    saver.save(1, tensors, {}, files)
    saver.wait()
    (tmp_path / ".step-00000002.tmp").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="step-00000002"):
        save_and_wait(saver, tensors, files)
    assert checkpoint.newest(tmp_path)[0] is not None
    (tmp_path / ".step-00000002.tmp").unlink()
    saver.save(2, tensors, {}, files)
    saver.close()
    assert checkpoint.check(tmp_path / "step-00000002").step == 2


@pytest.mark.parametrize("background", [True, False])
def test_only_what_stands_on_the_disk_is_asked_for(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 writes the names of the files without putting them into what it returns."""
    finish = FileSystemWriter.finish
    monkeypatch.setattr(
        FileSystemWriter,
        "finish",
        lambda writer, metadata, results: finish(writer, replace(metadata), results),
    )
    saver = checkpoint.Saver(tmp_path, background=background)
    files = {"config": SHAPE, "tokenizer": None}
    save_and_wait(saver, {"model": {"w": torch.ones(3)}}, files)
    saver.close()
    assert checkpoint.check(tmp_path / "step-00000002").step == 2


def test_what_is_saved_is_what_was_there_when_saving_began(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path)
    weight = torch.arange(200_000.0)
    before = weight.clone()
    saver.save(1, {"model": {"w": weight}}, {}, {"config": SHAPE, "tokenizer": None})
    weight.zero_()
    saver.close()
    read = {"model": {"w": torch.zeros(200_000)}}
    checkpoint.check(tmp_path / "step-00000001").load(read)
    assert torch.equal(read["model"]["w"], before)


def test_checkpoints_are_kept_by_policy(tmp_path: Path, rows: Any) -> None:
    train(replace(CONFIG, save_every=2, keep_every=6), data=rows, out=tmp_path, model=SHAPE)
    root = tmp_path / "checkpoints"
    assert [checkpoint.step_of(folder) for folder in checkpoint.found(root)] == [6, 12, 14]
    assert (root / "latest").read_text() == "step-00000014\n"
    assert not list(root.glob(".*"))
    names = {file.name for file in (root / "step-00000014").iterdir()}
    assert names == {
        *(".metadata", "__0_0.distcp", "state.json", "config.json", "generation_config.json")
    }


def test_what_is_torn_is_not_kept_in_place_of_what_is_whole(tmp_path: Path, rows: Any) -> None:
    """Of one kept checkpoint: the run is killed again once the next is written."""
    config = replace(CONFIG, keep=1, async_save=False)
    root = tmp_path / "checkpoints"
    train(replace(config, stop_step=4), data=rows, out=tmp_path, model=SHAPE)
    shutil.copytree(root / "step-00000004", root / "step-00000009")
    (root / "step-00000009" / "__0_0.distcp").write_bytes(b"torn")

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 9:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        train(config, data=rows, out=tmp_path, model=SHAPE, on_step=kill)
    assert [folder.name for folder in checkpoint.found(root)] == ["step-00000008"]
    assert (root / "refused-step-00000009").is_dir()
    newest, refused = checkpoint.newest(root)
    assert newest is not None
    assert (newest.step, refused) == (8, [])


def test_what_was_just_written_stays(tmp_path: Path) -> None:
    saver = checkpoint.Saver(tmp_path, keep=1, background=False)
    files = {"config": SHAPE, "tokenizer": None}
    for step in (9, 5):
        saver.save(step, {"model": {"w": torch.ones(3)}}, {}, files)
        assert checkpoint.check(tmp_path / f"step-{step:08d}").step == step
    saver.close()


def test_export_makes_a_model_of_a_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    last = checkpoint.found(undisturbed / "checkpoints")[-1]
    with pytest.raises(InputError, match="hornbook export hf"):
        Phi.from_pretrained(last)
    checkpoint.export(last, tmp_path / "model")
    ours, final = (
        Phi.from_pretrained(tmp_path / "model"),
        Phi.from_pretrained(undisturbed / "final"),
    )
    assert ours.config == final.config
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), final.parameters(), strict=True)
    )
