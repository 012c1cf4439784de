"""Where an answer begins and ends: stop strings, the function that was asked for, fenced code.

Pure functions of text, linear in its length; no input brings them down.

    cut_at_stop("    return x\\nprint(1)", ("\\nprint",))
"""

import re
from collections.abc import Iterator, Sequence


def fenced(text: str, entry_point: str) -> str:
    """The code of a chat model's answer.

    Args:
        text: Prose with fenced blocks, or code alone.
        entry_point: The function that was asked for.

    Returns:
        The first fenced block that defines the function, else the first block, else the text.
    """
    blocks = list(_blocks(text))
    wanted = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.M)
    return next((code for code in blocks if wanted.search(code)), blocks[0] if blocks else text)


def _blocks(text: str) -> Iterator[str]:
    """Fenced blocks; the last may lack its end, where the model ran out of tokens."""
    mark, lines = "", [""]
    for line in text.split("\n"):
        bare = line.strip()
        kind = bare[:3]
        if mark:
            if kind == mark and not bare.strip(mark[0]):
                yield "".join(lines)
                mark = ""
            else:
                lines.append(line + "\n")
        elif kind in ("```", "~~~") and bare.count(kind[0]) == len(bare) - len(
            bare.lstrip(kind[0])
        ):
            mark, lines = kind, []
    if mark:
        yield "".join(lines)


def cut_at_stop(completion: str, stop: Sequence[str]) -> str:
    """The completion up to the first of the stop strings."""
    ends = [at for word in stop if (at := completion.find(word)) >= 0]
    return completion[: min(ends, default=len(completion))]


# Everything in which a line's start would not be a statement's: comments, strings, brackets.
_LEXEME = re.compile(
    r"""\#[^\n]*
    | \"\"\"(?:[^\\"]|\\.|"(?!""))*\"\"\"
    | '''(?:[^\\']|\\.|'(?!''))*'''
    | "(?:[^\\"\n]|\\.)*"
    | '(?:[^\\'\n]|\\.)*'
    | \\\r?\n
    | [()\[\]{}]
    | \n""",
    re.VERBOSE | re.DOTALL,
)
_INDENTED_OR_EMPTY = re.compile(r"[ \t\f]*(?:\#|\r?\n|\Z)|[ \t\f]")


def truncate(preamble: str, completion: str, entry_point: str) -> str:
    """Cuts an answer at the first top-level statement after the function that was asked for.

    Functions right after it whose names it mentions stay: they are its helpers. If the answer does
    not continue the preamble's function but writes it out again, that one counts; what stands
    before it (imports, helpers) stays. An answer without the function stays whole. For text that
    parses the cut is where the syntax tree puts it; being made by a lexer it also works for text
    that does not, takes linear time and cannot be brought down by any input.

    Returns:
        The start of `completion`.
    """
    text, answer = preamble + completion, len(preamble)
    starts = [(at, _DEFINITION.match(text, at)) for at in _statement_starts(text)]
    named = [(at, match and match[1]) for at, match in starts]
    tail = [(at, name) for at, name in named if at >= answer]
    begun = (entry_point in [name for at, name in named if at < answer]) and not (
        # nothing was added to the preamble's function, and the answer writes it out again
        tail and not text[answer : tail[0][0]].strip() and entry_point in [n for _, n in tail]
    )
    used: set[str] = set()
    seen = answer
    for at, name in tail:
        if begun:
            used.update(re.findall(r"\w+", text[seen:at]))
            seen = at
            if name is None or name == entry_point or name not in used:
                return text[answer:at]
        elif name == entry_point:
            begun = True
    return completion


_DEFINITION = re.compile(r"(?:async[ \t]+)?def[ \t]+(\w+)")


def _statement_starts(text: str) -> Iterator[int]:
    """Where top-level statements (or a line of decorators) begin."""
    depth, position = 0, 0
    if not _INDENTED_OR_EMPTY.match(text):
        yield 0
    for match in _LEXEME.finditer(text):
        lexeme = match.group()
        if lexeme in ("(", "[", "{"):
            depth += 1
        elif lexeme in (")", "]", "}"):
            depth = max(0, depth - 1)
        elif lexeme == "\n" and depth == 0:
            position = match.end()
            if position < len(text) and not _INDENTED_OR_EMPTY.match(text, position):
                yield position


def without_comments(text: str) -> str:
    """Text without comments and without triple-quoted strings, by the lexer; for any text."""

    def keep(match: re.Match[str]) -> str:
        lexeme = match.group()
        return "" if lexeme.startswith(("#", '"""', "'''")) else lexeme

    return _LEXEME.sub(keep, text)
