"""Slots: the same prompts everywhere, every cell in its turn, nothing read as a template."""

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hornbook.errors import ConfigError
from hornbook.generate.client import Request
from hornbook.generate.curriculum import Audience, Curriculum, Topic, load
from hornbook.generate.prompts import NOT_THESE
from hornbook.generate.slots import Kind, Spec, function_name, slot_request

PARAMS = {"temperature": 1.0, "max_tokens": 100}


def small(topics: int, audiences: int, **changes: Any) -> Curriculum:
    return replace(
        load("python"),
        topics=tuple(Topic(id=f"c.t{i}", title=f"topic {i}", chapter="C") for i in range(topics)),
        audiences=tuple(Audience(id=f"a{i}", reader=f"reader {i}") for i in range(audiences)),
        **{"concepts": (), "difficulties": (), **changes},
    )


def requests(kind: Kind, count: int, seed: int, **options: Any) -> list[Request]:
    spec = Spec(kind=kind, **options)
    return [slot_request(spec, index, seed, PARAMS) for index in range(count)]


def told(made: list[Request]) -> str:
    return json.dumps([[r.messages, r.slot, dict(r.provenance), r.key("m")] for r in made])


def test_prompts_are_the_same_bytes_in_another_process() -> None:
    script = """
        import json
        from hornbook.generate.slots import Spec, slot_request
        made = [slot_request(Spec(kind=kind), index, 5, {"temperature": 1.0, "max_tokens": 100})
                for kind in ("textbooks", "exercises") for index in range(13)]
        print(json.dumps([[r.messages, r.slot, dict(r.provenance), r.key("m")] for r in made]))
    """
    here = told(requests("textbooks", 13, 5) + requests("exercises", 13, 5))
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_prompts_never_change_unnoticed() -> None:
    """What was paid for is found again only while these stay as they are."""
    made = [requests(kind, 1, 0, curriculum=small(1, 1))[0] for kind in ("textbooks", "exercises")]
    assert [r.key("m") for r in made] == [
        "031f3806228782612cf8dd188d890292",
        "fb7634a2521c0389370d216d45372c8b",
    ]


@pytest.mark.parametrize("kind", ["textbooks", "exercises"])
def test_every_cell_comes_up_once_a_round(kind: Kind) -> None:
    spec = Spec(kind=kind, curriculum=small(3, 2))
    made = [slot_request(spec, index, 7, PARAMS) for index in range(18)]
    cells = [(r.provenance["topic"], r.provenance["audience"]) for r in made]
    for round_ in range(3):
        assert len(set(cells[6 * round_ : 6 * round_ + 6])) == 6
    assert len({r.key("m") for r in made}) == 18
    for request, (topic, audience) in zip(made, cells, strict=True):
        text = request.messages[-1]["content"]
        assert f"Topic: topic {topic[-1]} (a part of: C)\n" in text
        assert f": reader {audience[-1]}\n" in text
        assert "$" not in text


@given(st.integers(0, 2**63 - 1), st.integers(1, 12), st.integers(1, 9))
def test_rounds_are_permutations_for_any_seed(seed: int, topics: int, audiences: int) -> None:
    spec = Spec(kind="textbooks", curriculum=small(topics, audiences), inject=0)
    rows = [slot_request(spec, i, seed, PARAMS).provenance for i in range(spec.cells)]
    assert len({(row["topic"], row["audience"]) for row in rows}) == spec.cells


def test_a_cell_asks_for_what_its_number_says() -> None:
    spec = Spec(kind="exercises")
    assert spec.cells == 452 * 12 * 8 * 3
    seen = {tuple(spec.cell(number).values()) for number in range(0, spec.cells, 7)}
    assert len(seen) == len(range(0, spec.cells, 7))
    request = slot_request(spec, 0, 0, PARAMS, cell=spec.cells - 1)
    text = request.messages[-1]["content"]
    assert all(said in text for said in spec.says(spec.cells - 1).values())
    assert request.provenance["difficulty"] == "hard"


def test_what_is_there_already_is_named_in_the_prompt() -> None:
    spec = Spec(kind="exercises")
    plain = slot_request(spec, 3, 0, PARAMS, cell=9)
    steered = slot_request(spec, 3, 0, PARAMS, cell=9, avoid=["sum_items: adds", "f: $name"])
    assert steered.messages[-1]["content"] == (
        plain.messages[-1]["content"] + f"\n\n{NOT_THESE}\n- sum_items: adds\n- f: $name"
    )
    assert steered.provenance["avoided"] == "sum_items: adds\nf: $name"
    assert steered.key("m") != plain.key("m")


def test_concepts_and_difficulties_are_seen_in_code() -> None:
    spec = Spec(kind="exercises")
    cells = {(c["concept"], c["difficulty"]): n for n in range(24) for c in [spec.cell(n)]}
    loop = "def f(x):\n    total = 0\n    for item in x:\n        total += item\n    return total\n"
    assert spec.shows(cells["loop", "easy"], loop, 4)
    assert not spec.shows(cells["loop", "hard"], loop, 4)
    assert not spec.shows(cells["recursion", "easy"], loop, 4)
    again = "def f(x):\n    return x[0] + f(x[1:]) if x else 0\n"
    assert spec.shows(cells["recursion", "easy"], again, 1)
    assert not spec.shows(cells["loop", "easy"], again, 1)
    for concept, code in {
        "comprehension": "def f(x):\n    return [y * 2 for y in x]\n",
        "dictionary": "def f(x):\n    seen = {}\n    return seen\n",
        "branches": "def f(x):\n    if x:\n        return 1\n    return 2\n",
        "strings": "def f(x):\n    return ', '.join(x)\n",
        "sorting": "def f(x):\n    return sorted(x)\n",
        "index": "def f(x):\n    return x[1:]\n",
    }.items():
        shown = [c for (c, d), n in cells.items() if d == "easy" and spec.shows(n, code, 2)]
        assert concept in shown, concept
        assert "recursion" not in shown


def test_injected_words_are_recorded_and_vary() -> None:
    made = requests("textbooks", 60, 3)
    words = [r.provenance["words"].split(", ") for r in made]
    assert all(len(set(chosen)) == 3 for chosen in words)
    assert len({tuple(chosen) for chosen in words}) == 60
    assert f"natural way: {', '.join(words[0])}." in made[0].messages[-1]["content"]


def test_function_names_are_distinct_identifiers() -> None:
    about = load("python").names
    assert about is not None
    names = [function_name(about, index, 11) for index in range(20_000)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    verbs = Counter(name.split("_")[0] for name in names[:1000])
    assert len(verbs) == len(about.words["verb"])


def test_a_value_is_never_read_as_a_template() -> None:
    about = small(1, 1)
    odd = Topic(id="c.odd", title="$audience ${topic} $$", chapter="C")
    (request,) = requests("textbooks", 1, 0, curriculum=replace(about, topics=(odd,)))
    assert "Topic: $audience ${topic} $$ (a part of: C)\n" in request.messages[-1]["content"]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "poems"},
        {"kind": "textbooks", "inject": 10**6},
        {"kind": "exercises", "curriculum": load()},
        {"kind": "exercises", "curriculum": small(1, 1, libraries=())},
        {"kind": "textbooks", "curriculum": small(1, 1, language="rust")},
    ],
)
def test_specs_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Spec(**options)


@pytest.mark.parametrize(("name", "topics"), [("python", 300), ("sql", 100)])
def test_shipped_curricula(name: str, topics: int) -> None:
    about = load(name)
    assert len(about.topics) >= topics
    assert len(about.audiences) == 12
    assert len(about.concepts) >= 4
    assert len(about.difficulties) == 3
    assert all(concept.shows for concept in about.concepts)
    for kind in ("textbooks", "exercises"):
        spec = Spec(kind=kind, curriculum=about)
        text = slot_request(spec, 5, 1, PARAMS).messages[-1]["content"]
        said = spec.says(slot_request(spec, 5, 1, PARAMS).provenance["cell"])
        assert all(words in text for words in said.values())
        assert "$" not in text
