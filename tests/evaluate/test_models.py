"""Models that answer: a tiny one trained here, the same at any batch size and by transformers;
and an evaluation that is killed again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate import evaluate, evaluate_model, load_problems, status
from hornbook.evaluate.models import open_model

SAFE = status()
pytestmark = pytest.mark.skipif(not SAFE["safe"], reason=str(SAFE.get("advice")))
FILES = ("samples.jsonl", "results.jsonl", "problems.jsonl", "summary.json")
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


def rows():
    return [
        {
            "task_id": f"T/{name}",
            "prompt": f'def {name}(x):\n    """Adds {place}{" to x" * (place % 3)}."""\n',
            "test": f"def check(f):\n    assert f(1) == {1 + place}\n    assert f(0) == {place}\n",
            "entry_point": name,
            "canonical_solution": f"    return x + {place}\n",
        }
        for place, name in enumerate(NAMES)
    ]


def problem_file(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def one_thread():
    """These tensors are too small to share out."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_thread):
    """A checkpoint that has learned the answers: some 11,000 weights, seconds to train."""
    torch = pytest.importorskip("torch")
    from hornbook import Tokenizer
    from hornbook.model import Phi, PhiConfig

    texts = [row["prompt"] + row["canonical_solution"] for row in rows()]
    tokenizer = Tokenizer.train(texts, vocab_size=300, special_tokens=["<|endoftext|>"])
    ids = [[*map(int, tokenizer.encode(text)), tokenizer.eot_id] for text in texts]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.eot_id] * (longest - len(row)) for row in ids])
    shape = PhiConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    model = Phi(shape, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(150):
        logits = model(padded[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model") / "final"
    model.eval().save_pretrained(folder, tokenizer=tokenizer)
    return folder


def test_what_a_tiny_model_learned_is_measured(trained, tmp_path):
    path = problem_file(tmp_path)
    report = evaluate_model(path, trained, tmp_path / "out", max_new_tokens=20)
    assert report["pass@1"] >= 0.75
    assert report["settings"]["prompt"].startswith("the prompt without its last newlines")
    assert (report["settings"]["backend"], report["settings"]["batch_size"]) == ("hornbook", 64)
    assert len(report["model_id"]) >= 32
    assert report["problems_sha256"]
    assert report["isolation"] == SAFE["isolation"]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_batch_size_changes_no_answer(trained, tmp_path, temperature):
    path = problem_file(tmp_path)
    texts = set()
    for size in (1, 3, 64):
        out = tmp_path / f"b{size}"
        evaluate_model(
            path,
            trained,
            out,
            max_new_tokens=20,
            temperature=temperature,
            samples=1 if temperature == 0 else 5,
            batch_size=size,
            seed=4,
        )
        texts.add((out / "samples.jsonl").read_bytes())
    assert len(texts) == 1
    if temperature:
        completions = [json.loads(line)["completion"] for line in texts.pop().splitlines()]
        assert len(set(completions)) > len(NAMES)  # samples of a problem differ


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_transformers_answers_as_we_do_at_any_batch_size(trained, tmp_path, temperature):
    pytest.importorskip("transformers")
    path = problem_file(tmp_path)
    found = {}
    for backend, size in (("hornbook", 64), ("transformers", 1), ("transformers", 5)):
        out = tmp_path / f"{backend}{size}"
        evaluate_model(
            path,
            trained,
            out,
            max_new_tokens=20,
            backend=backend,
            batch_size=size,
            temperature=temperature,
            samples=1 if temperature == 0 else 2,
        )
        found[backend, size] = (out / "samples.jsonl").read_bytes()
    assert found["transformers", 1] == found["transformers", 5]
    assert found["transformers", 1] == found["hornbook", 64]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["hornbook", "transformers"])
def test_prompts_without_room_are_failed_and_counted(trained, tmp_path, backend):
    pytest.importorskip(backend)
    path = problem_file(tmp_path)
    long = {**rows()[0], "task_id": "T/long", "prompt": "# " + "x " * 400 + rows()[0]["prompt"]}
    both = tmp_path / "both.jsonl"
    both.write_text(path.read_text() + json.dumps(long) + "\n")
    options = {"max_new_tokens": 20, "backend": backend}
    short = evaluate_model(path, trained, tmp_path / "short", **options)
    report = evaluate_model(both, trained, tmp_path / "all", **options)
    assert (short["no_room"], report["no_room"]) == (0, 1)
    assert report["pass@1"] * (len(NAMES) + 1) == pytest.approx(short["pass@1"] * len(NAMES))
    *_, last = map(json.loads, (tmp_path / "all" / "results.jsonl").read_text().splitlines())
    assert (last["passed"], last["result"]) == (False, "no room for the prompt")
    given = evaluate(both, None, tmp_path / "given", samples=tmp_path / "all" / "samples.jsonl")
    assert given["no_room"] == 1


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        open_model(tmp_path)
    with pytest.raises(ConfigError, match="needs an endpoint"):
        open_model("gpt", backend="endpoint")
    other = tmp_path / "llama"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    assert open_model(other).settings["backend"] == "transformers"
    assert open_model("microsoft/phi-1").model_id == "hub:microsoft/phi-1"


SLOW = """
import sys, time
from hornbook.evaluate import evaluate, load_problems, run
from hornbook.evaluate.models import Model

run.BLOCK = 6
problems = load_problems(sys.argv[1])

def draw(pairs, places):
    time.sleep(0.15)
    return [
        problem.canonical_solution if (place * 7) % 3 else "    return None\\n"
        for (problem, _), place in zip(pairs, places)
    ]

model = Model(draw=draw, model_id="slow", group=7)
evaluate(problems, model, sys.argv[2], samples=5, k=(1, 5), workers=1)
"""


def test_an_evaluation_killed_midway_gives_the_same_bytes(tmp_path):
    """SIGKILL at random times until it gets through; then once without."""
    path, script = problem_file(tmp_path), tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True)
    whole = time.monotonic() - start
    wait, kills = random.Random(0), 0
    for _ in range(40):
        running = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
        try:
            running.wait(timeout=whole * (0.2 + 0.5 * wait.random() + 0.1 * kills))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            continue
        assert running.returncode == 0
        break
    assert kills >= 1
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "killed" / name
        ).read_bytes(), name
    left = {file.name for file in (tmp_path / "killed").iterdir()}
    assert left == {*FILES, "manifest.json"}


def test_verdicts_that_are_there_are_not_run_again(tmp_path, monkeypatch):
    from hornbook.evaluate import run, sandbox

    monkeypatch.setattr(run, "BLOCK", 4)
    problems = load_problems(problem_file(tmp_path))
    graded, real = [], sandbox.grade

    def counted(asked, answers, **options):
        if len(graded) == 1:
            graded.append(0)
            raise KeyboardInterrupt
        graded.append(len(asked))
        return real(asked, answers, **options)

    monkeypatch.setattr(sandbox, "grade", counted)

    def complete(prompts):
        return ["    return x + 1\n"] * len(prompts)

    options = {"model_id": "m", "samples": 3}
    with pytest.raises(KeyboardInterrupt):
        evaluate(problems, complete, tmp_path / "o", **options)
    with (tmp_path / "o/graded.partial.jsonl").open("ab") as file:
        file.write(b'{"status": "pass')
    report = evaluate(problems, complete, tmp_path / "o", **options)
    # Three copies of each answer run once; the four that were done are not run again.
    assert graded == [4, 0, 4]
    assert report["pass@1"] == pytest.approx(1 / 8)
    assert report["statuses"] == {"passed": 3, "wrong": 21}


def test_a_hub_data_set_is_checked_by_its_rows(tmp_path, monkeypatch, hornbook_data):
    """A folder of Parquet in the shape of a Hub data set, read by `datasets` itself."""
    pytest.importorskip("datasets")
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = gzip.decompress((hornbook_data / "HumanEval.jsonl.gz").read_bytes()).splitlines()
    table = pa.Table.from_pylist([json.loads(line) for line in lines])
    folder = tmp_path / "owner" / "name" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    problems = load_problems("humaneval", data="owner/name")
    assert [p.test for p in problems] == [p.test for p in load_problems("humaneval")]
    pq.write_table(table.slice(1), folder / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="its rows are not"):
        load_problems("humaneval", data="owner/name")
    changed = tmp_path / "HumanEval.jsonl.gz"
    changed.write_bytes(gzip.compress(b"\n".join(lines[1:])))
    with pytest.raises(InputError, match="sha256 is"):
        load_problems("humaneval", data=changed)
    with pytest.raises(ConfigError, match="named benchmark"):
        load_problems(changed, data=changed)
