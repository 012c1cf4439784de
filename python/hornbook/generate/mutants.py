"""Broken versions of a solution: tests that let one pass check too little.

A mutant differs in one place: a comparison, an operator, a constant, a condition turned round, a
step left out, a result replaced by None. Pure functions of the text; the first mutant is always the
function that returns nothing. About 0.2 ms a mutant.

    mutants("def f(x):\\n    return x + 1\\n", "f", most=3)
"""

import ast
import copy
import re
from collections.abc import Iterator, Sequence

from hornbook.generate.prompts import digest

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}


def mutants(code: str, entry_point: str, *, most: int) -> list[str]:
    """Broken versions of a program.

    Args:
        code: A program that parses.
        entry_point: Its function that is broken; other functions are left alone.
        most: How many at most; they are picked evenly, by a hash of the code.

    Returns:
        Programs, without comments; none if there is no such function.
    """
    tree = ast.parse(code)
    function = _function(tree, entry_point)
    if function is None or most < 1:
        return []
    made = [_nothing(tree, entry_point)]
    sites = list(_sites(function))
    ranked = sorted(range(len(sites)), key=lambda place: digest(code, place))
    for place in sorted(ranked[: most - 1]):
        changed = copy.deepcopy(tree)
        target = _function(changed, entry_point)
        assert target is not None
        _break(list(_sites(target))[place])
        made.append(ast.unparse(ast.fix_missing_locations(changed)) + "\n")
    return made


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    named = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return named[0] if named else None


def _nothing(tree: ast.Module, name: str) -> str:
    changed = copy.deepcopy(tree)
    function = _function(changed, name)
    assert function is not None
    function.body = [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(changed)) + "\n"


def _sites(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """Places that can be broken, in the order of the text; a statement comes with its holder."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    for statement in body:
        for node in ast.walk(statement):
            if (
                (isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE)
                or (isinstance(node, ast.BinOp) and type(node.op) in _BINARY)
                or (isinstance(node, ast.AugAssign) and type(node.op) in _BINARY)
                or isinstance(node, ast.BoolOp | ast.If | ast.IfExp)
                or (isinstance(node, ast.Constant) and type(node.value) is int)
                or (isinstance(node, ast.Call) and _is(node, "min", "max", "any", "all", "sorted"))
            ):
                yield node, None
        for node in [function, *ast.walk(statement)]:
            holder = getattr(node, "body", None)
            if node is function or not isinstance(holder, list):
                continue
            for inner in holder:
                if isinstance(inner, ast.Expr | ast.Assign | ast.AugAssign | ast.Continue):
                    yield inner, node


def _is(call: ast.Call, *names: str) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in names


def _break(site: tuple[ast.AST, ast.AST | None]) -> None:
    node, holder = site
    if holder is not None:
        body: list[ast.AST] = holder.body  # type: ignore[attr-defined]
        body[body.index(node)] = ast.Pass()
    elif isinstance(node, ast.Compare):
        node.ops[0] = _COMPARE[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = _BINARY[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
    elif isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        node.value += 1
    elif isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        node.func.id = {"min": "max", "max": "min", "any": "all", "all": "any"}.get(
            node.func.id, "list"
        )


def text_mutants(text: str, mutations: Sequence[tuple[str, str]], *, most: int) -> list[str]:
    """Broken versions of a text in any language, by a curriculum's replacements.

    Args:
        text: The solution.
        mutations: `(regular expression, replacement)`; each is applied to its first match.
        most: How many at most.
    """
    made: list[str] = []
    for pattern, replacement in mutations:
        changed = re.sub(pattern, replacement, text, count=1)
        if changed != text and changed not in made and len(made) < most:
            made.append(changed)
    return made
