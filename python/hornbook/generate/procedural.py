"""The built-in teacher: small Python functions with docstrings and tests, from a grammar.

A sample is decided by `(seed, index, level, split)` alone. Its *signature* is the sequence of its
operations without constants; a hash of the signature puts 5% of all compositions into the
development split and 5% into the test split, and the training sources draw from neither. So a
held-out problem asks for a composition that no training text contains. Every sample was executed:
eight calls, twice each, with outputs that neither a constant nor an argument explains.
About 4,000 samples a second on one core, 400 to 2,000 with `strict`.

    from hornbook.generate.procedural import sample; print(sample(seed=0, index=0, level=1).code)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, Literal

from hornbook.errors import ConfigError
from hornbook.generate import verify
from hornbook.generate.levels import BUILDERS, Draft, inputs

LEVELS = tuple(BUILDERS)
Split = Literal["train", "dev", "test"]
CALLS = 8
_ATTEMPTS = 2_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A function, what it is asked for, and proof that it works."""

    name: str
    """The function's name."""
    level: int
    """1 to 6."""
    signature: str
    """Its structure, e.g. `1:keep_even/square/sum`."""
    prompt: str
    """`def` line and docstring, ending in a newline."""
    solution: str
    """The body, indented, ending in a newline."""
    test: str
    """`def check(candidate)` with eight asserts."""
    calls: tuple[tuple[Any, ...], ...]
    """The arguments of the tests."""
    results: tuple[Any, ...]
    """What the function returns for them."""
    draft: Draft
    """What it was made from."""

    @property
    def code(self) -> str:
        """The whole function."""
        return self.prompt + self.solution


def signature_of(draft: Draft) -> str:
    """The structural signature: level and operations, without constants, names and wording."""
    return f"{draft.level}:{'/'.join(draft.operations)}"


def split_of(signature: str) -> Split:
    """The split that a signature belongs to: 90% train, 5% dev, 5% test."""
    bucket = int.from_bytes(blake2b(signature.encode(), digest_size=8).digest()) % 20
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


def is_held_out(signature: str) -> bool:
    """Whether no training source may hold this composition."""
    return split_of(signature) != "train"


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels, sorted and without repeats.

    Raises:
        ConfigError: If one does not exist, or none is given.
    """
    unknown = sorted(set(levels) - set(LEVELS))
    if unknown or not levels:
        raise ConfigError(
            f"levels: {list(levels)}; choose among {', '.join(map(str, LEVELS))}, at least one"
        )
    return tuple(sorted(set(levels)))


def check_share(name: str, value: float) -> None:
    """Checks an option that is a share.

    Raises:
        ConfigError: If it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}: {value}; it is a share, between 0 and 1")


def sample(
    *,
    seed: int,
    index: int,
    level: int,
    split: Split = "train",
    about: frozenset[str] = frozenset(),
    examples: float = 0.0,
    strict: bool = False,
) -> Sample:
    """The `index`-th function of a seed.

    Args:
        seed: Any integer.
        index: Any integer; another index gives another function, now and then the same one.
        level: 1 to 6.
        split: Which part of the signatures to draw from.
        about: Operations of which the function must use at least one; any if empty.
        examples: Probability of a doctest example in the docstring.
        strict: Also refuse functions with a step or a condition that the tests do not notice.

    Raises:
        ConfigError: If the level does not exist.
    """
    check_levels([level])
    for attempt in range(_ATTEMPTS):
        rng = Random(f"{seed}/{index}/{level}/{split}/{attempt}")
        draft = BUILDERS[level](rng)
        if about and about.isdisjoint(draft.operations):
            continue
        if split_of(signature_of(draft)) == split:
            made = _finish(rng, draft, examples, strict)
            if made is not None:
                return made
    raise ConfigError(f"level {level}: no function for the split `{split}` found at index {index}")


def _finish(rng: Random, draft: Draft, examples: float, strict: bool) -> Sample | None:
    name = _name(rng, draft)
    body = "".join("    " + line.replace("{name}", name) + "\n" for line in draft.body)
    head = f"def {name}({', '.join(parameter for parameter, _ in draft.parameters)}):\n"
    calls = tuple(
        tuple(inputs(rng, kind, place) for _, kind in draft.parameters) for place in range(CALLS)
    )
    results = verify.outputs(head + body, name, calls)
    if results is None or verify.trivial(calls, results):
        return None
    if strict and verify.unnoticed(head + body, name, calls, results):
        return None
    text = sentence(rng, draft.clauses)
    example = ""
    if rng.random() < examples:
        place = rng.randrange(2, CALLS)
        arguments = ", ".join(map(repr, calls[place]))
        example = f"\n\n    >>> {name}({arguments})\n    {results[place]!r}\n    "
        if results[place] is None:
            example = example.replace("    None\n", "")
    return Sample(
        name=name,
        level=draft.level,
        signature=signature_of(draft),
        prompt=f'{head}    """{text}{example}"""\n',
        solution=body,
        test=verify.check_source(calls, results),
        calls=calls,
        results=tuple(results),
        draft=draft,
    )


def _name(rng: Random, draft: Draft) -> str:
    """A name from one or two of the operations' words, in their order."""
    count = min(len(draft.words), rng.choice((1, 2, 2)))
    places = sorted(rng.sample(range(len(draft.words)), count))
    name = "_".join(draft.words[place] for place in places)
    taken = {parameter for parameter, _ in draft.parameters}
    return f"get_{name}" if count == 1 or name in taken else name


def sentence(rng: Random, clauses: Sequence[str]) -> str:
    """Clauses as one sentence each, or as one sentence (a third of the time)."""
    if rng.randrange(3):
        return " ".join(capital(clause) + "." for clause in clauses)
    return capital(", then ".join(clauses)) + "."


def capital(clause: str) -> str:
    """A clause with a capital letter."""
    return clause[0].upper() + clause[1:]
