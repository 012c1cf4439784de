"""A model's answers, taken apart: exercises, textbook sections, and strict JSON replies.

Pure functions from text to parts, or to a `RejectedError` with a reason code. Answers are never
run and never trusted: what is too long is turned away first, and the rest is read by the syntax
tree. What they may name is limited so that exercises stay simple; the sandbox, not this list, is
what makes running them safe.
About 1 ms an answer.

    parse_exercise(open("answer.md").read())["entry_point"]
"""

import ast
import doctest
import json
import re
from collections.abc import Sequence
from typing import Any

from hornbook.errors import InputError
from hornbook.generate import prompts

LIBRARIES = ("typing", "math", "random", "collections", "datetime", "itertools")
"""Standard libraries an exercise may import: those of the released model's card."""

LONGEST = 40_000
"""Characters of the longest answer that is looked at."""
TESTS = 4
"""Assertions an exercise must bring."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)")
_OPENERS = re.compile(
    r"\W*(sure|certainly|of course|here is|here's|as an ai|welcome|hello)\b", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FORBIDDEN = frozenset(
    {"breakpoint", "compile", "eval", "exec", "exit", "globals", "input", "locals", "open"}
    | {"print", "quit", "vars"}
)


class RejectedError(InputError):
    """An answer that makes no row. `code` is counted, the message says what was seen."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


def _tree(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise RejectedError("syntax", f"{what}{where}: {type(error).__name__}") from None


def _checked(text: str) -> str:
    """An answer's text, if it is worth looking at."""
    if len(text) > LONGEST:
        raise RejectedError("too_long", f"{len(text):,} characters")
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise RejectedError("empty", "no text")
    if _CONTROL.search(text):
        raise RejectedError("control_characters", "the text holds control characters")
    return prompts.clean(text)


def split_blocks(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Parts a Markdown text into its prose and its fenced blocks.

    Returns:
        The prose, and `(language in lower case, code)` for each block.

    Raises:
        RejectedError: With code `syntax` if a block is not closed.
    """
    prose: list[str] = []
    blocks: list[tuple[str, str]] = []
    mark, language, code = "", "", [""]
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if mark:
            bare = line.strip()
            if found and bare == mark[0] * len(bare) and len(bare) >= len(mark):
                blocks.append((language, "".join(code)))
                mark = ""
            else:
                code.append(line + "\n")
        elif found:
            mark, language, code = found[1], found[2].lower(), []
        else:
            prose.append(line)
    if mark:
        raise RejectedError("syntax", "a fenced block is not closed")
    return "\n".join(prose), blocks


def parse_exercise(
    text: str,
    *,
    entry_point: str | None = None,
    libraries: Sequence[str] = LIBRARIES,
) -> dict[str, str]:
    """Takes an exercise apart by its syntax tree.

    Args:
        text: Fenced blocks, or plain code: imports, functions, then assertions.
        entry_point: The name that the function must have; else the last documented function.
        libraries: What may be imported.

    Returns:
        `prompt` (imports, helpers, signature and docstring), `solution` (the body; prompt +
        solution is the program), `tests` (assertions, runnable after the program), `entry_point`.

    Raises:
        RejectedError: With one of the codes syntax, no_function, wrong_name, no_docstring,
            no_solution, layout, import, forbidden, tests, too_long, empty, control_characters.
    """
    text = _checked(text)
    _, blocks = split_blocks(text)
    codes = [code.strip("\n") for language, code in blocks if language in ("", "py", "python")]
    lines = "\n".join(codes or [text]).split("\n")
    tree = _tree("\n".join(lines), "the exercise")
    _check_names(tree, libraries)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    documented = [node for node in functions if ast.get_docstring(node)]
    if not functions:
        raise RejectedError("no_function", "no function at the top level")
    if entry_point is None:
        named = documented[-1:]
    else:
        named = [node for node in functions if node.name == entry_point]
        if not named:
            raise RejectedError("wrong_name", f"`{functions[-1].name}` instead of `{entry_point}`")
    if len(named) != 1 or named[0] not in documented:
        raise RejectedError("no_docstring", "the function has no docstring, or stands there twice")
    function = named[0]
    docstring, *body = function.body
    if all(
        isinstance(node, ast.Pass | ast.Raise)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    ):
        raise RejectedError("no_solution", f"`{function.name}` has no body")
    program, tests = _split(tree, function)
    top, middle = docstring.end_lineno or 0, body[0].lineno
    bottom = max(node.end_lineno or 0 for node in program)
    if middle <= top or (tests and tests[0].lineno <= bottom):
        raise RejectedError("layout", "docstring, body and tests must stand on lines of their own")
    if docstring.lineno == function.lineno:
        raise RejectedError("layout", "the docstring stands on the signature's line")
    return {
        "prompt": "\n".join(lines[:top]).lstrip("\n") + "\n",
        "solution": "\n".join(lines[top:bottom]) + "\n",
        "tests": _tests(tests, function.name),
        "entry_point": function.name,
    }


def _split(tree: ast.Module, function: ast.FunctionDef) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The statements of the program, and those of the tests."""
    program: list[ast.stmt] = []
    tests: list[ast.stmt] = []
    for node in tree.body:
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test")
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) and not is_test:
            # An import after the function belongs to the tests.
            later = function in program and not isinstance(node, ast.FunctionDef)
            (tests if later else program).append(node)
        elif isinstance(node, ast.Assert | ast.Assign | ast.AnnAssign) or is_test:
            # A constant before the function is for the function to use.
            constant = isinstance(node, ast.Assign | ast.AnnAssign) and function not in program
            (program if constant else tests).append(node)
        else:
            raise RejectedError(
                "layout", f"line {node.lineno}: {type(node).__name__} at the top level"
            )
    return program, tests


def _check_names(tree: ast.Module, libraries: Sequence[str]) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else ["." * node.level + (node.module or "")]
            )
            for module in modules:
                if module.split(".")[0] not in libraries:
                    raise RejectedError(
                        "import", f"line {node.lineno}: `{module}` is not in the list"
                    )
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        if name in _FORBIDDEN and isinstance(node, ast.Name):
            raise RejectedError("forbidden", f"line {node.lineno}: `{name}`")
        if isinstance(node, ast.Name | ast.Attribute) and name.startswith("__"):
            raise RejectedError("forbidden", f"line {node.lineno}: `{name}`")


def _tests(nodes: Sequence[ast.stmt], entry_point: str) -> str:
    """The tests' source, if enough of them call the function."""
    parts = []
    calls = 0
    for node in nodes:
        try:
            parts.append(ast.unparse(node))
        except RecursionError:
            raise RejectedError("syntax", f"line {node.lineno}: nested too deeply") from None
        if isinstance(node, ast.FunctionDef):
            if node.args.args or node.args.kwonlyargs or node.decorator_list:
                raise RejectedError("tests", f"`{node.name}` takes arguments")
            parts.append(f"{node.name}()")
        for inner in ast.walk(node):
            calls += isinstance(inner, ast.Assert) and any(
                isinstance(name, ast.Name) and name.id == entry_point for name in ast.walk(inner)
            )
    if calls < TESTS:
        raise RejectedError("tests", f"{calls} of at least {TESTS} assertions call `{entry_point}`")
    return "\n".join(parts) + "\n"


def parse_blocks(text: str, blocks: Sequence[str], fences: Sequence[str]) -> dict[str, str]:
    """Takes an answer apart whose form a curriculum gives: fenced blocks and nothing else.

    Args:
        text: The answer.
        blocks: The blocks' names, in order.
        fences: The language tag of each.

    Returns:
        Name -> text, without empty lines around it.

    Raises:
        RejectedError: With one of the codes layout, syntax, too_long, empty, control_characters.
    """
    prose, found = split_blocks(_checked(text))
    if prose.strip() or [language for language, _ in found] != list(fences):
        tags = ", ".join(language or "-" for language, _ in found)
        raise RejectedError("layout", f"blocks {tags or '-'} instead of {', '.join(fences)}")
    parts = {name: code.strip("\n") for name, (_, code) in zip(blocks, found, strict=True)}
    for name, code in parts.items():
        if not code.strip():
            raise RejectedError("layout", f"the block `{name}` is empty")
    return parts


PYTHON_FENCES = ("py", "python", "pycon")


def parse_textbook(text: str, fences: Sequence[str] = PYTHON_FENCES) -> str:
    """Checks a textbook section: prose with at least one block of code; Python must parse.

    Args:
        text: The answer.
        fences: The language tags of code.

    Raises:
        RejectedError: With one of the codes boilerplate, too_short, no_code, little_prose, syntax,
            too_long, empty, control_characters.
    """
    text = _checked(text)
    if _OPENERS.match(text):
        raise RejectedError("boilerplate", f"begins with `{text[:40]!r}`")
    if len(text) < 400:
        raise RejectedError("too_short", f"{len(text)} characters")
    prose, blocks = split_blocks(text)
    if not any(language in fences for language, _ in blocks):
        raise RejectedError("no_code", f"no block of {fences[0]}")
    if len(prose) < 200:
        raise RejectedError("little_prose", "hardly anything but code")
    for number, source in enumerate(textbook_code(text), 1):
        _tree(source, f"block {number}")
    return text + "\n"


def textbook_code(text: str) -> list[str]:
    """The code of a section's Python blocks; of a shown session, its inputs.

    Raises:
        RejectedError: With code `syntax` if a block or a session is torn.
    """
    sources = []
    for language, code in split_blocks(text)[1]:
        if language not in PYTHON_FENCES:
            continue
        if not code.lstrip().startswith(">>>"):
            sources.append(code)
            continue
        try:
            examples = doctest.DocTestParser().get_examples(code)
        except ValueError:
            raise RejectedError("syntax", f"block {len(sources) + 1}: a torn session") from None
        sources.append("".join(example.source for example in examples))
    return sources


def strict_json(text: str, keys: Sequence[str]) -> dict[str, Any]:
    """Reads a reply that must be one JSON object with exactly these keys in this order.

    A single fence around it is allowed; anything else around it is not.

    Raises:
        RejectedError: With code `reply`.
    """
    text = text.strip()
    match = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.S)
    try:
        pairs = json.loads(match[1] if match else text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise RejectedError("reply", f"not one JSON object ({type(error).__name__})") from None
    if not isinstance(pairs, _Pairs) or [key for key, _ in pairs] != list(keys):
        raise RejectedError(
            "reply", f"not a JSON object with the keys {', '.join(keys)} in this order"
        )
    return dict(pairs)


class _Pairs(list[tuple[str, Any]]):
    """An object's members in order, repeated keys and all."""


def words(value: Any) -> str:
    """A reply's text.

    Raises:
        RejectedError: With code `reply`, if it is none or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise RejectedError("reply", f"not a text: {str(value)[:40]!r}")
    return value


def integer(value: Any, most: int) -> int:
    """A whole number from 0 to `most`.

    Raises:
        RejectedError: With code `reply`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise RejectedError("reply", f"not a whole number from 0 to {most}: {str(value)[:40]!r}")
    return value
