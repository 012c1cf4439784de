"""Slots: from (curriculum, seed, index) to a prompt, and from a cell number to what it asks for.

A slot's prompt follows from the curriculum, the seed, its index and, where generation is steered,
its entry in the plan (a cell, and what is "not these"), which the ledger and the row both keep. The
same values give the same bytes on any machine, offline.

    slot_request(Spec(kind="exercises"), 7, 0, {"max_tokens": 900}).messages
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from hornbook.errors import ConfigError
from hornbook.files import hash_json
from hornbook.generate import prompts
from hornbook.generate.answers import TESTS
from hornbook.generate.client import Request
from hornbook.generate.curriculum import Concept, Curriculum, Difficulty, Form, Names, load

Kind = Literal["textbooks", "exercises"]

ANY_CONCEPT = Concept(id="any", say="whatever means fit best")
ANY_DIFFICULTY = Difficulty(id="any", say="one that suits the reader")


@cache
def _default() -> Curriculum:
    return load("python")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What decides every prompt of a run."""

    kind: Kind
    curriculum: Curriculum = field(default_factory=_default)
    inject: int = 3
    """Textbooks: how many words are injected."""

    def __post_init__(self) -> None:
        if self.kind not in ("textbooks", "exercises"):
            raise ConfigError(f"kind must be textbooks or exercises, not `{self.kind}`")
        about = self.curriculum
        if self.form is None and about.language != "python":
            raise ConfigError(
                f"curriculum `{about.name}`: its language is {about.language}, so it needs "
                f"[format.{self.kind}]; only Python's is built in"
            )
        if not 0 <= self.inject <= len(about.words) and self.kind == "textbooks":
            raise ConfigError(f"inject must be between 0 and {len(about.words)}, not {self.inject}")
        if self.kind == "exercises":
            if about.names is None:
                raise ConfigError(f"curriculum `{about.name}`: exercises need [names]")
            if self.form is None and not about.libraries:
                raise ConfigError(f"curriculum `{about.name}`: exercises need `libraries`")

    @property
    def form(self) -> Form | None:
        """How this kind is asked for, if it is not Python's built-in way."""
        return self.curriculum.forms.get(self.kind)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The third axis."""
        return self.curriculum.concepts or (ANY_CONCEPT,)

    @property
    def difficulties(self) -> tuple[Difficulty, ...]:
        """The fourth axis."""
        return self.curriculum.difficulties or (ANY_DIFFICULTY,)

    @property
    def axes(self) -> tuple[int, int, int]:
        """Sizes of the axes inside a topic: audiences, concepts, difficulties."""
        return len(self.curriculum.audiences), len(self.concepts), len(self.difficulties)

    @property
    def neighbours(self) -> int:
        """Cells of a topic."""
        return math.prod(self.axes)

    @property
    def cells(self) -> int:
        """Topics x audiences x concepts x difficulties."""
        return len(self.curriculum.topics) * self.neighbours

    @cached_property
    def template(self) -> prompts.Prompt:
        """The template the prompts are made from."""
        if self.form is None:
            return prompts.TEXTBOOK if self.kind == "textbooks" else prompts.EXERCISE
        name = f"{self.curriculum.name}-{self.kind}"[:20]
        return prompts.Prompt(name=name, version=1, system=self.form.system, user=self.form.user)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits for the spec and its template."""
        return hash_json([asdict(self), self.template.id])[:16]

    def cell(self, number: int) -> dict[str, str]:
        """What a cell asks for, by id."""
        rest, difficulty = divmod(number, len(self.difficulties))
        rest, concept = divmod(rest, len(self.concepts))
        topic, audience = divmod(rest, len(self.curriculum.audiences))
        return {
            "topic": self.curriculum.topics[topic].id,
            "audience": self.curriculum.audiences[audience].id,
            "concept": self.concepts[concept].id,
            "difficulty": self.difficulties[difficulty].id,
        }

    def says(self, number: int) -> dict[str, str]:
        """What a cell asks for, in words."""
        rest, difficulty = divmod(number, len(self.difficulties))
        rest, concept = divmod(rest, len(self.concepts))
        topic, audience = divmod(rest, len(self.curriculum.audiences))
        about = self.curriculum.topics[topic]
        return {
            "topic": f"{about.title} (a part of: {about.chapter})",
            "audience": self.curriculum.audiences[audience].reader,
            "concept": self.concepts[concept].say,
            "difficulty": self.difficulties[difficulty].say,
        }

    def shows(self, number: int, code: str, lines: int) -> bool:
        """Whether code shows a cell's concept and (for exercises) has its difficulty's length."""
        rest, difficulty = divmod(number, len(self.difficulties))
        concept = self.concepts[rest % len(self.concepts)]
        least, most = self.difficulties[difficulty].lines
        fits = self.kind == "textbooks" or least <= lines <= most
        return fits and (not concept.shows or re.search(concept.shows, code, re.M) is not None)


def dealt(spec: Spec, index: int, seed: int) -> int:
    """The cell of a slot without steering: in rounds, in an order that the seed decides."""
    round_, place = divmod(index, spec.cells)
    step = _coprime(prompts.digest(spec.kind, seed, round_, "step"), spec.cells)
    return (place * step + prompts.digest(spec.kind, seed, round_, "start")) % spec.cells


def slot_request(
    spec: Spec,
    index: int,
    seed: int,
    params: Mapping[str, Any],
    *,
    cell: int | None = None,
    avoid: Sequence[str] = (),
) -> Request:
    """The request of one slot.

    Args:
        spec: What is asked for.
        index: Which slot.
        seed: Decides cell (if none is given), words and name.
        params: Sampling parameters; None takes one away.
        cell: The plan's cell; dealt in rounds if None.
        avoid: Lines on what there is already, for "not these".
    """
    cell = dealt(spec, index, seed) if cell is None else cell
    values = spec.says(cell)
    avoided = "\n".join(prompts.clean(line) for line in avoid)
    provenance: dict[str, Any] = {
        "kind": spec.kind,
        **spec.cell(cell),
        "cell": cell,
        "avoided": avoided,
        "prompt_id": spec.template.id,
        "slot": f"{spec.hash}/{seed}/{index}",
        "index": index,
        "seed": seed,
    }
    about = spec.curriculum
    if spec.kind == "textbooks":
        order = sorted(about.words, key=lambda word: prompts.digest(spec.kind, seed, index, word))
        values["words"] = provenance["words"] = ", ".join(order[: spec.inject])
    else:
        assert about.names is not None
        name = function_name(about.names, index, seed)
        values |= {"name": name, "libraries": ", ".join(about.libraries), "tests": str(TESTS)}
        provenance["entry_point"] = name
    messages = spec.template.fill(**values)
    if avoided:
        listed = "\n".join(f"- {line}" for line in avoided.split("\n"))
        messages[-1]["content"] += f"\n\n{prompts.NOT_THESE}\n{listed}"
    return Request(
        slot=f"{seed}/{index}",
        messages=messages,
        params={name: value for name, value in params.items() if value is not None},
        prompt_id=spec.template.id,
        provenance=provenance,
    )


def function_name(names: Names, index: int, seed: int) -> str:
    """The name an exercise's function must have.

    As many indices of a seed get distinct names as the pattern has combinations.
    """
    size = math.prod(len(words) for words in names.words.values())
    step = _coprime(prompts.digest("name", seed, "step"), size)
    place = (index * step + prompts.digest("name", seed, "start")) % size
    parts = {}
    for part, words in names.words.items():
        place, word = divmod(place, len(words))
        parts[part] = words[word]
    return names.pattern.format(**parts)


def _coprime(value: int, size: int) -> int:
    """A number below `size` that shares no factor with it, so that its multiples visit all."""
    step = value % size or 1
    while math.gcd(step, size) != 1:
        step = step % size + 1
    return step
