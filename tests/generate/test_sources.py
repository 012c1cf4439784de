"""The stages: same seed same bytes, no held-out composition anywhere, unique and valid rows."""

import ast
import itertools
import json
import re
import subprocess
import sys

import pytest

from hornbook import corpus
from hornbook.errors import ConfigError, InputError
from hornbook.generate import curriculum, stage, verify
from hornbook.generate.exercises import exercises, heldout
from hornbook.generate.pool import pool
from hornbook.generate.procedural import LEVELS, is_held_out, sample, split_of
from hornbook.generate.textbooks import textbooks

STAGES = {
    "exercises": lambda out, seed, levels: exercises(out, count=120, levels=levels, seed=seed),
    "textbooks": lambda out, seed, levels: textbooks(out, count=90, levels=levels, seed=seed),
    "pool": lambda out, seed, levels: pool(out, count=300, levels=levels, useful=0.3, seed=seed),
}


@pytest.fixture(scope="module", params=STAGES)
def made(request, tmp_path_factory):
    """A stage's name, folder, report and rows."""
    out = tmp_path_factory.mktemp("made") / request.param
    report = STAGES[request.param](out, 3, LEVELS)
    return request.param, out, report, list(corpus.read([out]))


def hashes(report):
    return [part["xxh3"] for part in report["parts"]]


def test_same_seed_same_bytes(made, tmp_path):
    name, _, report, _ = made
    assert hashes(STAGES[name](tmp_path / "again", 3, LEVELS)) == hashes(report)
    assert hashes(STAGES[name](tmp_path / "other", 4, LEVELS)) != hashes(report)
    assert hashes(STAGES[name](tmp_path / "one", 3, (1,))) != hashes(report)


def test_a_finished_stage_is_skipped(made):
    name, out, report, _ = made
    assert dict(STAGES[name](out, 3, LEVELS)) == dict(report)


def test_rows_are_unique_and_carry_their_provenance(made):
    _, _, report, rows = made
    texts = [row["text"] for row in rows]
    assert len(texts) == len(set(texts)) == report["counts"]["kept"]
    for row in rows:
        assert row["text"].isascii()
        assert row["text"].endswith("\n")
        assert row["seed"] == 3
        assert row["source"]
        assert isinstance(row["slot"], int)


def test_no_training_row_has_a_held_out_signature(made):
    name, _, _, rows = made
    key = "signature" if name == "exercises" else "signatures"
    seen = [signature for row in rows for signature in row[key].splitlines()]
    assert len(seen) > 50
    assert not any(map(is_held_out, seen))


@pytest.fixture(scope="module")
def bodies():
    """Solutions of held-out problems."""
    return {
        made.solution.replace(made.name, "f")
        for level in LEVELS
        for made in (sample(seed=9, index=index, level=level, split="test") for index in range(300))
    }


def functions(text):
    """Bodies of the top-level functions in a text, without docstrings."""
    for match in re.finditer(r"^def (\w+)\(.*\):\n((?:    .*\n)+)", text, flags=re.M):
        yield re.sub(r'^    """.*?"""\n', "", match[2], flags=re.S).replace(match[1], "f")


def test_no_training_text_holds_the_body_of_a_held_out_problem(made, bodies):
    _, _, _, rows = made
    seen = [body for row in rows for body in functions(row["text"])]
    assert len(seen) > 50
    assert not bodies.intersection(seen)


def test_levels_are_those_asked_for(tmp_path):
    exercises(tmp_path / "e", count=30, levels=(2, 6))
    textbooks(tmp_path / "t", count=30, levels=(2, 6))
    pool(tmp_path / "p", count=60, levels=(2, 6), useful=0.5)
    for folder in "et":
        assert {row["level"] for row in corpus.read([tmp_path / folder])} == {2, 6}
    lines = [row["signatures"] for row in corpus.read([tmp_path / "p"])]
    assert {line[0] for text in lines for line in text.splitlines()} == {"2", "6"}


def test_exercises_are_prompt_and_solution_and_pass(tmp_path):
    exercises(tmp_path / "e", count=60, examples=0.5)
    examples = 0
    for row in corpus.read([tmp_path / "e"]):
        prompt, solution = row["text"][: row["prompt_chars"]], row["text"][row["prompt_chars"] :]
        assert prompt.startswith(f"def {row['entry_point']}(")
        assert prompt.endswith('"""\n')
        assert solution.startswith("    ")
        assert verify.passes(row["text"], row["tests"], row["entry_point"])
        assert not verify.passes(prompt + "    return None\n", row["tests"], row["entry_point"])
        examples += ">>>" in prompt
    assert 15 < examples < 45


def test_pool_files_compile_and_show_every_kind(tmp_path):
    report = pool(tmp_path / "p", count=400, useful=0.1)
    rows = list(corpus.read([tmp_path / "p"]))
    for row in rows:
        ast.parse(row["text"], row["path"])
    assert set(report["details"]["kinds"]) == {
        "constants",
        "dependent",
        "glue",
        "skewed",
        "useful",
    }
    assert 20 < report["details"]["kinds"]["useful"] < 60
    assert len({row["path"] for row in rows}) == len(rows)
    assert all(bool(row["signatures"]) == (row["kind"] == "useful") for row in rows)


def test_pool_holds_copies_of_earlier_files(tmp_path):
    pool(tmp_path / "p", count=400, copies=0.2)
    rows = {row["path"]: row for row in corpus.read([tmp_path / "p"])}
    copied = [row for row in rows.values() if row["copy_of"]]
    assert 50 < len(copied) < 110
    for row in copied:
        original = rows[row["copy_of"]]
        assert original["text"] in row["text"]
        assert original["kind"] == row["kind"]
        assert original["slot"] < row["slot"]


def test_no_single_feature_tells_useful_pool_files_apart(tmp_path):
    pool(tmp_path / "p", count=600, useful=0.5)
    rows = list(corpus.read([tmp_path / "p"]))
    useful = [row["text"] for row in rows if row["kind"] == "useful"]
    junk = [row["text"] for row in rows if row["kind"] != "useful"]
    for feature in ('"""', "import ", "\n# ", "return ", " for ", "self", "numbers"):
        shares = [sum(feature in text for text in group) / len(group) for group in (useful, junk)]
        assert not (min(shares) == 0 and max(shares) == 1), feature


def test_pool_size_in_characters(tmp_path):
    report = pool(tmp_path / "p", characters=50_000)
    assert 50_000 <= report["details"]["characters"] < 60_000


def test_textbooks_hold_prose_and_true_code(tmp_path):
    report = textbooks(tmp_path / "t", count=95 * 2)
    rows = list(corpus.read([tmp_path / "t"]))
    plan = curriculum.load()
    assert len(report["details"]["cells"]) == len(plan.topics) * len(plan.audiences)
    results = 0
    for row in rows:
        blocks = row["text"].rstrip("\n").split("\n\n")
        assert blocks[0].startswith("# ")
        names = []
        namespace = {}
        for block in blocks:
            if block.startswith("def "):
                exec(block, namespace)
                names.append(block[4 : block.index("(")])
            called = re.fullmatch(r"(\w+\(.*\)) (?:returns|gives) (.*)\.", block)
            if called:
                assert repr(eval(called[1], namespace)) == called[2]
                results += 1
        assert len(names) == len(row["signatures"].splitlines()) >= 1
    assert results > 20


def test_worked_steps_show_what_execution_gives(tmp_path):
    textbooks(tmp_path / "t", count=120, levels=(1, 2, 3, 5))
    shown = 0
    for row in corpus.read([tmp_path / "t"]):
        start = re.search(r"^We start with (.*)\.$", row["text"], flags=re.M)
        if not start:
            continue
        namespace = {}
        exec(start[1].replace(" and ", "\n") if "' and '" not in start[1] else start[1], namespace)
        for code, value in re.findall(r"^    (.*)  # (.*)$", row["text"], flags=re.M):
            if code.startswith("return "):
                result = eval(code.removeprefix("return "), namespace)
            else:
                exec(code, namespace)
                result = namespace[code.split(" = ")[0]]
            assert repr(result) == value
            shown += 1
    assert shown > 20


@pytest.mark.parametrize("split", ["dev", "test"])
def test_heldout_problems(tmp_path, split):
    report = heldout(tmp_path / "h", count=60, split=split, seed=1)
    lines = (tmp_path / "h" / "problems.jsonl").read_text().splitlines()
    problems = [json.loads(line) for line in lines]
    assert len(problems) == report["counts"]["kept"] == 60
    assert report["details"]["levels"] == {str(level): 10 for level in LEVELS}
    assert len({problem["signature"] for problem in problems}) == 60
    assert [problem["task_id"] for problem in problems] == [
        f"heldout/{split}/{place}" for place in range(60)
    ]
    for problem in problems:
        assert split_of(problem["signature"]) == split
        whole = problem["prompt"] + problem["canonical_solution"]
        assert verify.passes(whole, problem["test"], problem["entry_point"])
        assert problem["prompt"].endswith('"""\n')
        for answer in ("None", "[]", "0", "''", "numbers", "text", "counts", "first", "n"):
            code = f"{problem['prompt']}    return {answer}\n"
            assert not verify.passes(code, problem["test"], problem["entry_point"])


def test_heldout_is_deterministic_and_its_splits_are_disjoint(tmp_path):
    def signatures(name, **options):
        heldout(tmp_path / name, count=40, **options)
        lines = (tmp_path / name / "problems.jsonl").read_text().splitlines()
        return {json.loads(line)["signature"] for line in lines}

    first = signatures("a", split="test")
    assert not first & signatures("b", split="dev")
    again = heldout(tmp_path / "c", count=40, split="test")
    assert again["parts"][0]["xxh3"] == heldout(tmp_path / "a", count=40)["parts"][0]["xxh3"]


def test_asking_for_more_compositions_than_there_are(tmp_path):
    with pytest.raises(ConfigError, match="have only about"):
        heldout(tmp_path / "h", count=100_000, levels=(6,))
    assert not (tmp_path / "h" / "manifest.json").exists()


@pytest.mark.parametrize("make", [exercises, pool, textbooks])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `count` or `characters`"),
        ({"count": 3, "characters": 3}, "only one"),
        ({"count": 0}, "`count` is 0"),
        ({"characters": -1}, "must be positive"),
        ({"count": 3, "levels": (9,)}, "choose among"),
        ({"count": 3, "levels": ()}, "at least one"),
    ],
)
def test_options_that_make_no_sense(tmp_path, make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_other_options_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        pool(tmp_path / "x", count=3, useful=2)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        exercises(tmp_path / "x", count=3, examples=-0.1)
    with pytest.raises(ConfigError, match="must be positive"):
        heldout(tmp_path / "x", count=0)
    with pytest.raises(ConfigError, match="`dev` or `test`"):
        heldout(tmp_path / "x", count=3, split="train")


def test_a_source_that_runs_dry_says_so(tmp_path):
    row = {"text": "same\n"}
    config = {"count": 2, "characters": None, "seed": 0}
    with pytest.raises(ConfigError, match="only 1 different texts"):
        stage.run(
            "dry",
            tmp_path / "x",
            rows=lambda: itertools.repeat(row),
            schema={},
            config=config,
            group=lambda row: "all",
            groups="groups",
        )
    assert not (tmp_path / "x" / "manifest.json").exists()


def test_the_shipped_curriculum_names_operations_that_exist():
    plan = curriculum.load()
    assert {topic.level for topic in plan.topics} == set(LEVELS)
    for topic in plan.topics:
        for operation in topic.operations:
            made = sample(seed=0, index=0, level=topic.level, about=frozenset({operation}))
            assert operation in made.draft.operations


GOOD = """
name = "n"
language = "python"
[[audiences]]
id = "a"
reader = "someone"
openings = ["Hello."]
closings = ["Bye."]
[[chapters]]
id = "c"
title = "C"
level = 1
[[chapters.topics]]
id = "c.t"
title = "T"
operations = ["square"]
ideas = ["Idea."]
"""


def test_a_curriculum_of_ones_own(tmp_path):
    (tmp_path / "c.toml").write_text(GOOD)
    textbooks(tmp_path / "t", count=5, levels=(1,), curriculum=tmp_path / "c.toml")
    for row in corpus.read([tmp_path / "t"]):
        assert row["topic"] == "c.t"
        assert row["text"].startswith("# T\n\n")
        assert "square" in row["signatures"]
    with pytest.raises(ConfigError, match="no topic has one of the levels"):
        textbooks(tmp_path / "u", count=5, levels=(2,), curriculum=tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "n"', "", "`name` is missing"),
        ('name = "n"', 'name = ""', "must be text"),
        ("level = 1", 'level = "1"', "must be an integer"),
        ('ideas = ["Idea."]', "ideas = []", "must be a list"),
        ('ideas = ["Idea."]', "ideas = [1]", "not text"),
        ('id = "c.t"', 'id = "a"', "occurs twice"),
        ('title = "T"', 'title = "T"\ncolour = 1', "unknown key `colour`"),
    ],
)
def test_a_broken_curriculum_says_where(tmp_path, old, new, message):
    path = tmp_path / "c.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as error:
        curriculum.load(path)
    assert "c.toml" in str(error.value)


def test_a_curriculum_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        curriculum.load(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(InputError, match="not readable TOML"):
        curriculum.load(tmp_path / "bad.toml")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, hornbook.generate as g, hornbook.generate.exercises;"
        "from hornbook.generate import textbooks, pool;"
        "assert all(map(callable, (g.exercises, g.heldout, g.pool, g.textbooks)));"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
