import ast
import gzip
import hashlib
import inspect
import json
import os
import re
import textwrap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate import load_problems
from hornbook.evaluate.extract import cut_at_stop, fenced, truncate

needs_data = pytest.mark.skipif(
    "HORNBOOK_DATA" not in os.environ, reason="HORNBOOK_DATA is not set"
)

PROMPT = 'def f(x):\n    """Doubles."""\n'


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 2 * x\n", "    return 2 * x\n"),
        ("    return 2 * x", "    return 2 * x"),
        ("    return 2 * x\n\n\ndef g():\n    pass\n", "    return 2 * x\n\n\n"),
        ("    return 2 * x\nprint(f(1))\n", "    return 2 * x\n"),
        ("    return 2 * x\n```\nThis is it", "    return 2 * x\n"),
        ("    return 2 * x\nSo we say: 'done\n", "    return 2 * x\n"),
        (
            "    # why\n# at the margin\n    return 2 * x\nx = 1",
            "    # why\n# at the margin\n    return 2 * x\n",
        ),
        (
            "    y = '''\ndef g\n'''\n    return 2 * x\nx",
            "    y = '''\ndef g\n'''\n    return 2 * x\n",
        ),
        ("    y = (\n1,\n2)\n    return 2 * x\nx", "    y = (\n1,\n2)\n    return 2 * x\n"),
        ("    y = 1 + \\\n2\n    return y\nx", "    y = 1 + \\\n2\n    return y\n"),
        (
            "    return g(x)\ndef g(x):\n    return 2 * x\nf(1)",
            "    return g(x)\ndef g(x):\n    return 2 * x\n",
        ),
        ("    return 2 * x\ndef f(x):\n    return 3\n", "    return 2 * x\n"),
        # written out again
        ("\ndef f(x):\n    return 2 * x\nf(1)", "\ndef f(x):\n    return 2 * x\n"),
        (
            "import math\ndef f(x):\n    return 2 * x\nf(1)",
            "import math\ndef f(x):\n    return 2 * x\n",
        ),
        ("print(1)\n", ""),
        ("", ""),
        ("    return '\n", "    return '\n"),
        ("    return 2 * x\r\nprint(1)", "    return 2 * x\r\n"),
    ],
)
def test_where_an_answer_ends(completion, kept):
    assert truncate(PROMPT, completion, "f") == kept


def test_an_answer_that_brings_its_function():
    code = "import math\n\ndef helper():\n    return 1\n\nasync def f(x):\n    return 2\n"
    assert truncate('"""Task."""\n', code + "\nassert f(1)\n", "f") == code + "\n"
    assert truncate('"""Task."""\n', "no code at all\n", "f") == "no code at all\n"


def test_the_cut_is_where_the_syntax_tree_has_it():
    """On the standard library's functions: strings, brackets and continued lines in all shapes."""
    tried = 0
    for module in (inspect, textwrap, ast, gzip):
        source = inspect.getsource(module)
        nodes, lines = ast.parse(source).body, source.splitlines(keepends=True)
        for node, after in pairwise(nodes):
            if not isinstance(node, ast.FunctionDef):
                continue
            own = "".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(after, ast.FunctionDef) and re.search(rf"\b{after.name}\b", own):
                continue  # a helper follows, and stays
            kept = truncate("", "".join(lines[node.lineno - 1 : node.end_lineno + 40]), node.name)
            assert ast.dump(ast.parse(kept)) == ast.dump(ast.parse(own))
            tried += 1
    assert tried > 50


@given(st.text("ab\n \t#'\"()[]{}\\:=defrtun", max_size=200))
def test_the_cut_is_a_prefix_of_anything(text):
    for preamble in ("", PROMPT):
        assert text.startswith(truncate(preamble, text, "f"))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 2_000_000,
        '"' * 2_000_000,
        "'''" + "\\" * 2_000_000,
        "\n" * 1_000_000,
        "a\n" * 500_000,
        "    x\n" * 300_000,
        "def f(x):\n" * 300_000,
        "\0\ud800" * 300_000,
        "'" + "a" * 1_000_000 + "\n" + '"""' * 100_000,
    ],
    ids=range(9),
)
@pytest.mark.timeout(30)
def test_hostile_text_takes_linear_time(text):
    assert text.startswith(truncate(PROMPT, text, "f"))


def test_stop_strings():
    assert cut_at_stop("a\nprint(1)\ndef", ("\ndef", "\nprint")) == "a"
    assert cut_at_stop("abc", ()) == "abc"
    assert cut_at_stop("abc", ("d",)) == "abc"


ROW = {"task_id": "a/0", "prompt": PROMPT, "test": "def check(f): pass", "entry_point": "f"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_in_humanevals_form(tmp_path):
    rows = [{**ROW, "level": 2}, {**ROW, "task_id": "a/1", "group": "g", "canonical_solution": "s"}]
    path = write(tmp_path / "own.jsonl", *rows)
    problems = load_problems(path)
    assert [problem.task_id for problem in problems] == ["a/0", "a/1"]
    assert [problem.group for problem in problems] == ["2", "g"]
    assert problems[1].canonical_solution == "s"
    assert problems[0].program("    pass") == PROMPT + "    pass\ndef check(f): pass\ncheck(f)\n"
    assert problems.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert load_problems(packed).problems == problems.problems


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "prompt": None}], "line 1: `prompt`"),
        ([ROW, {**ROW, "entry_point": "f(); import os"}], "line 2: `entry_point`"),
        ([ROW, ROW], "line 2: task_id `a/0` is there twice"),
        ([[]], "line 1: expected a JSON object"),
        ([], "holds no problems"),
    ],
)
def test_rows_that_are_no_problems(tmp_path, rows, message):
    with pytest.raises(InputError, match="own.jsonl.*" + message.replace("(", r"\(")):
        load_problems(write(tmp_path / "own.jsonl", *rows))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No such file"):
        load_problems(tmp_path / "none.jsonl")
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(InputError, match="gzip"):
        load_problems(torn)
    with pytest.raises(ConfigError, match="no benchmark or file `humanevil`"):
        load_problems("humanevil")
    monkeypatch.delenv("HORNBOOK_DATA", raising=False)
    with pytest.raises(ConfigError, match="HORNBOOK_DATA"):
        load_problems("humaneval")
    monkeypatch.setenv("HORNBOOK_DATA", str(tmp_path))
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    with pytest.raises(InputError, match="sha256"):
        load_problems("humaneval")


@needs_data
def test_the_benchmarks_are_whole():
    assert len(load_problems("humaneval")) == 164
    assert len(load_problems("mbpp")) == 500
    assert len(load_problems("mbpp", split="all")) == 974
    assert len(load_problems("mbpp-sanitized")) == 257
    assert len(load_problems("mbpp-sanitized", split="all", protocol="3-shot")) == 427
    with pytest.raises(ConfigError, match="protocol"):
        load_problems("mbpp", protocol="5-shot")
    with pytest.raises(ConfigError, match="split"):
        load_problems("mbpp", split="train")
    with pytest.raises(ConfigError, match="protocol"):
        load_problems("humaneval", protocol="3-shot")


@needs_data
def test_mbpps_protocols():
    zero = load_problems("mbpp")[0]
    assert zero.prompt.startswith('"""\nWrite a python function to remove first and last')
    assert zero.prompt.endswith('assert remove_Occ("hello","l") == "heo"\n"""\n')
    shots = load_problems("mbpp", protocol="3-shot")
    assert shots[0].prompt.count("[BEGIN]") == 4
    assert shots[0].prompt.count("[DONE]") == 3
    assert shots[0].prompt.endswith('== "H"\n[BEGIN]\n')
    assert shots[0].entry_point == zero.entry_point == "remove_Occ"
    assert shots.stop == ("[DONE]",)
    assert "\r" not in "".join(problem.prompt + problem.test for problem in shots)


@needs_data
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("humaneval", {}),
        ("mbpp", {"split": "all"}),
        ("mbpp", {"split": "all", "protocol": "3-shot"}),
        ("mbpp-sanitized", {"split": "all"}),
    ],
)
def test_stop_strings_and_cuts_leave_every_reference_whole(name, options):
    problems = load_problems(name, **options)
    for problem in problems:
        solution = problem.canonical_solution
        for tail in ("", "\n[DONE]\n", "\nassert 1\n", "\nprint(2)\n", '\n"""\nNext.\n"""\ndef x'):
            text = problem.truncated(cut_at_stop(solution + tail, problems.stop))
            assert text.rstrip() == solution.rstrip(), problem.task_id


@needs_data
def test_mbpps_three_protocols_by_name():
    docstring, shots, sanitized = (
        load_problems("mbpp", protocol=name) for name in ("docstring", "3-shot", "sanitized")
    )
    assert (len(docstring), len(shots), len(sanitized)) == (500, 500, 257)
    assert (docstring.name, shots.name, sanitized.name) == ("mbpp", "mbpp", "mbpp-sanitized")
    assert shots[0].prompt.count("[BEGIN]") == 4
    assert shots[0].prompt.count("[DONE]") == 3
    assert docstring[0].prompt.startswith('"""')
    assert [p.prompt for p in sanitized] == [p.prompt for p in load_problems("mbpp-sanitized")]
    assert len(load_problems("mbpp", protocol="sanitized", split="all")) == 427
    with pytest.raises(ConfigError, match="protocol"):
        load_problems("mbpp", protocol="5-shot")
    with pytest.raises(ConfigError, match="one protocol"):
        load_problems("humaneval", protocol="3-shot")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1\n"),
        ("```\nx = 1\n```\n~~~py\ndef f():\n    pass\n~~~", "def f():\n    pass\n"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1\n"),
        ("    return 1\n", "    return 1\n"),
        ("Use ```x``` here\n", "Use ```x``` here\n"),
        ("", ""),
    ],
)
def test_the_fenced_block_with_the_function(text, code):
    assert fenced(text, "f") == code


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text", ["`" * 2_000_000, "```\n" * 400_000, "~~~" * 700_000, "\n" * 10**6]
)
def test_fences_take_linear_time(text):
    assert isinstance(fenced(text, "f"), str)
