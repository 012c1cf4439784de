"""Recipes: presets, extends, --set, and errors that name the key."""

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hornbook import evaluate, progress, steps
from hornbook.commands.runs import _print_end, _print_plan
from hornbook.errors import ConfigError, HornbookError, InputError
from hornbook.estimate import _short, describe
from hornbook.pipeline import run, select_steps
from hornbook.recipe import PRESETS, Recipe, from_dict, load
from hornbook.steps import plan


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_survive_json(name):
    recipe = load(name)
    assert recipe.name == name
    assert from_dict(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_paper_figures():
    recipe = load("phi-1")
    assert (
        recipe.model.num_hidden_layers,
        recipe.model.hidden_size,
        recipe.model.num_attention_heads,
    ) == (24, 2048, 32)
    pretrain, finetune = recipe.pretrain, recipe.finetune
    assert (pretrain.batch_size, pretrain.sequence_length, pretrain.steps) == (1024, 2048, 36_000)
    assert (pretrain.learning_rate, pretrain.warmup_steps, pretrain.stop_step) == (
        1e-3,
        750,
        24_000,
    )
    assert (pretrain.weight_decay, pretrain.dropout, pretrain.schedule) == (0.1, 0.1, "linear")
    assert (finetune.batch_size, finetune.steps, finetune.learning_rate) == (256, 6000, 1e-4)
    assert (finetune.warmup_steps, finetune.weight_decay) == (50, 0.01)
    small = load("phi-1-small")
    assert (
        small.model.num_hidden_layers,
        small.model.hidden_size,
        small.model.num_attention_heads,
    ) == (20, 1024, 16)
    assert small.pretrain.steps == pretrain.steps


def test_extends_and_set(tmp_path):
    (tmp_path / "base.toml").write_text(
        'extends = "demo"\nname = "mine"\n[pretrain]\nsteps = 700\n[dedup]\nngram = 4\n'
    )
    (tmp_path / "child.toml").write_text('extends = "base.toml"\n[pretrain]\nbatch_size = 3\n')
    recipe = load(tmp_path / "child.toml", ["dedup.threshold=0.8", "source.raw=/data/stack"])
    assert (recipe.name, recipe.pretrain.steps, recipe.pretrain.batch_size) == ("mine", 700, 3)
    assert (recipe.dedup.ngram, recipe.dedup.threshold) == (4, 0.8)
    assert recipe.source.raw == ("/data/stack",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pretrain.stepz=1", "unknown recipe key `pretrain.stepz`: did you mean `steps`"),
        ("dedup.threshold=high", "dedup.threshold = 'high': must be of type float"),
        ("dedup.method=magic", "dedup.method = 'magic': must be one of minhash, exact"),
        ("pretrain=1", "pretrain: expected a section"),
        ("seeds=0", "at least one model"),
        ("seed=true", "seed = True: must be of type int"),
        ("nonsense", "write it as section.key=value"),
        ("pretrain.steps.x=1", "`steps` is a value, not a section"),
        ("skip=['pack']", "skip `pack`"),
        ("arms.x.data.wood=1", "arm data `wood`"),
        ("arms={'../x'={}}", "arm `../x`"),
        ("source.raw=[a, b]", "not a TOML value"),
        ("name='../x'", "name `../x`"),
        ("name=''", "name ``"),
        ("seed=-1", "seed = -1: must be at least 0"),
        ("generate.exercises.count=-4", "generate.exercises: count = -4: must be at least 1"),
        ("generate.textbooks.levels=99", "choose among"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ConfigError) as error:
        load("demo", [setting])
    assert message in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="did you mean `phi-1-small`"):
        load("phi1-small")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"x\.toml: not valid TOML"):
        load(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InputError, match=r"x\.toml: not readable"):
        load(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("extends = 3\n")
    with pytest.raises(ConfigError, match="extends = 3: name a preset"):
        load(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("")
    with pytest.raises(ConfigError, match="has no `name`"):
        load(tmp_path / "x.toml")
    (tmp_path / "loop.toml").write_text('extends = "loop.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        load(tmp_path / "loop.toml")


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_setting_is_accepted_or_named(key, value):
    try:
        recipe = load("demo", [f"{key}={value}"])
    except HornbookError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert isinstance(recipe, Recipe)


def test_plan_is_in_order_and_whole():
    recipe = load("demo")
    seen: set[str] = set()
    for step in plan(recipe):
        assert seen.issuperset(step.needs), step.name
        assert step.name not in seen
        seen.add(step.name)
    assert {"source", "dedup", "annotate", "filter", "tokenizer", "report"} <= seen
    assert {"train/none/seed-0/finetuned", "train/raw/seed-0/base"} <= seen
    assert "train/none/seed-0/base" not in seen


def test_only_brings_what_it_needs():
    steps = plan(load("demo"))
    names = [step.name for step in select_steps(steps, ("dedup",))]
    assert names == ["pool", "source", "dedup"]
    assert "pack/raw" in [step.name for step in select_steps(steps, ("pack",))]
    with pytest.raises(ConfigError, match="no step `dedupe`"):
        select_steps(steps, ("dedupe",))


def test_stages_can_be_left_out():
    skip = "skip=['dedup', 'decontaminate', 'study', 'report']"
    names = [step.name for step in plan(load("demo", [skip]))]
    assert not any(n.startswith(("dedup", "decontaminate", "study", "report")) for n in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["embedder=codegen"], "embedder_model"),
        (["embedder=hash", "embedder_model=m"], "embedder_model"),
        (["embedder=codegen", "embedder_model=m", "embedder_url=u"], "embedder_url"),
        (["embedder=hash", "combine=and"], "ast_threshold"),
    ],
)
def test_senseless_decontamination(settings, message):
    with pytest.raises(ConfigError, match=message):
        load("demo", [f"decontaminate.{setting}" for setting in settings])


def test_a_neural_embedder_has_a_model():
    named = ["decontaminate.embedder=codegen", "decontaminate.embedder_model=some/model"]
    assert load("demo", named).decontaminate.embedder_model == "some/model"


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], 2),
        (["embedder=hash"], 1),
        (["embedder=hash", "embedding_threshold=0"], 2),
        (["embedder=hash", "ast_threshold=0.95"], 1),
        (["embedder=hash", "ast_threshold=0.95", "combine=and"], 2),
        (["embedder=hash", "ast_threshold=0.3", "combine=and"], 1),
    ],
)
def test_decontamination_by_embedding(tmp_path, settings, kept):
    """A solution in another order of lines: near by its words, far by its tree and 13-grams."""
    lines = [f"    total{i} = values[{i}] * {i + 3} - offset{i}" for i in range(6)]
    lines += [f"    most{i} = max(total{i}, least{i}(values))" for i in range(6)]
    head, end = "def weigh(values):", "    return total0 + total5"
    problem = {"task_id": "T/0", "prompt": f"{head}\n", "entry_point": "weigh", "test": "pass"}
    problem["canonical_solution"] = "\n".join([*lines, end]) + "\n"
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    texts = ["\n".join([head, *lines[::-1], end]), "print('hello')\n"]
    (tmp_path / "pool").mkdir()
    rows = [json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "pool" / "rows.jsonl").write_text("".join(rows))
    wanted = [f"benchmarks=['{tmp_path / 'problems.jsonl'}']", "embedding_threshold=0.4", *settings]
    recipe = load("demo", [f"decontaminate.{setting}" for setting in wanted])
    report = steps._decontaminate("public", "raw", "pool")(recipe, tmp_path)
    assert report["counts"]["kept"] == kept
    # Held-out problems are looked for by their words alone.
    (tmp_path / steps.HELDOUT).parent.mkdir()
    (tmp_path / "problems.jsonl").rename(tmp_path / steps.HELDOUT)
    report = steps._decontaminate("heldout", "raw", "pool")(recipe, tmp_path)
    assert report["counts"] == {"in": 2, "kept": 2, "dropped": {"ngram": 0}, "rejected": 0}


def test_raw_code_must_be_named_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.raw is empty"):
        run(load("phi-1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_arms_of_a_child_replace_the_parents(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'extends = "phi-1"\nname = "mine"\n[arms.books]\ndata = { textbooks = 1 }\n'
    )
    assert {name: arm.data for name, arm in load(tmp_path / "mine.toml").arms.items()} == {
        "books": {"textbooks": 1.0}
    }


def test_what_is_missing_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("HORNBOOK_DATA", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    raw = [f"source.raw={tmp_path}"]
    with pytest.raises(ConfigError, match="no teacher"):
        run(load("phi-1", raw), tmp_path / "run")
    named = [*raw, "generate.model=m"]
    with pytest.raises(ConfigError, match="needs prices"):
        run(load("phi-1", [*named, "generate.budget_usd=5"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="HORNBOOK_DATA"):
        run(load("phi-1", named), tmp_path / "run")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key"):
        run(load("phi-1", named), tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.vocab_size=600", "model.vocab_size: 600 is less than the 640 tokens"),
        ("tokenizer.name=codegen", "less than the 50,295 tokens of the tokenizer"),
        ("pretrain.sequence_length=512", "pretrain.sequence_length: 512 is past"),
        ("finetune.sequence_length=512", "finetune.sequence_length: 512 is past"),
        ("finetune.device=cuda", "finetune.device: .* sees no GPU"),
    ],
)
def test_what_cannot_be_trained_is_said_before_data_is_made(tmp_path, setting, message):
    if "cuda" in setting and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        run(load("demo", [setting]), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_files_that_later_steps_read_are_looked_for_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("HORNBOOK_DATA", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    base = [f"source.raw={tmp_path}", "generate.teacher=openai", "generate.model=m"]
    for setting, message in (
        ("generate.curriculum=nowhere.toml", "nowhere.toml: no such file"),
        ("tokenizer.name=nowhere.json", "nowhere.json: no tokenizer"),
        ("decontaminate.benchmarks=nowhere.jsonl", "nowhere.jsonl"),
        ("decontaminate.benchmarks=humaneval", "HORNBOOK_DATA"),
    ):
        with pytest.raises((ConfigError, InputError), match=message):
            run(load("demo", [*base, setting]), tmp_path / "run")
    rubric = ["annotate.annotator=openai", "annotate.rubric=nowhere.toml"]
    with pytest.raises(InputError, match=r"nowhere\.toml: not a readable rubric"):
        run(load("demo", [*base, *rubric]), tmp_path / "run")
    with pytest.raises(ConfigError, match="jobs: -1"):
        run(load("demo", base), tmp_path / "run", jobs=-1)


def test_the_annotator_is_asked_as_the_teacher_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    settings = ["generate.teacher=replay", "generate.budget_s=5", "generate.max_retries=2"]
    settings += ["generate.model=m", "generate.price_in=1", "generate.price_out=2"]
    recipe = load("demo", settings)
    options = steps.annotator_options(recipe, tmp_path)
    assert (options["teacher"], options["budget_s"], options["max_retries"]) == ("replay", 5, 2)
    assert options["prices"] == {"m": (1, 2)}
    settings += ["annotate.model=other", "generate.budget_usd=3"]
    with pytest.raises(ConfigError, match=r"annotate\.price_in"):
        steps.annotator_options(load("demo", settings), tmp_path)
    settings += ["annotate.price_in=3", "annotate.price_out=4"]
    options = steps.annotator_options(load("demo", settings), tmp_path)
    assert (options["model"], options["prices"]) == ("other", {"other": (3, 4)})
    # The offline teacher of textbooks is none that could annotate.
    offline = load("demo", ["generate.model=m"])
    assert steps.annotator_options(offline, tmp_path)["teacher"] == "openai"


def test_benchmarks_of_one_label_are_refused():
    for names in ('["a/x.jsonl", "b/x.jsonl"]', '["b/heldout.jsonl"]'):
        with pytest.raises(ConfigError, match="rename the file"):
            plan(load("demo", [f"evaluate.benchmarks={names}"]))


def test_the_study_is_of_exercises():
    arms = {"books": {"data": {"textbooks": 1.0}, "finetune": False}}
    recipe = from_dict({**asdict(load("demo")), "arms": arms})
    names = {step.name for step in plan(recipe)}
    assert "exercises" not in names
    assert "study/contamination" not in names
    assert "report" in names


def test_a_plan_prices_what_is_asked_of_each_model(tmp_path):
    def notes(*settings: str) -> str:
        recipe = load("phi-1-small", ["generate.model=m", "annotate.samples=1000", *settings])
        return "\n".join(describe(recipe, tmp_path)["notes"])

    prices = ["generate.price_in=1", "generate.price_out=1"]
    other = ["annotate.annotator=openai", "annotate.model=other"]
    offline = ["generate.teacher=procedural", *other]
    # 1,150 tokens of a label's prompt and 50 of its answer.
    priced = ["annotate.price_in=1000", "annotate.price_out=2000"]
    assert "about 1,250 US dollars" in notes(*offline, *prices, *priced)
    assert "about 1,875 US dollars" in notes(*offline, *prices, *priced, "annotate.repeats=0.5")
    assert "no prices in the recipe (annotate.price_in, annotate.price_out)" in notes(
        *offline, *prices
    )
    # A million of each: 1,100 and 500 tokens.
    rows = ["generate.textbooks.rows=1_000_000", "generate.exercises.rows=1_000_000"]
    assert "1.1B for textbooks, 500M for exercises" in notes(
        "annotate.annotator=rubric", *prices, *rows
    )
    recipe = load("phi-1-small", rows)
    told = {step["name"]: step["estimate"] for step in describe(recipe, tmp_path)["steps"]}
    assert told["textbooks"] == "1,000,000 sections"
    assert told["exercises"] == "1,000,000 exercises"
    assert (_short(999_999), _short(999_499), _short(1e12)) == ("1M", "999k", "1T")


def test_a_run_keeps_which_benchmarks_it_found(tmp_path, monkeypatch):
    """Else a report from a shell without the variable would be of another run."""
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"")
    monkeypatch.setenv("HORNBOOK_DATA", str(tmp_path))
    recipe = load("demo")
    kept = steps.resolved(recipe)
    assert (kept.decontaminate.benchmarks, kept.decontaminate.if_present) == (("humaneval",), ())
    assert steps.missing(recipe) == ["mbpp"]
    names = [step.name for step in plan(recipe)]
    monkeypatch.delenv("HORNBOOK_DATA")
    assert [step.name for step in plan(kept)] == names
    assert [step.name for step in plan(recipe)] != names
    # And the run itself is not gone on with against less.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(asdict(kept)))
    made = tmp_path / "run" / "decontaminate" / "public" / "raw"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="decontaminated against humaneval, which is not found"):
        run(recipe, tmp_path / "run")
    monkeypatch.setenv("HORNBOOK_DATA", str(tmp_path))
    skipped = load("demo", ['skip=["decontaminate"]'])
    assert steps.resolved(skipped) == skipped


def test_brackets_are_no_markup(capsys):
    report = {"done": 1, "skipped": 0, "seconds": 1.0}
    _print_end("[red]x", report, Path("runs/[/old]"), reported=False)
    assert "[red]x: 1 step done, 0 done already" in capsys.readouterr().out
    step = {"name": "a[red]b", "needs": [], "state": "to do", "estimate": ""}
    _print_plan({"name": "[/x]", "out": "l[old]", "steps": [step], "notes": ["teacher a[red]b"]})
    out = capsys.readouterr().out
    assert "[/x]: 1 steps into l[old]" in out
    assert "teacher a[red]b" in out


def test_the_numbers_of_a_progress_line_stay_whole(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bars = progress.bars()
    bars.disable = False
    bars.add_task("pretrain", total=4000, completed=425, note="loss 4.481, lr 0.0023, " * 4)
    console = Console(width=80, file=StringIO(), force_terminal=False)
    console.print(bars.get_renderable())
    (line,) = console.file.getvalue().splitlines()
    assert "pretrain" in line
    assert "425/4000" in line
    assert "0:00:00" in line
    assert "loss" in line


def test_a_recipe_s_evaluation_is_asked_as_it_says(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(evaluate, "evaluate_model", lambda *a, **options: seen.update(options))
    recipe = load("demo")
    changed = replace(recipe.evaluate, temperature=0.7, samples=3, max_new_tokens=99)
    steps._evaluate("train/raw/seed-0/base", "heldout")(
        replace(recipe, seed=5, evaluate=changed), tmp_path
    )
    assert (seen["temperature"], seen["samples"], seen["max_new_tokens"]) == (0.7, 3, 99)
    assert seen["seed"] == 5
