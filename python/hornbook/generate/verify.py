"""Runs the procedural teacher's own functions: outputs, tests, doctests, trivial answers.

The teacher's code is ours and touches nothing but its arguments, so it runs in this process;
code that a model wrote goes to the sandbox of `hornbook.evaluate` instead. About 0.1 ms a call.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VERSION = 2
"""Of what held-out tests must notice: other problems pass another version."""
LARGEST = 10**9
LONGEST = 200

Arguments = tuple[Any, ...]


def load(code: str, name: str) -> Callable[..., Any]:
    """Compiles our own `code` and returns its function `name`."""
    namespace: dict[str, Any] = {}
    exec(compile(code, f"<{name}>", "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    return function


def small(value: Any) -> bool:
    """Whether a value is finite, printable on a line, and of a plain type."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < LARGEST
    if isinstance(value, str):
        return len(value) < LONGEST
    if isinstance(value, list):
        return len(repr(value)) < LONGEST and all(small(item) for item in value)
    if isinstance(value, dict):
        return len(repr(value)) < LONGEST and all(map(small, (*value, *value.values())))
    return False


def outputs(code: str, name: str, calls: Sequence[Arguments]) -> list[Any] | None:
    """What `name` returns for each call.

    Returns:
        None if a call raises, changes its arguments, answers differently when run again, or
        returns something that `small` refuses.
    """
    function = load(code, name)
    results = []
    for arguments in calls:
        given = copy.deepcopy(arguments)
        try:
            result = function(*given)
            again = function(*given)
        except Exception:
            return None
        if given != arguments or not same(again, result) or not small(result):
            return None
        results.append(result)
    return results


def trace(lines: Sequence[str], parameters: Sequence[str], arguments: Arguments) -> list[Any]:
    """The value that each line of a straight-line body assigns or returns."""
    scope = dict(zip(parameters, copy.deepcopy(arguments), strict=True))
    values = []
    for line in lines:
        target, _, value = line.partition("return " if line.startswith("return ") else " = ")
        values.append(eval(value, scope))
        if target:
            scope[target] = values[-1]
    return values


def same(left: Any, right: Any) -> bool:
    """Equal, of one type, and (for dictionaries) in one order."""
    return type(left) is type(right) and repr(left) == repr(right)


def trivial(calls: Sequence[Arguments], results: Sequence[Any]) -> bool:
    """Whether a constant or one of the arguments passes every test."""
    if all(result == results[0] for result in results):
        return True
    return any(
        all(arguments[place] == result for arguments, result in zip(calls, results, strict=True))
        for place in range(len(calls[0]))
    )


def unnoticed(code: str, name: str, calls: Sequence[Arguments], results: Sequence[Any]) -> bool:
    """Whether some step can be left out, or a condition turned round or decided beforehand, and
    the tests still pass."""
    for mutant in _mutants(code.splitlines()):
        function = load(mutant, name)
        try:
            found = [function(*copy.deepcopy(arguments)) for arguments in calls]
        except Exception:
            continue
        if found == list(results):
            return True
    return False


def _mutants(lines: list[str]) -> Iterator[str]:
    for place, line in enumerate(lines):
        indent, text = line[: len(line) - len(line.lstrip())], line.strip()
        target, _, value = text.partition(" = ")
        if text.startswith("if ") and text.endswith(":"):
            for condition in (f"not ({text[3:-1]})", "True", "False"):
                yield "\n".join([*lines[:place], f"{indent}if {condition}:", *lines[place + 1 :]])
        elif text == "else:":
            after = place + 1
            while after < len(lines) and lines[after].startswith(f"{indent} "):
                after += 1
            yield "\n".join([*lines[:place], *lines[after:]])
        elif target.isidentifier() and target in value:
            yield "\n".join([*lines[:place], *lines[place + 1 :]])


def check_source(calls: Sequence[Arguments], results: Sequence[Any]) -> str:
    """HumanEval's form of tests: `def check(candidate)` with an assert a call."""
    lines = [
        f"    assert candidate({', '.join(map(repr, arguments))}) == {result!r}"
        for arguments, result in zip(calls, results, strict=True)
    ]
    return "\n".join(["def check(candidate):", *lines, ""])


def passes(code: str, test: str, name: str) -> bool:
    """Whether our own `code` passes its tests."""
    try:
        load(test, "check")(load(code, name))
    except Exception:
        return False
    return True
