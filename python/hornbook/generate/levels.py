"""How the procedural teacher composes operations into functions, level by level.

1 pipelines over a list of numbers; 2 over text; 3 over a dictionary; 4 loops with conditions;
5 two arguments; 6 recursion. A builder draws a `Draft` (clauses of the docstring and lines of the
body) from a random generator and executes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from hornbook.generate.grammar import CONDITIONS, PAIRS, RESULTS, SMALL, STEPS, Operation


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A function before it has a name."""

    level: int
    operations: tuple[str, ...]
    """Names of its operations in order, without constants: its structure."""
    words: tuple[str, ...]
    """Words for its name, in the order of the operations."""
    parameters: tuple[tuple[str, str], ...]
    """Name and kind of each parameter; `inputs` knows the kinds."""
    clauses: tuple[str, ...]
    """What it does, one imperative clause at a time."""
    body: tuple[str, ...]
    """Lines without the function's indent; `{name}` is the function itself."""
    stepwise: bool
    """Line i of the body does what clause i says."""


_PARAMETERS = {"numbers": "numbers", "text": "text", "words": "words", "counts": "counts"}


def _by_kind(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    kinds: dict[str, list[Operation]] = {}
    for operation in operations:
        kinds.setdefault(operation.takes, []).append(operation)
    return kinds


_STEPS, _RESULTS, _PAIRS = _by_kind(STEPS), _by_kind(RESULTS), _by_kind(PAIRS)


def _chain(
    rng: Random, kind: str, count: int, before: str = ""
) -> tuple[list[Operation], list[str], list[str]]:
    """`count` steps from `kind` on and a result: operations, clauses, lines."""
    chosen: list[Operation] = []
    clauses: list[str] = []
    lines: list[str] = []
    for _ in range(count):
        options = [step for step in _STEPS[kind] if step.name != before]
        step = rng.choice(options)
        phrase, code = step.draw(rng, _PARAMETERS[kind])
        kind, before = step.gives, step.name
        chosen.append(step)
        clauses.append(phrase)
        lines.append(f"{_PARAMETERS[kind]} = {code}")
    result = rng.choice(_RESULTS[kind])
    phrase, code = result.draw(rng, _PARAMETERS[kind])
    return [*chosen, result], [*clauses, f"return {phrase}"], [*lines, f"return {code}"]


def _pipeline(level: int, kind: str) -> Callable[[Random], Draft]:
    def build(rng: Random) -> Draft:
        chosen, clauses, lines = _chain(rng, kind, rng.choice((1, 2, 2, 3)))
        return Draft(
            level=level,
            operations=tuple(operation.name for operation in chosen),
            words=tuple(operation.word for operation in chosen),
            parameters=((_PARAMETERS[kind], kind),),
            clauses=tuple(clauses),
            body=tuple(lines),
            stepwise=True,
        )

    return build


def _pair(rng: Random) -> Draft:
    kind = rng.choice(("lists", "limit"))
    first = rng.choice(_PAIRS[kind])
    phrase, code = first.draw(rng, "")
    chosen, clauses, lines = _chain(rng, "numbers", rng.choice((0, 1, 1, 2)))
    if kind == "lists":
        parameters = (("first", "numbers"), ("second", "numbers"))
    else:
        parameters = (("numbers", "numbers"), ("limit", "small"))
    return Draft(
        level=5,
        operations=(first.name, *(operation.name for operation in chosen)),
        words=(first.word, *(operation.word for operation in chosen)),
        parameters=parameters,
        clauses=(phrase, *clauses),
        body=(f"numbers = {code}", *lines),
        stepwise=True,
    )


# What can be made of one number: name, phrase, expression of {n}, word.
_TERMS: tuple[tuple[str, str, str, str], ...] = (
    ("itself", "it", "{n}", "sum"),
    ("square", "its square", "{n} ** 2", "square"),
    ("double", "its double", "{n} * 2", "double"),
    ("triple", "its triple", "{n} * 3", "triple"),
    ("half", "its half, rounded down", "{n} // 2", "half"),
    ("size", "its absolute value", "abs({n})", "size"),
    ("digit", "its last digit", "abs({n}) % 10", "digit"),
    ("constant", "{k}", "{k}", "count"),
    ("plus", "it plus {k}", "({n} + {k})", "raise"),
)


_SIGNS = ("positive", "negative")
"""Conditions that say nothing about a number counted from 1."""


def _condition(rng: Random, n: str, avoid: Sequence[str] = ()) -> tuple[str, str, str, str]:
    """Name, adjective, test and word of a condition on the variable `n`."""
    options = [condition for condition in CONDITIONS if condition[0] not in avoid]
    name, adjective, test, word, constants = rng.choice(options)
    k = rng.choice(constants) if constants else 0
    return name, adjective.format(k=k), test.format(n=n, k=k), word


def _term(rng: Random, n: str, avoid: str = "") -> tuple[str, str, str, str]:
    """Name, phrase, expression and word of a term made of the variable `n`."""
    options = [term for term in _TERMS if term[0] != avoid]
    name, phrase, expression, word = rng.choice(options)
    k = rng.choice(SMALL)
    return name, phrase.format(k=k), expression.format(n=n, k=k), word


def _loop(rng: Random) -> Draft:
    over, into = rng.choice(("numbers", "limit")), rng.choice(("total", "result"))
    dull = _SIGNS if over == "limit" else ()
    name, adjective, test, word = _condition(rng, "n", dull)
    then_name, then_phrase, then, then_word = _term(rng, "n")
    write = "total += {}" if into == "total" else "result.append({})"
    operations, clauses, body = [over, into], [], []
    body.append("total = 0" if into == "total" else "result = []")
    if over == "numbers":
        body.append("for n in numbers:")
        clauses.append("go through the numbers")
    else:
        body.append("for n in range(1, limit + 1):")
        clauses.append("count from 1 to the limit")
    if rng.random() < 0.4:
        stop_name, stop_adjective, stop_test, _ = _condition(rng, "n", (name, *dull))
        operations.append(f"until_{stop_name}")
        body += [f"    if {stop_test}:", "        break"]
        clauses.append(f"stop at the first number that is {stop_adjective}")
    where = "to the total" if into == "total" else "to the list"
    clause = f"if a number is {adjective}, add {then_phrase} {where}"
    body += [f"    if {test}:", "        " + write.format(then)]
    operations += [name, then_name]
    if rng.random() < 0.6:
        other_name, other_phrase, other, _ = _term(rng, "n", then_name)
        operations.append(f"else_{other_name}")
        body += ["    else:", "        " + write.format(other)]
        clause += f", otherwise add {other_phrase}"
    return Draft(
        level=4,
        operations=tuple(operations),
        words=(word, then_word, "total" if into == "total" else "list"),
        parameters=(("numbers", "numbers"),) if over == "numbers" else (("limit", "size"),),
        clauses=(*clauses, clause, f"return the {'total' if into == 'total' else 'list'}"),
        body=(*body, f"return {into}"),
        stepwise=False,
    )


def _recursion_on_list(rng: Random) -> Draft:
    join = rng.choice(("sum", "list", "max"))
    empty, wrap, verb = {
        "sum": ("0", "{} + {{name}}(rest)", "add {} to the sum of the rest"),
        "list": ("[]", "[{}] + {{name}}(rest)", "put {} before the list of the rest"),
        "max": ("0", "max({}, {{name}}(rest))", "take the larger of {} and the answer of the rest"),
    }[join]
    name, adjective, test, word = _condition(rng, "first")
    then_name, then_phrase, then, then_word = _term(rng, "first")
    operations = ["rest", join, name, then_name]
    clause = f"if the first number is {adjective}, {verb.format(then_phrase)}"
    if rng.random() < 0.5:
        other_name, other_phrase, other, _ = _term(rng, "first", then_name)
        operations.append(f"else_{other_name}")
        clause += f", otherwise use {other_phrase} instead"
        last = wrap.format(other)
    else:
        clause += ", otherwise leave it out"
        last = "{name}(rest)"
    return Draft(
        level=6,
        operations=tuple(operations),
        words=(word, then_word, join),
        parameters=(("numbers", "numbers"),),
        clauses=("use recursion", f"return {empty} for an empty list", clause),
        body=(
            "if not numbers:",
            f"    return {empty}",
            "first, rest = numbers[0], numbers[1:]",
            f"if {test}:",
            f"    return {wrap.format(then)}",
            f"return {last}",
        ),
        stepwise=False,
    )


# How a number shrinks: name, phrase, expression.
_SHRINK = (
    ("one", "the number minus 1", "n - 1"),
    ("two", "the number minus 2", "n - 2"),
    ("three", "the number minus 3", "n - 3"),
    ("halves", "half the number", "n // 2"),
    ("tenths", "the number without its last digit", "n // 10"),
)


def _recursion_on_number(rng: Random) -> Draft:
    shrink_name, shrink_phrase, shrink = rng.choice(_SHRINK)
    name, adjective, test, word = _condition(rng, "n", _SIGNS)
    then_name, then_phrase, then, then_word = _term(rng, "n")
    operations = ["shrink", shrink_name, name, then_name]
    clause = f"if the number is {adjective}, add {then_phrase} to the answer for {shrink_phrase}"
    if rng.random() < 0.6:
        other_name, other_phrase, other, _ = _term(rng, "n", then_name)
        operations.append(f"else_{other_name}")
        clause += f", otherwise add {other_phrase}"
        last = f"{other} + {{name}}({shrink})"
    else:
        clause += ", otherwise add nothing"
        last = f"{{name}}({shrink})"
    return Draft(
        level=6,
        operations=tuple(operations),
        words=(word, then_word, "steps"),
        parameters=(("n", "size"),),
        clauses=("use recursion", "return 0 once the number is not positive", clause),
        body=(
            "if n <= 0:",
            "    return 0",
            f"if {test}:",
            f"    return {then} + {{name}}({shrink})",
            f"return {last}",
        ),
        stepwise=False,
    )


def _recursion(rng: Random) -> Draft:
    return rng.choice((_recursion_on_list, _recursion_on_number))(rng)


BUILDERS: dict[int, Callable[[Random], Draft]] = {
    1: _pipeline(1, "numbers"),
    2: _pipeline(2, "text"),
    3: _pipeline(3, "counts"),
    4: _loop,
    5: _pair,
    6: _recursion,
}

_WORDS = (
    "apple", "bread", "cat", "dog", "egg", "fig", "green", "house", "ink", "jam", "kite", "lemon",
    "moon", "night", "Oak", "pear", "Queen", "river", "Sun", "tea", "under", "Violet", "wind",
)  # fmt: skip


def inputs(rng: Random, kind: str, place: int) -> object:
    """A value of a parameter's kind; the first `place`s are the edge cases (empty, one item)."""
    count = place if place < 2 else rng.randint(3, 8)
    if kind == "numbers":
        return [rng.randint(-9, 20) for _ in range(count)]
    if kind == "counts":
        return {word: rng.randint(0, 12) for word in rng.sample(_WORDS, count)}
    if kind == "text":
        return " ".join(rng.choice(_WORDS) for _ in range((count + 1) // 2))
    if kind == "small":
        return rng.randint(1, 9)
    if kind == "size":
        return place if place < 2 else rng.randint(3, 40)
    raise AssertionError(kind)
