"""Which calls a text of tests is certain to begin with, found without running anything.

A benchmark's tests are mostly a row of `assert f(1, [2]) == 3`. Until one of them fails, and then
the rest does not matter, what they call and in which order is written in the text. Anything that is
not plainly of that kind ends the row: a wrong guess would call a candidate as its tests do not.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache

from hornbook.evaluate import _codec

_MOST = 64
_BYTES = 16 << 10
"""Far from what a socket holds: who asks must not be made to wait for a reader."""
# Builtins that take values and do nothing else: what else is called may call anything.
_PURE_NAMES = """
abs bool complex dict divmod float frozenset int isinstance len list max min ord pow range repr
round set sorted str sum tuple type
"""
_PURE = frozenset(_PURE_NAMES.split())
# Evaluated once each, from left to right, whatever the values are.
_PLAIN = (
    *(ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Subscript),
    *(ast.Slice, ast.Attribute, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context),
)
# Not sets: the order in which one is sent differs between processes.
_LITERALS = (
    *(ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.UnaryOp, ast.USub, ast.Load),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult),
)


class _UncertainError(Exception):
    """From here on nothing is certain."""


@lru_cache(maxsize=4096)
def foresee(tests: str, entry_point: str) -> tuple[str, ...]:
    """Requests for the calls of `entry_point` that these tests begin with, in order.

    Args:
        tests: Their text: asserts, or a function of one parameter that holds them and its call.
        entry_point: The function that is tested.

    Returns:
        The requests as JSON, few and short enough to be sent before any is answered.
    """
    found: list[str] = []
    if entry_point in _PURE:
        return ()
    try:
        body = ast.parse(tests).body
        for call in _calls(body, entry_point, entry_point, {}):
            found.append(_request(call, entry_point))
            if len(found) > _MOST or sum(map(len, found)) > _BYTES:
                del found[-1]
                break
    except (_UncertainError, SyntaxError, ValueError, RecursionError, MemoryError):
        pass  # what was found until then is certain all the same
    return tuple(found)


def _calls(
    body: list[ast.stmt], name: str, entry_point: str, functions: Mapping[str, ast.FunctionDef]
) -> Iterator[ast.Call]:
    """The calls of `name` that a body makes, until something is not certain.

    Args:
        body: Statements.
        name: What they call the function.
        entry_point: Its name outside.
        functions: Those they may call.
    """
    known = dict(functions)
    for statement in body:
        match statement:
            case ast.Assert(test, msg):
                if msg is not None and not isinstance(msg, ast.Constant):
                    raise _UncertainError
                yield from [*_evaluated(test, name)]  # none of an assert that is not certain
            case ast.Pass() | ast.Expr(ast.Constant()):
                pass
            case ast.Import(names) | ast.ImportFrom(names=names, level=0):
                bound = {alias.asname or alias.name.split(".")[0] for alias in names}
                if bound & {*_PURE, name, entry_point, "*"}:
                    raise _UncertainError
                known = {target: one for target, one in known.items() if target not in bound}
            case ast.Assign([ast.Name(target)], value) if target not in (name, entry_point):
                if target in _PURE:
                    raise _UncertainError
                _literal(value)
                known.pop(target, None)
            case ast.FunctionDef(name=target, decorator_list=[]):
                if target in _PURE or target in (name, entry_point) or statement.args.defaults:
                    raise _UncertainError
                known[target] = statement
            case ast.Expr(ast.Call(ast.Name(target), [ast.Name(given)], [])) if (
                given == name == entry_point and target in known
            ):
                function = known[target]
                if any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(function)):
                    raise _UncertainError  # calling it runs nothing
                match function.args:
                    case ast.arguments(posonlyargs=[], args=[one], vararg=None, kwonlyargs=[]):
                        if one.arg in _PURE or function.args.kwarg is not None:
                            raise _UncertainError
                        # What is inside defined, and might shadow, ends the row when it is met.
                        yield from _calls(function.body, one.arg, entry_point, {})
                    case _:
                        raise _UncertainError
            case _:
                raise _UncertainError


def _evaluated(node: ast.AST, name: str) -> Iterator[ast.Call]:
    """The calls of `name` in an expression, in the order in which they are made."""
    match node:
        case ast.Call(ast.Name(called)) if called == name:
            yield node  # its arguments are looked at as it is put into words
            return
        case ast.Call(ast.Name(called), keywords=[]) if called in _PURE:
            pass
        case ast.Compare(ops=[_]):
            pass
        case ast.Dict():  # of values, which are evaluated after the keys before them
            _literal(node)
            return
        case _ if not isinstance(node, _PLAIN):
            raise _UncertainError
    for child in ast.iter_child_nodes(node):
        yield from _evaluated(child, name)


def _literal(node: ast.expr) -> object:
    """The value of what is written out."""
    parts = [*ast.walk(node)]
    if not all(isinstance(part, _LITERALS) for part in parts):
        raise _UncertainError
    if any(isinstance(part, ast.Mult) for part in parts):
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        if not all(type(value) in (int, float) for value in values):
            raise _UncertainError  # it may be huge
    try:
        found: object = eval(compile(ast.Expression(node), "<tests>", "eval"), {})
    except Exception as error:
        raise _UncertainError from error
    return found


def _request(call: ast.Call, entry_point: str) -> str:
    if any(keyword.arg is None for keyword in call.keywords):
        raise _UncertainError
    try:
        arguments = [_codec.pack(_literal(node)) for node in call.args]
        named = [[word.arg, _codec.pack(_literal(word.value))] for word in call.keywords]
    except _codec.UnfitError as error:
        raise _UncertainError from error
    return _codec.encode(["call", entry_point, arguments, named]).decode("ascii")
