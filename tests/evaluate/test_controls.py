"""Where controls void a batch, which votes count, and what controls are made of."""

import json
from types import SimpleNamespace

import pytest

from hornbook.evaluate import grading, load_problems, sandbox


def control(kind, grade, task="t", views=None):
    views = [grade] if views is None else views
    return {"batch": 0, "kind": kind, "task_id": task, "grade": grade, "views": views}


@pytest.mark.parametrize(
    ("kind", "good", "bad"), [("reference", 8, 7.5), ("empty", 2, 2.5), ("mutant", 5, 5.5)]
)
def test_where_a_control_voids(kind, good, bad):
    assert grading._void([control(kind, good)]) == {}
    assert list(grading._void([control(kind, bad)])) == [0]


def test_how_far_an_injection_may_move():
    base = control("mutant", 2)
    assert grading._void([base, control("injection", 3)]) == {}
    assert list(grading._void([base, control("injection", 3.5)])) == [0]


def test_right_from_6():
    found = [{"grade": 6.0, "passed": True}, {"grade": 6.0, "passed": False}]
    said = grading._agreement(found)
    assert (said["true_positive_rate"], said["true_negative_rate"]) == (1.0, 0.0)


def stored(folder, exchanges, items):
    (folder / "about.json").write_text("{}")
    for name, rows in (("exchanges.jsonl", exchanges), ("items.jsonl", items)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return grading.score(folder)


def item(number=0, kind="attempt", batch=0):
    return {
        "item": f"{batch}/{number}", "batch": batch, "kind": kind, "task_id": "t", "passed": True
    }  # fmt: skip


def said(grade, verdict="ok", vote=0, view=0, name="0/0"):
    reply = json.dumps({"evaluation": "x", "grade": grade})
    return {"item": name, "view": view, "vote": vote, "verdict": verdict, "reply": reply}


def test_what_was_cut_off_is_no_vote(tmp_path):
    report = stored(tmp_path, [said(10, "truncated"), said(4, vote=1)], [item()])
    assert report["mean"] == 4


def test_the_first_sound_vote_stays(tmp_path):
    assert stored(tmp_path, [said(3), said(9)], [item()])["mean"] == 3


def test_void_batches_are_not_counted_as_flagged(tmp_path):
    exchanges = [said(2), said(9, view=1), said(1, name="0/1")]
    report = stored(tmp_path, exchanges, [item(), item(1, "reference")])
    assert list(report["void"]) == ["0"]
    assert report["flagged"] == 0


def test_a_broken_control_fails_the_hidden_tests(monkeypatch):
    problem = next(iter(load_problems("unconventional")))
    shown = []

    def grade(problems, bodies, **options):
        shown.extend(bodies)
        return [SimpleNamespace(passed=i < len(bodies) - 1) for i in range(len(bodies))]

    monkeypatch.setattr(sandbox, "grade", grade)
    assert grading._broken(problem, 0, {}) == shown[-1]
    monkeypatch.setattr(
        sandbox, "grade", lambda p, b, **o: [SimpleNamespace(passed=True) for _ in b]
    )
    assert grading._broken(problem, 0, {}) is None


def test_controls_are_of_different_problems(monkeypatch):
    monkeypatch.setattr(grading, "_broken", lambda problem, number, unsafe: "    return None\n")
    problems = load_problems("unconventional")
    for number in range(4):
        made = grading._controls(problems, number, {})
        whole = {one["task_id"] for one in made if one["kind"] in ("reference", "empty")}
        broken = {one["task_id"] for one in made if one["kind"] == "mutant"}
        assert len(whole) == len(broken) == 2
        assert not whole & broken
