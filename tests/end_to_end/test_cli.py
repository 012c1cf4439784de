"""Each stage alone, from the command line, on a user's own files; and what bad input gets."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hornbook.cli import main, stdin_last
from hornbook.commands.shared import examples_of
from hornbook.recipe import load
from hornbook.tokenizer import Tokenizer


def cli(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def rows(tmp_path):
    """A user's own JSON lines: useful functions, junk, a duplicate, and two bad rows."""
    path = tmp_path / "mine.jsonl"
    useful = [
        f'def scale_{i}(numbers):\n    """Multiply each number by {i} and return the sum."""\n'
        "    total = 0\n    for number in numbers:\n"
        f"        total += number * {i}\n    return total\n"
        for i in range(60)
    ]
    junk = [
        "from .settings import BASE\n"
        + "".join(f"OPTION_{i}_{j} = {i * j}\nNAME_{j}_{i} = 'value {j}'\n" for j in range(8))
        for i in range(60)
    ]
    lines = [json.dumps({"text": text, "stars": i}) for i, text in enumerate(useful + junk)]
    lines += [lines[0], "{broken", '{"no_text": 1}']
    path.write_text("\n".join(lines) + "\n")
    return path


def test_data_stages_in_turn(tmp_path, rows, capsys):
    out = {name: tmp_path / name for name in ("clean", "labels", "kept", "tok", "packed")}
    assert cli("dedup", rows, "--out", out["clean"], "--method", "exact") == 0
    assert "120 kept of 121" in capsys.readouterr().out
    rejected = (out["clean"] / "rejected" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [122, 123]
    assert cli("annotate", out["clean"], "--samples", 100, "--out", out["labels"]) == 0
    assert cli("filter", out["clean"], "--labels", out["labels"], "--out", out["kept"]) == 0
    assert "60 kept of 120" in capsys.readouterr().out
    tokenizer = out["tok"] / "tokenizer.json"
    assert cli("tokenizer", "train", out["kept"], "--vocab-size", 300, "--out", out["tok"]) == 0
    assert cli("pack", out["kept"], "--tokenizer", tokenizer, "--out", out["packed"]) == 0
    capsys.readouterr()
    assert cli("verify", out["packed"], out["kept"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert cli("pack", "info", out["packed"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 60
    assert cli("pack", "stats", out["packed"], "--sequence-length", 64, "--json") == 0
    assert json.loads(capsys.readouterr().out)["best_fit"]["short_documents_cut"] == 0
    assert cli("pack", "peek", out["packed"], "--method", "best_fit", "--samples", 1) == 0
    assert "def scale_" in capsys.readouterr().out
    assert cli("pack", "info", out["kept"]) == 2
    assert "holds the output of `filter`" in capsys.readouterr().err
    assert cli("diversity", out["kept"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["sample"]["documents"] == 60
    assert cli("tokenizer", "encode", "def f(x):", "--tokenizer", tokenizer, "--json") == 0
    ids = json.loads(capsys.readouterr().out)
    assert cli("tokenizer", "decode", *ids, "--tokenizer", tokenizer) == 0
    assert capsys.readouterr().out == "def f(x):\n"
    # A user's other columns are still there.
    from hornbook import corpus

    assert {"stars", "quality_score"} <= set(next(iter(corpus.read([out["kept"]]))))


def stdin(data):
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


def test_train_sample_and_evaluate(tmp_path, rows, capsys, monkeypatch):
    tok, packed, model = tmp_path / "tok", tmp_path / "packed", tmp_path / "model"
    assert cli("tokenizer", "train", rows, "--vocab-size", 300, "--out", tok) == 0
    assert cli("pack", rows, "--tokenizer", tok / "tokenizer.json", "--out", packed) == 0
    small = ["pretrain.steps=3", "pretrain.warmup_steps=1", "model.hidden_size=32"]
    small += ["model.num_attention_heads=2", "model.num_hidden_layers=1"]
    options = [part for setting in small for part in ("--set", setting)]
    assert cli("train", "demo", "--data", packed, "--out", model, *options) == 0
    assert cli("train", "demo", "--data", packed, "--out", model, *options) == 0
    capsys.readouterr()
    final = model / "final"
    assert cli("sample", "def f(", "--model", final, "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out.startswith("def f(")
    problems = tmp_path / "problems.jsonl"
    problem = {
        "task_id": "mine/0",
        "prompt": 'def one():\n    """Return 1."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    problems.write_text(json.dumps(problem) + "\n")
    scores = tmp_path / "scores"
    extra = ["--max-new-tokens", 4, "--json"]
    assert cli("evaluate", problems, "--model", final, "--out", scores, *extra) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "mine/0", "completion": "    return 1\n"}) + "\n")
    again = tmp_path / "again"
    assert cli("evaluate", problems, "--samples", samples, "--out", again, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pass@1"] == 1.0
    assert cli("export", "hf", final, "--out", tmp_path / "hf") == 0
    assert (tmp_path / "hf" / "config.json").is_file()
    # A training's folder is none of a model; where it is can be said.
    assert cli("export", "hf", model, "--out", tmp_path / "hf2") == 2
    assert f"its model is in {final}" in capsys.readouterr().err
    assert cli("sample", "x", "--model", model) == 2
    assert f"its model is in {final}" in capsys.readouterr().err
    assert cli("sample", "x", "--model", final, "--temperature", -1) == 2
    assert capsys.readouterr().out == ""
    # With the prompt's last newline, the model would be asked something else.
    monkeypatch.setattr("sys.stdin", stdin(b"def f(x):\n"))
    assert cli("sample", "-", "--model", final, "--max-new-tokens", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "def f(x):"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dedup", "nowhere.jsonl", "--out", "x"], "nowhere.jsonl"),
        (["dedup", "empty", "--out", "x"], "no .parquet, .jsonl"),
        (["dedup", "bad.parquet", "--out", "x"], "not a readable Parquet file"),
        (["dedup", "good.jsonl", "--out", "taken"], "was not made by `dedup`"),
        (["dedup", "good.jsonl", "--threshold", "7", "--out", "x"], "threshold"),
        (["run", "demo", "--set", "dedup.tresh=1", "--dry-run"], "did you mean `threshold`"),
        (["run", "phi-2", "--dry-run"], "no such recipe"),
        (["run", "phi-1-small", "--out", "x"], "source.raw is empty"),
        (["run", "demo", "--only", "nothing", "--out", "x"], "no step `nothing`"),
        (["filter", "good.jsonl", "--labels", "good.jsonl", "--out", "x"], "score"),
        (["pack", "good.jsonl", "--tokenizer", "none.json", "--out", "x"], "no tokenizer"),
        (["decontaminate", "good.jsonl", "--out", "x"], "HORNBOOK_DATA"),
        (["evaluate", "humaneval", "--out", "x"], "either --model or --samples"),
        (["verify", "empty"], "no manifest.json"),
        (["trace", "abc", "--run", "empty"], "no finished data stage"),
        (["report", "empty"], "recipe.json: no such file"),
        (["export", "hf", "nope", "--out", "x"], "nope: no such folder"),
        (["export", "hf", "empty", "--out", "x"], "config.json and tokenizer.json not there"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HORNBOOK_DATA", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "good.jsonl").write_text('{"text": "a b c d e f"}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    assert cli(*arguments) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "mine"


def test_terminal_escapes_in_errors_are_shown_not_obeyed(capsys):
    assert cli("run", "\x1b[31mred", "--dry-run") == 2
    err = capsys.readouterr().err
    assert "\x1b[31mred" not in err
    assert "\\x1b" in err


@pytest.mark.parametrize("name", ["demo", "phi-1-small", "phi-1"])
def test_dry_run_says_what_it_takes_and_does_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert cli("run", name, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert {step["state"] for step in plan["steps"]} == {"to do"}
    assert not list(tmp_path.iterdir())
    if name == "phi-1":
        assert plan["training"]["pretrain"]["parameters"] == 1_418_270_720
        assert plan["training"]["pretrain"]["tokens"] == 24_000 * 1024 * 2048
        assert 300 < plan["training"]["pretrain"]["gpu_hours"]["A100"] < 1500


def commands(app, path=()):
    for name in app:
        if name.startswith("-"):
            continue
        child = app[name]
        yield (*path, name)
        yield from commands(child, (*path, name))


def test_every_command_has_help_with_an_example_or_subcommands(capsys):
    from hornbook.cli import app

    found = list(commands(app))
    assert len(found) > 20
    for path in found:
        assert cli(*path, "--help") == 0
        text = capsys.readouterr().out
        assert "Usage" in text
        command = app
        for name in path:
            command = command[name]
        # A group has no example of its own, and none of a command in it.
        assert ("Examples:" in text) == (command.default_command is not None), path


def test_verify_wants_every_folder_and_names_steps_that_are_missing(tmp_path, rows, capsys):
    assert cli("dedup", rows, "--out", tmp_path / "clean", "--method", "exact") == 0
    assert cli("verify", tmp_path / "clean", tmp_path / "nothing") == 2
    assert "nothing: " in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    recipe = asdict(load("demo"))
    (run / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "clean").rename(run / "dedup")
    assert cli("verify", run, "--json") == 0
    assert "evaluate/" in json.loads(capsys.readouterr().out)["not there"]


def test_export_writes_over_nothing(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("trained for weeks")
    assert cli("export", "hf", tmp_path / "model", "--out", tmp_path / "out") == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_text() == "trained for weeks"


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "exercises", "--base-url", "http://127.0.0.1:1/v1", "--count", 3),
        ("generate", "textbooks", "--rows", 3),
        ("annotate", "in.jsonl", "--rubric", "nowhere.toml"),
    ],
)
def test_options_of_a_model_need_one(tmp_path, capsys, command):
    assert cli(*command, "--out", tmp_path / "out") == 2
    assert "give --model NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("data", "message"), [(None, "is closed"), (b"a\xff", "byte 1")])
def test_standard_input_that_cannot_be_read(monkeypatch, capsys, data, message):
    for command in (("tokenizer", "encode"), ("sandbox", "run"), ("sample", "--model", "m")):
        stdin = None if data is None else io.TextIOWrapper(io.BytesIO(data), encoding="ascii")
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli(*command) == 2
        assert message in capsys.readouterr().err


def test_errors_of_the_system_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli("evaluate", "page", tmp_path, "--out", tmp_path / "file" / "page.html") in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("pack", "IN", "--threads", -1), "threads: -1"),
        (("filter", "IN", "--labels", "IN", "--threads", 0), "threads: 0"),
        (("dedup", "IN", "--memory-mb", 99999999999999), "memory_mb"),
        (("filter", "IN", "--labels", "IN", "--embedder-model", "m"), "embedder_model"),
    ],
)
def test_numbers_out_of_range(tmp_path, rows, capsys, command, message):
    arguments = [rows if argument == "IN" else argument for argument in command]
    assert cli(*arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_a_whole_id_can_be_traced_though_it_begins_others(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    rows = [{"id": name, "text": f"text {name}"} for name in ("d5", "d50", "d51")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli("dedup", source, "--out", tmp_path / "run" / "dedup") == 0
    capsys.readouterr()
    assert cli("trace", "d5", "--run", tmp_path / "run") == 0
    found = capsys.readouterr().out
    assert found.startswith("document d5\n")
    assert found.count("kept") == 1
    assert cli("trace", "d", "--run", tmp_path / "run") == 2
    assert "begins several ids" in capsys.readouterr().err


def test_diversity_hears_of_an_interrupt(tmp_path):
    source = tmp_path / "in.jsonl"
    line = json.dumps({"text": "def f(x):\n    return x\n" * 4000}) + "\n"
    source.write_text(line * 600)
    command = [sys.executable, "-m", "hornbook", "diversity", str(source)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 3


def test_a_dry_run_is_of_what_would_run(tmp_path, capsys):
    command = ("run", "demo", "--out", tmp_path / "run", "--dry-run", "--json")
    assert cli(*command, "--only", "nope") == 2
    assert "no step `nope`" in capsys.readouterr().err
    assert cli(*command, "--only", "textbooks") == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)["steps"]] == ["textbooks"]


def test_what_a_terminal_cannot_show_is_shown_by_number() -> None:
    command = [sys.executable, "-m", "hornbook", "tokenizer", "decode", "162", "120", "95"]
    found = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert found.stdout == b"\\u6f22\n"


def test_a_tokenizer_without_an_end_token_can_be_looked_at(tmp_path, capsys):
    Tokenizer.train(["a"], vocab_size=300, special_tokens=["<s>"]).save(tmp_path / "t.json")
    assert cli("tokenizer", "info", tmp_path / "t.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["eot_id"] is None


def test_examples_are_what_a_shell_takes():
    def command() -> None:
        """Does.

        Parameters
        ----------
        x
            An x.

        Examples:
            hornbook a "--b c" --long-option-number-one value --long-option-number-two value --e f

            hornbook b --c d
                --e f
        """

    assert examples_of(command).split("\n") == [
        'hornbook a "--b c" --long-option-number-one value \\',
        "    --long-option-number-two value --e f",
        "",
        "hornbook b --c d \\",
        "    --e f",
    ]
    assert examples_of(None) == ""


def test_the_page_of_commands_is_current_and_has_examples():
    docs = Path(__file__).parents[2] / "docs"
    # In a process of its own: the order is that in which commands were loaded.
    code = (
        f"import runpy; print(runpy.run_path({str(docs / 'make_commands.py')!r})['page'](), end='')"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert (docs / "commands.md").read_text(encoding="utf-8") == made
    assert "```sh\nhornbook dedup data/*.parquet --out clean/\n" in made


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["sample", "-", "--model", "m"], ["sample", "--model", "m", "--", "-"]),
        (["sample", "a", "-", "--", "--b", "-"], ["sample", "a", "--", "-", "--b", "-"]),
        (["sample", "--", "-"], ["sample", "--", "-"]),
        (["dedup", "a", "-x"], ["dedup", "a", "-x"]),
    ],
)
def test_a_dash_is_no_option(given, taken):
    assert stdin_last(given) == taken


def test_a_dash_is_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", stdin(b"def f(x):"))
    assert cli("tokenizer", "encode", "-", "--json") == 0
    assert json.loads(capsys.readouterr().out) == Tokenizer.codegen().encode("def f(x):").tolist()
    monkeypatch.setattr("sys.stdin", stdin(b"print('ran')"))
    assert cli("sandbox", "run", "-") == 0
    assert capsys.readouterr().out.startswith("ran\n")


def test_several_values_stand_after_one_flag_or_each_after_its_own(tmp_path, rows, capsys):
    problem = {
        "task_id": "mine/0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in files:
        path.write_text(json.dumps(problem) + "\n")
    sweep = ("contamination", "sweep", rows, "--json", "--benchmarks")
    assert cli(*sweep, *files, "--taus", 0.9, 0.8) == 0
    together = json.loads(capsys.readouterr().out)
    assert [row["tau"] for row in together["rows"]] == [0.9, 0.8]
    assert cli(*sweep, files[0], "--benchmarks", files[1], "--taus", 0.9, "--taus", 0.8) == 0
    assert json.loads(capsys.readouterr().out) == together
    assert cli("run", "demo", "--only", "source", "dedup", "--dry-run", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 3


def test_ids_outside_the_vocabulary_are_named(capsys):
    assert cli("tokenizer", "decode", 5303, 9999999) == 0
    said = capsys.readouterr()
    assert said.out == "hi\n"
    assert "9999999: outside the vocabulary of 50,295" in said.err


def test_an_interrupt_while_commands_load_is_an_interrupt(monkeypatch, capsys):
    loaded = "import hornbook.cli, sys; sys.exit('cyclopts' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hornbook.cli.load", interrupted)
    assert cli("--version") == 3
    assert "stopped" in capsys.readouterr().err


def test_a_plan_has_whole_names_and_says_what_a_budget_buys(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prices = ["generate.price_in=0.15", "generate.price_out=0.6", "generate.model=m"]
    prices += ["source.raw=/data", "generate.budget_tokens=1_000_000_000_000"]
    options = [part for setting in prices for part in ("--set", setting)]
    assert cli("run", "phi-1-small", "--dry-run", "--budget-usd", 200, *options) == 0
    out = capsys.readouterr().out
    assert "evaluate/CodeTextbook/seed-0/finetuned/humaneval " in out
    # 604 M tokens of prompts and 946 M of answers.
    assert "about 658 US dollars" in out
    assert "the budget of 200.00 US dollars would stop it after about 30%" in out
    assert "the budget of 1T tokens should hold it all" in out
    step = tmp_path / "runs" / "phi-1-small" / "dedup"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    assert cli("run", "phi-1-small", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in plan["steps"] if s["state"] == "there"] == ["dedup"]
    assert "unless its settings" in plan["notes"][-1]


def test_a_submodule_is_there_without_being_imported():
    code = (
        "import hornbook as hb, sys\n"
        "assert 'hornbook.quality' not in sys.modules\n"
        "assert callable(hb.quality.annotate)\n"
        "import hornbook.dedup\n"
        "assert not isinstance(hb.dedup, type(hb.quality))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
