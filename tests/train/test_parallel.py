"""Several processes: the same losses as one, however a model is shared and however many there are.

Two processes are started twice and four once for the whole file: starting them is what takes time.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.model import Phi, PhiConfig
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
    "micro_batch_size": 1,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "dropout": 0.1,
    "prompt_loss_weight": 0.25,
    "threads": 1,
    "save_every": 4,
}
SAMPLED = {"save_every": 2, "sample_every": 2, "sample_prompts": ["A"], "late": [1, 0.5]}
CONFIG = TrainConfig(sequence_length=LENGTH, **OPTIONS)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo and torchrun"),
    pytest.mark.timeout(900),  # half a minute on an idle machine, ten times that on a busy one
]


def curve(out: Path) -> list[tuple[int, float, float]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, lines)]


def near(out: Path, whole: Path) -> None:
    """Every step once, and its loss up to the order of additions."""
    got, expected = curve(out), curve(whole)
    assert [step for step, _, _ in got] == [step for step, _, _ in expected]
    for (_, loss, norm), (_, wanted, its_norm) in zip(got, expected, strict=True):
        assert abs(loss - wanted) < 5e-7 * max(1.0, wanted)
        assert abs(norm - its_norm) < 1e-5 * max(1.0, its_norm)


def plans(out: Path) -> list[tuple[int, str, int, int]]:
    """Of every start: its first step, how, processes of a copy, processes."""
    lines = (out / "events.jsonl").read_text().splitlines()
    starts = [event for event in map(json.loads, lines) if event["event"] == "started"]
    return [(e["step"], e["plan"]["parallel"], e["plan"]["shards"], e["processes"]) for e in starts]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that change hands: each line below is one start of these processes."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("rows", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)
    root = tmp_path_factory.mktemp("parallel")
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def job(name: str, parallel: str, until: int = 14, **more: Any) -> dict[str, Any]:
        return {
            "out": str(root / name),
            **OPTIONS,
            "parallel": parallel,
            "stop_step": until,
            **more,
        }

    def alone(name: str, until: int, **more: Any) -> None:
        options = {**job(name, "auto", until), **more}
        out = options.pop("out")
        config = TrainConfig(sequence_length=LENGTH, **options)
        train(config, data=shared.Rows(), out=out, model=SHAPE)

    alone("one", 14)
    alone("one-half", 14, precision="fp16", grad_clip=0.0, steps=30)
    shared.together(
        2,
        [
            job("ddp", "ddp"),
            job("fsdp", "fsdp"),
            job("fsdp-again", "fsdp", 6),
            job("fsdp-again", "fsdp", async_save=False),
            job("fsdp-recompute", "fsdp", recompute=True),
            job("fsdp-half", "fsdp", precision="fp16", grad_clip=0.0, steps=30),
            job("a", "ddp", 5),
            job("b", "fsdp", 5),
            job("d", "ddp", 5),
            job("sampled", "fsdp", 6, **SAMPLED),
        ],
    )
    alone("a", 9)
    alone("b", 9)
    alone("c", 5)
    four = [job("hybrid", "hybrid", shards=2), job("c", "fsdp", 9), job("d", "fsdp", 9)]
    shared.together(4, four)
    shared.together(2, [job("a", "fsdp"), job("b", "ddp"), job("d", "fsdp")])
    alone("c", 14)
    torch.set_num_threads(before)
    return root


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp-recompute", "hybrid"])
def test_as_one_process(runs: Path, kind: str) -> None:
    near(runs / kind, runs / "one")
    how = kind.removesuffix("-recompute")
    shards, processes = {"ddp": (1, 2), "fsdp": (2, 2), "hybrid": (2, 4)}[how]
    assert plans(runs / kind) == [(0, how, shards, processes)]
    one, other = (Phi.from_pretrained(runs / name / "final") for name in ("one", kind))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-4


def test_resumed_on_as_many_is_bit_identical(runs: Path) -> None:
    assert curve(runs / "fsdp-again") == curve(runs / "fsdp")
    assert [start[0] for start in plans(runs / "fsdp-again")] == [0, 6]
    files = [runs / name / "final/model.safetensors" for name in ("fsdp", "fsdp-again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_recomputing_changes_no_bit(runs: Path) -> None:
    assert curve(runs / "fsdp-recompute") == curve(runs / "fsdp")


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("a", [(0, "ddp", 1, 2), (5, "single", 1, 1), (9, "fsdp", 2, 2)]),
        ("b", [(0, "fsdp", 2, 2), (5, "single", 1, 1), (9, "ddp", 1, 2)]),
        ("c", [(0, "single", 1, 1), (5, "fsdp", 4, 4), (9, "single", 1, 1)]),
        ("d", [(0, "ddp", 1, 2), (5, "fsdp", 4, 4), (9, "fsdp", 2, 2)]),
    ],
)
def test_processes_may_come_and_go(
    runs: Path, name: str, starts: list[tuple[int, str, int, int]]
) -> None:
    near(runs / name, runs / "one")
    assert plans(runs / name) == starts


def test_dropout_is_not_drawn_by_process(tmp_path: Path, rows: Any, runs: Path) -> None:
    """The runs above agree because of its key: without dropout losses are others."""
    train(replace(CONFIG, dropout=0.0), data=rows, out=tmp_path, model=SHAPE)
    assert abs(curve(tmp_path)[0][1] - curve(runs / "one")[0][1]) > 1e-4


def test_samples_while_a_checkpoint_is_written(runs: Path) -> None:
    """Both talk to the other processes; neither may take the other's messages."""
    lines = (runs / "sampled" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_fp16_scaler_in_pieces(runs: Path) -> None:
    """The scaler begins too high, all processes skip the same steps, then losses follow."""
    one, two = curve(runs / "one-half"), curve(runs / "fsdp-half")
    assert len(two) == 14
    for (_, loss, _), (_, wanted, _) in zip(two, one, strict=True):
        assert math.isfinite(loss)
        assert abs(loss - wanted) < 0.02
    assert two[-1][1] < two[0][1] - 0.2
    root = runs / "fsdp-half" / "checkpoints"
    states = [checkpoint.check(folder).state for folder in checkpoint.found(root)]
    assert states[-1]["scaler"]["scale"] > 0
    assert states[-1]["updates"] == 14 - states[-1]["skipped"]


def test_all_stop_where_one_is_asked_to(
    tmp_path: Path, runs: Path, on: Callable[..., None]
) -> None:
    job = {"out": str(tmp_path), **OPTIONS, "parallel": "fsdp"}
    on(2, [{**job, "ask": (1, 6), "save_every": 100, "slow": 0.5}], code=3)
    on(2, [job])
    first, again = plans(tmp_path)
    assert first[0] == 0
    assert again[0] in (6, 7)
    assert curve(tmp_path) == curve(runs / "fsdp")


def test_torchrun_starts_a_killed_worker_again(tmp_path: Path, runs: Path) -> None:
    jobs = [{"out": str(tmp_path), **OPTIONS, "parallel": "fsdp", "die": (1, 7)}]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--max-restarts", "2", str(RUN), json.dumps(jobs)),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [start[0] for start in plans(tmp_path)] == [0, 4]
    assert curve(tmp_path) == curve(runs / "fsdp")
