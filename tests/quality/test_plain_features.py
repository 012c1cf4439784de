"""The syntax ratios by their definition, byte by byte, and the core's against them."""

import math
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.quality import embed, feature_names

WORDS = {
    **dict.fromkeys(["return", "yield"], "return"),
    **dict.fromkeys(["for", "while"], "loop"),
    **dict.fromkeys(["if", "elif"], "branch"),
    **dict.fromkeys(["and", "or", "not", "in", "is"], "logic"),
    **dict.fromkeys(["True", "False", "None"], "constant"),
    **{word: word for word in ("def", "class", "async", "import", "from")},
    **dict.fromkeys(
        [
            "else",
            "try",
            "except",
            "finally",
            "raise",
            "with",
            "as",
            "assert",
            "pass",
            "break",
            "continue",
            "del",
            "global",
            "nonlocal",
            "lambda",
            "await",
            "print",
            "super",
        ],
        "keyword",
    ),
}
DEFINES = ("def", "class", "async")
PLACES = 4096


def is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum() or byte == ord("_")


def is_blank(byte: int) -> bool:
    return byte <= 32 or byte == 127


def place_of(word: bytes) -> int:
    """Where a word of at most 16 bytes falls among the places by which words are told apart."""
    low, high = (int.from_bytes(word.ljust(16, b"\0")[at : at + 8], "little") for at in (0, 8))
    length = (len(word) << 40) % 2**64
    product = (low ^ 0xA0761D6478BD642F) * (high ^ 0xE7037ED1A0B428DB ^ length)
    return (product ^ (product >> 64)) % PLACES


def strings_and_comments(text: bytes) -> list[tuple[str, int, int, bool]]:
    """Kind, beginning, end, and whether it has one (a comment always has)."""
    found = []
    at = 0
    while at < len(text):
        start, byte = at, text[at : at + 1]
        at += 1
        if byte == b"#":
            end = text.find(b"\n", start)
            at = end if end >= 0 else len(text)
            found.append(("comment", start, at, True))
        elif byte in (b"'", b'"'):
            marks = 3 if text.startswith(byte * 3, start) else 1
            at, ended, row = start + marks, False, 0
            while at < len(text) and not ended:
                if is_escaped(text, at):
                    at, row = at + 1, 0
                    continue
                if marks == 1 and text[at] == ord("\n"):
                    break
                row = row + 1 if text[at : at + 1] == byte else 0
                ended = row == marks
                at += 1
            at = min(at, len(text))
            found.append(("string", start, at, ended))
    return found


def is_escaped(text: bytes, at: int) -> bool:
    """Whether an odd number of backslashes stands before a byte."""
    before = text[:at]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def ratios(text: bytes) -> dict[str, float]:
    """The columns after the hashed ones, by name; without `distinct_word_share` where a word is
    longer than 16 bytes, as its hash is another one."""
    quiet = bytearray(len(text))
    strings = {}
    size = {"comment": 0, "string": 0}
    for kind, start, end, ended in strings_and_comments(text):
        quiet[start:end] = b"\1" * (end - start)
        size[kind] += end - start
        if kind == "string":
            strings[start] = (end, ended)
    broken = sum(not ended for _, ended in strings.values())

    # Tokens of code: where they begin, and what they are.
    words, marks = {}, {}
    at = 0
    while at < len(text):
        end = at + 1
        if is_word(text[at]):
            while end < len(text) and is_word(text[end]):
                end += 1
            if not quiet[at]:
                words[at] = text[at:end]
        elif not is_blank(text[at]) and not quiet[at]:
            marks[at] = chr(text[at])
        at = end
    tokens = {**words, **marks, **dict.fromkeys(strings)}

    # Statements begin after the ends of lines that no bracket and no backslash goes over.
    firsts, depth, deepest, pending = [], 0, 0, True
    for at, byte in enumerate(text):
        if at in tokens and pending:
            firsts.append(at)
            pending = False
        if quiet[at]:
            continue
        if byte == ord("\n"):
            broken += max(0, -depth)
            depth = max(0, depth)
            deepest = max(deepest, depth)
            joined = at > 0 and text[at - 1] == ord("\\") and not quiet[at - 1]
            pending = pending or (depth == 0 and not joined)
        depth += (chr(byte) in "([{") - (chr(byte) in ")]}")

    def opener(at: int) -> str:
        if at in words:
            number = words[at][:1].isdigit()
            return "other" if number else WORDS.get(words[at].decode(errors="replace"), "name")
        return "string" if at in strings else "@" if marks[at] == "@" else "other"

    openers = [opener(at) for at in firsts]
    indents = [at - (text.rfind(b"\n", 0, at) + 1) for at in firsts]
    top = [kind for kind, indent in zip(openers, indents, strict=True) if indent == 0]
    docstrings = documented = 0
    for before, at in zip(["start", *openers], firsts, strict=False):
        prefix = text[at : at + 1].lower() in (b"r", b"u", b"f") and at + 1 in strings
        start = at + 1 if prefix else at
        if start in strings and (before == "start" or before in DEFINES) and strings[start][1]:
            docstrings += strings[start][0] - start
            documented += before in DEFINES

    kinds = [WORDS.get(word.decode(errors="replace"), "") for word in words.values()]
    singles = {
        at for at in marks if marks[at] == "=" and (at == 0 or chr(text[at - 1]) not in "<=>!")
    }
    doubles = {at for at in marks if marks[at] == "=" and at - 1 in singles}
    behind = {
        at: at > 0 and (is_word(text[at - 1]) or marks.get(at - 1, "") in (")", "]", "}"))
        for at in marks
    }
    values = list(marks.values())
    brackets = sum(mark in "()[]{}" for mark in values)
    plain = sum(mark not in "()[]{}.,:" for mark in values)
    numbers = sum(word[:1].isdigit() for word in words.values())
    lines = text.count(b"\n") + (text != b"" and not text.endswith(b"\n"))
    full = sum(any(not is_blank(byte) for byte in line) for line in text.split(b"\n"))
    code, count, functions = len(tokens), len(firsts), kinds.count("def")
    imports = openers.count("import") + openers.count("from")
    relative = sum(
        kind == "from" and text[at + 4 :].lstrip(b" \t").startswith(b".")
        for at, kind in zip(firsts, openers, strict=True)
    )

    def per(part: float, whole: float) -> float:
        return part / max(whole, 1)

    found = {
        "docstring_share": per(docstrings, len(text)),
        "comment_share": per(size["comment"], len(text)),
        "string_share": per(size["string"] - docstrings, len(text)),
        "imports_per_statement": per(imports, count),
        "relative_import_share": per(relative, imports),
        "functions_per_line": per(functions, lines),
        "classes_per_line": per(kinds.count("class"), lines),
        "method_share": per(max(0, functions - top.count("def") - top.count("async")), functions),
        "documented_share": per(documented, functions + kinds.count("class")),
        "returns_per_function": per(kinds.count("return"), functions),
        "loops_per_statement": per(kinds.count("loop"), count),
        "branches_per_statement": per(kinds.count("branch"), count),
        "assignments_per_statement": per(len(singles) - len(doubles), count),
        "top_level_share": per(
            sum(kind not in (*DEFINES, "import", "from", "@") for kind in top), count
        ),
        "named_first_share": per(openers.count("name"), count),
        "decorators_per_function": per(openers.count("@"), functions),
        "call_share": per(sum(marks[at] == "(" and behind[at] for at in marks), code),
        "attribute_share": per(values.count("."), code),
        "literal_share": per(numbers + len(strings) + kinds.count("constant"), code),
        "operator_share": per(plain + kinds.count("logic"), code),
        "subscript_share": per(sum(marks[at] == "[" and behind[at] for at in marks), code),
        "keyword_share": per(kinds.count("keyword"), code),
        "comma_share": per(values.count(","), code),
        "bracket_share": per(brackets, code),
        "mean_word_length": per(sum(map(len, words.values())), len(words)),
        "deepest_indent": math.log1p(max(indents, default=0)),
        "mean_indent": per(sum(indents), count),
        "deepest_bracket": math.log1p(deepest),
        "broken_share": per(broken, lines),
        "mean_line_length": per(len(text), lines),
        "blank_line_share": per(lines - full, lines),
        "log_bytes": math.log1p(len(text)),
    }
    if all(len(word) <= 16 for word in words.values()):
        free = PLACES - len({place_of(word) for word in words.values()})
        found["distinct_word_share"] = per(-PLACES * math.log(max(free, 1) / PLACES), len(words))
    return found


def check(text: str) -> None:
    names = feature_names(8)
    row = dict(zip(names, embed([text], dimensions=8)[0].tolist(), strict=True))
    expected = ratios(text.encode())
    assert set(names[8:]) - set(expected) <= {"distinct_word_share"}
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-7), f"{name} of {text[:2000]!r}"


PIECES = [
    *WORDS,
    *[
        "name",
        "x1",
        "9",
        "12.5",
        "größe",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        ":",
        "=",
        "==",
        "<=",
        "!=",
        "+=",
        "->",
        "@",
        ";",
        "#",
        "r'",
        'f"""',
        "b'",
    ],
    *[
        "'",
        '"',
        "'''",
        '"""',
        "\\",
        '\\"',
        "\\'",
        "''",
        "\0",
        "\t",
        "\r",
        " ",
        "    ",
        "\n",
        "\n    ",
    ],
    *["\\\n", "def f(a):\n    ", '"""Doc."""\n', "# note\n", "from .x import y\n", "a" * 70],
    *["-" * 60, "x" * 1100, "('a', \"b\")\n"],
]
CODE = '"""Words."""\nimport os\n\n\ndef f(a, b):\n    r"""Say."""\n    return [a, "x"]\n'


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=120).map("".join))
def test_any_text_has_the_ratios_of_the_definition(text: str) -> None:
    check(text)


def test_ratios_do_not_depend_on_where_blocks_begin() -> None:
    for shift in [*range(130), *range(990, 1030)]:
        check("#" + "-" * shift + "\n" + CODE * 12)


def test_real_files_have_the_ratios_of_the_definition() -> None:
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::9]
    for text in [path.read_text(encoding="utf-8") for path in paths]:
        if len(text) < 30_000:
            check(text)
