"""The offline annotator: a deterministic rubric over the syntax tree, standing in for the LLM.

The paper asks GPT-4 to "determine its educational value for a student whose goal is to learn basic
coding concepts" and wants code that is "clear, self-contained, instructive, and balanced" (section
2.1). The rubric gives points for that:

| points | for |
|---|---|
| 2.5 | self-contained: only the standard library, no relative imports, no undefined names |
| 4 | computes: the share of code in functions that take values, work on them and return a result |
| 1.5 | documented: docstrings and comments that say more than the name does |
| 1.5 | clear: short functions, shallow nesting, names that speak, a reasonable length |
| 0.5 | balanced: some prose, not prose alone |

A document that computes nothing gets at most 3, whatever its docstrings say (the cap rises by two
for each point of computing); one that leans on another package at most 6. Code that does not parse
gets 0. About 1.5 ms for each KB of text.

    score, reason = hornbook.quality.rubric.rubric("def add(a, b):\\n    return a + b\\n")
"""

import ast
import builtins
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

VERSION = 1
"""Changes whenever the same text would get another score."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = _Function | ast.Lambda | ast.ClassDef
_KNOWN_NAMES = frozenset(dir(builtins)) | {
    "__file__",
    "__name__",
    "__doc__",
    "__path__",
    "__class__",
    "__annotations__",
    "__spec__",
    "__module__",
    "__qualname__",
}
_LOOPS = (ast.For, ast.While, ast.AsyncFor, ast.ListComp, ast.SetComp, ast.DictComp)
_BRANCHES = (ast.If, ast.IfExp, ast.Match, ast.BoolOp, ast.Compare)
_ARITHMETIC = (ast.BinOp, ast.AugAssign, ast.UnaryOp)
_WORK = (*_LOOPS, ast.GeneratorExp, *_BRANCHES, *_ARITHMETIC)
_BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith, ast.Match)
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the rubric saw in a document; every share lies between 0 and 1."""

    foreign: tuple[str, ...]
    """Imports from outside the standard library, relative ones as `.`."""
    undefined: tuple[str, ...]
    """Names used and bound nowhere."""
    functions: int
    """Functions and methods."""
    computing: int
    """Those of them that take a value, work on it and return a result."""
    computing_share: float
    """Lines of code inside those, of all lines of code."""
    script_work: bool
    """Statements outside functions that loop and calculate."""
    documentation: float
    """How well definitions are explained."""
    clarity: float
    """How easy the code is to read."""
    prose_share: float
    """Docstring and comment lines, of all lines that are not blank."""


def rubric(text: str) -> tuple[float, str]:
    """Scores a document for its value to a student of basic coding concepts.

    Args:
        text: Python source.

    Returns:
        A score from 0 to 10 with one decimal, and the points that held and failed.
    """
    tree = _parse(text)
    if tree is None:
        return 0.0, "does not parse"
    if not tree.body:
        return 0.0, "no code"
    return score(find(tree, text))


def score(found: Findings) -> tuple[float, str]:
    """The score and reason that findings give."""
    contained = 2.5
    if found.foreign:
        contained -= 1.5
    contained -= min(1.0, 0.5 * len(found.undefined))
    computes = 4.0 * min(1.0, found.computing_share / 0.6) if found.computing else 0.0
    if found.script_work and computes < 2.0:
        computes = 2.0
    balanced = 0.5 if 0.05 <= found.prose_share <= 0.6 else 0.0
    points = contained + computes + 1.5 * found.documentation + 1.5 * found.clarity + balanced
    if found.foreign:
        points = min(points, 6.0)
    points = min(points, 3.0 + 2.0 * computes)
    reasons = [
        f"imports {', '.join(found.foreign[:3])}" if found.foreign else "standard library only",
        f"{found.computing} of {found.functions} functions compute"
        if found.functions
        else ("a script that computes" if found.script_work else "computes nothing"),
    ]
    if found.undefined:
        reasons.append(f"undefined: {', '.join(found.undefined[:3])}")
    if found.documentation >= 0.5:
        reasons.append("documented")
    reasons.append("clear" if found.clarity >= 0.7 else "hard to follow")
    if balanced:
        reasons.append("prose and code")
    return round(min(10.0, max(0.0, points)), 1), "; ".join(reasons)


def find(tree: ast.Module, text: str) -> Findings:
    """Looks at a parsed document."""
    lines = text.splitlines()
    code_lines, comment_lines, doc_lines = _line_kinds(tree, lines)
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
    computing = [function for function in functions if _computes(function)]
    inside = {line for function in computing for line in _span(function)} & code_lines
    foreign, bound, used = _names(tree)
    outside = [node for node in tree.body if not isinstance(node, _Scope)]
    prose = len(comment_lines) + len(doc_lines)
    return Findings(
        foreign=foreign,
        undefined=tuple(sorted(used - bound - _KNOWN_NAMES)),
        functions=len(functions),
        computing=len(computing),
        computing_share=len(inside) / max(1, len(code_lines)),
        script_work=_script_works(outside),
        documentation=_documentation(tree, len(comment_lines), len(code_lines)),
        clarity=_clarity(functions, bound, lines),
        prose_share=prose / max(1, prose + len(code_lines)),
    )


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old escape sequence in the text is not ours to report
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return body[0]
    return None


def _line_kinds(tree: ast.Module, lines: list[str]) -> tuple[set[int], set[int], set[int]]:
    """Numbers of lines that are code, comments and docstrings."""
    documented = [_docstring(node) for node in ast.walk(tree) if _may_have_docstring(node)]
    doc_lines = {line for doc in documented if doc is not None for line in _span(doc)}
    code_lines: set[int] = set()
    comment_lines: set[int] = set()
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped and number not in doc_lines:
            (comment_lines if stripped.startswith("#") else code_lines).add(number)
    return code_lines, comment_lines, doc_lines


def _may_have_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | _Function | ast.ClassDef)


def own_nodes(function: _Function) -> Iterator[ast.AST]:
    """Nodes of a function, without those of functions, lambdas and classes inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, _Function | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def _parameters(function: _Function) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def _computes(function: _Function) -> bool:
    """Takes a value, works on it, and gives a result that depends on the work."""
    parameters = set(_parameters(function))
    if not parameters:
        return False
    work = effects = 0
    uses = results = False
    for node in own_nodes(function):
        work += isinstance(node, _WORK)
        uses = uses or (isinstance(node, ast.Name) and node.id in parameters)
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            results = results or not isinstance(node.value, ast.Constant | None)
        effects += _is_effect(node)
    # Glue is a row of calls and settings on objects with a little logic between them.
    return uses and results and work >= 1 and work >= effects


def _is_effect(node: ast.AST) -> bool:
    """A method called for its effect, or an attribute that is set."""
    if isinstance(node, ast.Expr):
        call = node.value
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            return False
        # `result.append(x)` builds a result; `self.window.show()` and `app.run()` do not.
        on_local = isinstance(call.func.value, ast.Name) and call.func.value.id != "self"
        return not (on_local and call.args)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute) for target in node.targets)
    return False


def _script_works(statements: list[ast.stmt]) -> bool:
    loops = arithmetic = 0
    for statement in statements:
        if _is_main_guard(statement):
            continue
        for node in ast.walk(statement):
            loops += isinstance(node, _LOOPS)
            arithmetic += isinstance(node, _ARITHMETIC)
    return loops >= 1 and arithmetic >= 2


def _is_main_guard(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Compare)
        and isinstance(statement.test.left, ast.Name)
        and statement.test.left.id == "__name__"
    )


def _names(tree: ast.Module) -> tuple[tuple[str, ...], set[str], set[str]]:
    """Foreign imports, names bound anywhere, names read anywhere."""
    foreign: set[str] = set()
    bound: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    bound.add(alias.asname or alias.name.split(".")[0])
                    foreign.add(alias.name.split(".")[0])
            case ast.ImportFrom():
                bound.update(alias.asname or alias.name for alias in node.names)
                foreign.add("." if node.level else (node.module or "").split(".")[0])
            case ast.Name(ctx=ast.Load()):
                used.add(node.id)
            case ast.Name():
                bound.add(node.id)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.arg():
                bound.add(node.arg)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.Global() | ast.Nonlocal():
                bound.update(node.names)
            case _:
                type_parameter = getattr(ast, "TypeVar", None)
                if type_parameter is not None and isinstance(node, type_parameter):
                    bound.add(node.name)
    if "*" in bound:
        used.clear()  # a star import may bind anything
    outside = foreign - sys.stdlib_module_names - {"__future__"}
    return tuple(sorted(outside)), bound, used


def _documentation(tree: ast.Module, comments: int, code: int) -> float:
    """Share of public definitions whose docstring says more than their name; comments help."""
    owners = [
        node
        for node in ast.walk(tree)
        if isinstance(node, _Function | ast.ClassDef) and not node.name.startswith("_")
    ]
    said = sum(_says_something(node) for node in owners) / len(owners) if owners else 0.0
    # One comment in eight lines explains half as much as docstrings do.
    commented = min(0.5, 4.0 * comments / max(1, code))
    module = 0.2 if _says_something(tree) else 0.0
    return min(1.0, max(said, 0.0) + commented + module)


def _says_something(node: ast.Module | _Function | ast.ClassDef) -> bool:
    words = {word.lower() for word in _WORD.findall(ast.get_docstring(node) or "")}
    own = {word.lower() for word in _WORD.findall(getattr(node, "name", "").replace("_", " "))}
    return len(words - own) >= 3


def _clarity(functions: list[_Function], bound: set[str], lines: list[str]) -> float:
    """Short functions, shallow nesting, names that speak, a reasonable length, no long lines."""
    lengths = [len(_span(function)) for function in functions]
    mean = sum(lengths) / len(lengths) if lengths else 10.0
    short = _falling(mean, 25, 80)
    shallow = _falling(max((_nesting(function) for function in functions), default=0), 3, 7)
    names = [name for name in bound if not name.startswith("__")]
    spoken = sum(len(name) >= 3 for name in names) / len(names) if names else 0.5
    filled = [line for line in lines if line.strip()]
    length = _falling(len(filled), 300, 1500) if len(filled) >= 3 else 0.5
    narrow = 1.0 - min(1.0, 5.0 * sum(len(line) > 120 for line in filled) / max(1, len(filled)))
    return 0.3 * short + 0.2 * shallow + 0.2 * min(1.0, spoken / 0.6) + 0.2 * length + 0.1 * narrow


def _falling(value: float, good: float, bad: float) -> float:
    """1 up to `good`, 0 from `bad` on, a line between."""
    return min(1.0, max(0.0, (bad - value) / (bad - good)))


def _nesting(function: _Function) -> int:
    deepest = 0
    pending: list[tuple[ast.AST, int]] = [(node, 0) for node in function.body]
    while pending:
        node, depth = pending.pop()
        depth += isinstance(node, _BLOCKS)
        deepest = max(deepest, depth)
        pending.extend((child, depth) for child in ast.iter_child_nodes(node))
    return deepest
