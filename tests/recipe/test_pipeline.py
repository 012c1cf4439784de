"""Which steps may start together, and that none outlives its run."""

from types import SimpleNamespace

import pytest

from hornbook import pipeline
from hornbook.pipeline import _startable


def step(name, *needs, alone=False):
    return SimpleNamespace(name=name, needs=needs, alone=alone)


def test_what_may_start():
    a, b, c, d = step("a"), step("b", alone=True), step("c", "a"), step("d")
    pending = {s.name: s for s in (a, b, c, d)}
    assert _startable(pending, {}, set(), 2) == [a, d]
    assert _startable(pending, {}, set(), 1) == [a]
    # One that wants the machine to itself waits for the others, and they for it.
    rest = {"b": b, "c": c}
    assert _startable({"b": b}, {"a": (None, a)}, set(), 4) == []
    assert _startable({"b": b}, {}, {"a"}, 4) == [b]
    assert _startable(rest, {"d": (None, step("d", alone=True))}, set(), 4) == []


def test_a_step_ends_with_its_run(monkeypatch):
    started: list[bool] = []
    monkeypatch.setattr(pipeline.signal, "signal", lambda *_: None)
    monkeypatch.setattr(pipeline, "_end_with_parent", lambda: started.append(True))
    monkeypatch.setattr(pipeline, "from_dict", lambda table: None)
    one = SimpleNamespace(name="x", work=lambda recipe, root: SimpleNamespace(reused=False))
    monkeypatch.setattr(pipeline, "plan", lambda recipe: [one])
    monkeypatch.setattr(pipeline, "_peak_mb", lambda: 0.0)
    pipeline._child({}, "/nowhere", "x", SimpleNamespace(put=lambda m: None))
    assert started == [True]


class Stuck:
    """A child that ends only when it is killed."""

    def __init__(self):
        self.said = []

    def terminate(self):
        self.said.append("terminate")

    def join(self, timeout=None):
        if timeout is not None:
            raise KeyboardInterrupt

    def is_alive(self):
        return "kill" not in self.said

    def kill(self):
        self.said.append("kill")


def test_a_second_interrupt_ends_steps_at_once():
    children = [Stuck(), Stuck()]
    with pytest.raises(KeyboardInterrupt):
        pipeline._end({str(i): (child, None) for i, child in enumerate(children)})
    assert [child.said for child in children] == [["terminate", "kill"]] * 2
