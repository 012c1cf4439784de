"""Every option of a decontamination makes another result."""

import json

import pytest

from hornbook.decontaminate import decontaminate

PROBLEM = {
    "task_id": "x/1",
    "prompt": 'def g(a):\n    """Finds the sum of every second number in a list of numbers."""\n',
    "canonical_solution": (
        "    total = 0\n    for b in a[::2]:\n        total += b\n    return total\n"
    ),
    "entry_point": "g",
    "test": "",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "def f(x):\n    return x\n"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [
        {"ngram": 12},
        {"fields": ["docstring"]},
        {"short": False},
        {"trivial": True},
        {"ignore": ["finds the sum of every second number in a list of numbers"]},
        {"ast_threshold": 0.8},
        {"unit": "char"},
        {"strip": ["names"]},
        {"min_nodes": 5},
        {"embedder": None, "combine": "or"},
        {"embedding_threshold": 0.3},
        {"combine": "and"},
        {"sweep": [0.5]},
        {"nearest": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_option_is_another_result(files, changed):
    base = {"benchmarks": [files / "problems.jsonl"], "ast_threshold": 0.9, "embedder": "hash"}
    decontaminate(files / "in.jsonl", files / "out", **base)
    assert decontaminate(files / "in.jsonl", files / "out", **base).reused
    assert not decontaminate(files / "in.jsonl", files / "out", **{**base, **changed}).reused


def test_another_benchmark_is_another_result(files):
    options = {"benchmarks": [files / "problems.jsonl"]}
    decontaminate(files / "in.jsonl", files / "out", **options)
    other = {**PROBLEM, "prompt": PROBLEM["prompt"].replace("sum", "product")}
    (files / "problems.jsonl").write_text(json.dumps(other) + "\n")
    assert not decontaminate(files / "in.jsonl", files / "out", **options).reused
