"""How a textbook section reads: prose around worked, executed steps and whole functions.

A section is a heading, sentences on the topic for the audience, a worked example whose values come
from execution, and whole documented functions: at a small scale those are what teaches a model to
follow a docstring.
"""

from random import Random

from hornbook.generate import verify
from hornbook.generate.curriculum import Audience, Topic
from hornbook.generate.procedural import Sample, capital


def section(rng: Random, topic: Topic, audience: Audience, samples: list[Sample]) -> str:
    """The text of a section around at least one sample."""
    opening = [rng.choice(topic.ideas)]
    if rng.random() < 0.5:
        opening.insert(rng.randrange(2), rng.choice(audience.openings))
    blocks = [f"# {topic.title}", " ".join(opening)]
    worked = samples[0]
    if worked.draft.stepwise:
        blocks += _steps(rng, worked)
    for made in samples:
        blocks.append(made.code.rstrip("\n"))
        if rng.random() < 0.3:
            blocks.append(_call(rng, made))
    if rng.random() < 0.3:
        blocks.append(rng.choice(audience.closings))
    return "\n\n".join(blocks) + "\n"


def _steps(rng: Random, made: Sample) -> list[str]:
    """Each step of a pipeline and the line that does it; now and then with the values."""
    parameters = [parameter for parameter, _ in made.draft.parameters]
    arguments = made.calls[_short_call(made)]
    values = verify.trace(made.draft.body, parameters, arguments)
    shown = rng.random() < 0.3
    blocks = []
    if shown:
        given = " and ".join(
            f"{parameter} = {value!r}"
            for parameter, value in zip(parameters, arguments, strict=True)
        )
        blocks.append(f"We start with {given}.")
    for clause, line, value in zip(made.draft.clauses, made.draft.body, values, strict=True):
        say = f"To {clause}, write:" if rng.random() < 0.3 else f"{capital(clause)}."
        result = f"  # {value!r}" if shown else ""
        blocks.append(f"{say}\n\n    {line}{result}")
    return blocks


def _short_call(made: Sample) -> int:
    return min(range(2, len(made.calls)), key=lambda place: len(repr(made.calls[place])))


def _call(rng: Random, made: Sample) -> str:
    shortest = _short_call(made)
    arguments = ", ".join(map(repr, made.calls[shortest]))
    say = rng.choice(("{} returns {}.", "{} gives {}."))
    return say.format(f"{made.name}({arguments})", repr(made.results[shortest]))
