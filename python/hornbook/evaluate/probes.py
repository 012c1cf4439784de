"""Probes: what a score does not say. Side-by-side answers, wording, counting, space, imports.

- **Side by side** (paper, section 3): prompts of five kinds (composed instructions, PyGame,
  Tkinter, pyplot, chat), completed by each model; for people to read, and for a page.
- **Robustness** (paper, section 4): HumanEval's docstrings reworded in seven stated kinds, by rule
  and seed; pass@1 before and after on the same problems, with an interval of the paired change.
- **Counting and space**: items with one right answer, made by rule, run in the sandbox.
- **Imports**: what the training set imports beside what the answers import.

    perturb(problem, "slips", seed=0).prompt
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

from hornbook.evaluate.passk import wilson_interval
from hornbook.evaluate.problems import Problem

KINDS = {
    "paraphrase": "common phrases replaced by others of the same meaning, from a table",
    "lengthened": "three sentences that say the same task again, put around the text",
    "numbered": "each sentence as an item of a numbered list",
    "slips": "articles dropped, verbs unconjugated, letters swapped: about one word in eight",
    "irrelevant": "one true sentence that has nothing to do with the task, in the middle",
    "renamed": "the function called `candidate_function`; a word of the task like its name stays",
    "reordered": "the docstring's examples in the opposite order",
}
"""The seven kinds of perturbation, in words."""

_PHRASES = {
    r"write a function (?:that|which)": "this function",
    r"create a function": "define a function",
    r"you are given": "you get",
    r"you should": "the function must",
    r"check if": "find out whether",
    r"given": "provided",
    r"returns": "gives back",
    r"return": "give back",
    r"find(?! out)": "work out",
    r"list of": "sequence of",
    r"(?<!total\s)sum of": "total of",
    r"number of": "count of",
    r"greater than": "larger than",
    r"less than": "smaller than",
    r"is empty": "has nothing in it",
    r"an empty (\w+)": "a {} with nothing in it",
    r"(?<!to\s)empty (\w+)": "{} with nothing in it",
    r"integers": "whole numbers",
    r"an integer": "a whole number",
    r"integer": "whole number",
    r"strings": "pieces of text",
    r"string": "piece of text",
    r"(?<!prime\s)(?<!natural\s)(?<!point\s)numbers": "values",
    r"(?<!prime\s)(?<!natural\s)(?<!point\s)number": "value",
}
"""Phrases, longer ones before those that they hold; a space is any white space."""
_WORDS = {re.compile(one.replace(" ", r"\s+"), re.IGNORECASE): w for one, w in _PHRASES.items()}
_ANY_PHRASE = re.compile(
    rf"(?<![\w-])(?:{'|'.join(one.pattern for one in _WORDS)})(?![\w-])", re.IGNORECASE
)
_IRRELEVANT = (
    "The library is closed on Mondays.",
    "This was first discussed on a train to the coast.",
    "Blue is a popular colour for bicycles.",
    "The author of this text has two cats.",
)
_DOCSTRING = re.compile(r'(?P<quote>"""|\'\'\')(?P<text>.*?)(?P=quote)\s*\Z', re.DOTALL)
_STRINGS = re.compile(r'("""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\')')
_EXAMPLES = re.compile(
    r"(?m)^[ \t]*(?:>>>|examples?\b|for example|e\.g\.)|=>|->|==>|➞", re.IGNORECASE
)


def perturb(problem: Problem, kind: str, *, seed: int = 0) -> Problem | None:
    """The problem with its docstring or its name changed; None where the kind changes nothing.

    Args:
        problem: Its prompt ends in the docstring of the function that is asked for.
        kind: One of `KINDS`.
        seed: Of what is chosen; with the task, it decides every choice.
    """
    draw = random.Random(f"{seed}/{kind}/{problem.task_id}")
    if kind == "renamed":
        return _renamed(problem)
    match = _DOCSTRING.search(problem.prompt)
    if match is None:
        return None
    text = match["text"]
    edge = _EXAMPLES.search(text)
    words, examples = (text[: edge.start()], text[edge.start() :]) if edge else (text, "")
    if kind == "reordered":
        changed = _reordered(text, problem.entry_point)
    elif kind == "paraphrase":
        changed = _paraphrase(words, problem) + examples
    else:
        changed = _WAYS[kind](words, draw) + examples
    if changed == text or match["quote"] in changed:
        return None
    at = match.start("text")
    prompt = problem.prompt[:at] + changed + problem.prompt[match.end("text") :]
    return replace(problem, prompt=prompt, preamble=prompt)


def _renamed(problem: Problem) -> Problem:
    name = re.escape(problem.entry_point)
    code = re.compile(rf"\b{name}\b")
    # In prose a name without `_` may be a word like any other, which the task is told by.
    prose = code
    if "_" not in problem.entry_point:
        prose = re.compile(rf"\b{name}(?=\()|(?<=[`'\"]){name}(?=[`'\"])|(?<=function ){name}\b")

    def new(text: str) -> str:
        parts = _STRINGS.split(text)
        return "".join(
            (prose if place % 2 else code).sub("candidate_function", part)
            for place, part in enumerate(parts)
        )

    return replace(
        problem,
        prompt=new(problem.prompt),
        preamble=new(problem.preamble),
        test=code.sub("candidate_function", problem.test),
        canonical_solution=new(problem.canonical_solution),
        entry_point="candidate_function",
    )


def _margin(text: str) -> str:
    """The white space that the docstring's lines begin with."""
    lines = [line for line in text.split("\n")[1:] if line.strip()]
    return re.match(r"[ \t]*", lines[0])[0] if lines else "    "  # type: ignore[index]


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part]


def _paraphrase(text: str, problem: Problem) -> str:
    names = _parameters(problem)

    def other(match: re.Match[str]) -> str:
        said = match.group()
        if said.lower() in names or (said.startswith("write a") and match.start()):
            return said
        for pattern, words in _WORDS.items():
            # In its place: what stands around it may decide.
            found = pattern.match(match.string, match.start())
            if found and found.end() == match.end():
                words = words.format(*found.groups())
                return words[0].upper() + words[1:] if said[0].isupper() else words
        return said

    # What is quoted, and a line that calls the function, is no wording.
    fixed = rf"(`[^`]*`|'[^'\n]*'|\"[^\"\n]*\"|[^\n]*\b{re.escape(problem.entry_point)}\([^\n]*)"
    parts = re.split(fixed, text)
    return "".join(one if i % 2 else _ANY_PHRASE.sub(other, one) for i, one in enumerate(parts))


def _parameters(problem: Problem) -> set[str]:
    """Names of the asked function's parameters, which its text speaks of."""
    found = re.search(rf"def {re.escape(problem.entry_point)}\(([^)]*)", problem.prompt)
    return set(re.findall(r"\w+(?=\s*(?::|,|=|$))", found[1].lower())) if found else set()


def _lengthened(text: str, draw: random.Random) -> str:
    margin = _margin(text)
    return (
        f" The following describes a task to be solved by this function.\n{margin}{text.strip()}\n"
        f"{margin}In other words, the function has to do exactly what was described above,\n"
        f"{margin}for every input that fits the description, and give its result to the caller.\n"
        f"{margin}"
    )


def _numbered(text: str, draw: random.Random) -> str:
    margin = _margin(text)
    items = "".join(f"{margin}{i}. {one}\n" for i, one in enumerate(_sentences(text), 1))
    return f"\n{items}{margin}" if items else text


def _slips(text: str, draw: random.Random) -> str:
    def slip(match: re.Match[str]) -> str:
        word = match.group()
        if draw.random() > 0.25:
            return word
        if word.lower() in ("a", "an", "the"):
            return ""
        if word.lower() in ("is", "are", "has", "have"):
            return {"is": "are", "are": "is", "has": "have", "have": "has"}[word.lower()]
        if len(word) > 4 and word.islower():
            place = draw.randrange(1, len(word) - 2)
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        return word

    # Names in quotes and code stay: only prose slips.
    return re.sub(r"(?<![\w'`\"_.(\[])[A-Za-z]+(?![\w'`\"_(\[])", slip, text)


def _irrelevant(text: str, draw: random.Random) -> str:
    margin, sentences = _margin(text), _sentences(text)
    sentences.insert((len(sentences) + 1) // 2, draw.choice(_IRRELEVANT))
    lines = "".join(f"{margin}{one}\n" for one in sentences)
    return f"\n{lines}{margin}"


_WAYS = {
    "lengthened": _lengthened,
    "numbered": _numbered,
    "slips": _slips,
    "irrelevant": _irrelevant,
}


def _reordered(text: str, name: str) -> str:
    """Calls of the function the other way round: doctests, or else lines with a result.

    As they are, if any of them is more than a call or is spoken of by the line after it.
    """
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.lstrip().startswith(">>>")]
    blocks: list[tuple[int, int]] = []
    if starts:
        for start, following in zip(starts, [*starts[1:], len(lines)], strict=True):
            blank = (i for i in range(start, following) if not lines[i].strip())
            blocks.append((start, next(blank, following)))
        if not all(re.match(rf"\s*>>> .*\b{re.escape(name)}\(", lines[i]) for i in starts):
            return text
    else:
        call = re.compile(rf"\s*{re.escape(name)}\(.*\)\s*(?:==?>?|[-=]+>|➞)\s*\S")
        blocks = [(i, i + 1) for i, line in enumerate(lines) if call.match(line)]
        for start, end in blocks:
            after = lines[end] if end < len(lines) else ""
            even = all(
                lines[start].count(x) == lines[start].count(y) for x, y in ("()", "[]", "{}")
            )
            if not even or (after.strip() and not call.match(after)):
                return text
    made, at = [], 0
    for (start, end), (first, last) in zip(blocks, reversed(blocks), strict=True):
        made += [*lines[at:start], *lines[first:last]]
        at = end
    return "\n".join([*made, *lines[at:]])


def change(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """The paired change of pass@1 with its 95% interval.

    Args:
        before: Whether each problem was solved as it is.
        after: Whether it was when changed, in the same order.

    Returns:
        `n`, `before`, `after`, `change`, `low`, `high`: Newcombe's score interval for paired
        proportions (Statistics in Medicine 17, 1998, p. 2635, method 10), which holds for few
        problems and rare changes too.
    """
    n = len(before)
    if n == 0:
        return {"n": 0, "before": 0.0, "after": 0.0, "change": 0.0, "low": -1.0, "high": 1.0}
    cells = Counter(zip(map(bool, after), map(bool, before), strict=True))
    both, gained, lost, neither = (
        cells[one] for one in ((True, True), (True, False), (False, True), (False, False))
    )
    p, q = (both + gained) / n, (both + lost) / n
    (p_low, p_high), (q_low, q_high) = wilson_interval(p, n), wilson_interval(q, n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(0.0, excess - n / 2)
    phi = excess / sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    return {
        "n": n,
        "before": q,
        "after": p,
        "change": p - q,
        "low": max(-1.0, p - q - reach(p - p_low, q_high - q)),
        "high": min(1.0, p - q + reach(p_high - p, q - q_low)),
    }


def _item(
    name: str, group: str, signature: str, docstring: str, checks: Iterable[str], body: str
) -> Problem:
    prompt = f'def {signature}:\n    """{docstring}"""\n'
    function = signature.partition("(")[0]
    return Problem(
        task_id=f"Probe/{name}",
        prompt=prompt,
        preamble=prompt,
        test="\n".join(checks),
        entry_point=function,
        canonical_solution=body,
        group=group,
    )


def counting_items() -> list[Problem]:
    """Problems in which nothing is hard but to count: how many, which one, how far."""
    items = []
    ordinals = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
    for place, ordinal in enumerate(ordinals):
        name = f"take_{ordinal}"
        items.append(
            _item(
                name,
                "counting",
                f"{name}(items)",
                f"Return the {ordinal} of the items, which are at least nine.",
                [
                    f"assert {name}(list(range(9))) == {place}",
                    f"assert {name}('abcdefghi') == {'abcdefghi'[place]!r}",
                ],
                f"    return items[{place}]\n",
            )
        )
    for count, word in ((3, "three"), (4, "four"), (5, "five"), (7, "seven"), (12, "twelve")):
        name = f"exactly_{word}"
        items.append(
            _item(
                name,
                "counting",
                f"{name}(text)",
                f"Return True if text holds exactly {word} letters, not counting anything else.",
                [
                    f"assert {name}('a' * {count}) is True",
                    f"assert {name}('a1 -' * {count}) is True",
                    f"assert {name}('a' * {count + 1}) is False",
                    f"assert {name}('a' * {count - 1} + '7') is False",
                ],
                f"    return sum(char.isalpha() for char in text) == {count}\n",
            )
        )
    for every, word in ((2, "second"), (3, "third"), (4, "fourth")):
        name = f"drop_every_{word}"
        kept = [i for i in range(1, 13) if i % every]
        items.append(
            _item(
                name,
                "counting",
                f"{name}(items)",
                f"Return the items as a list without every {word} one (counting from one).",
                [f"assert {name}(list(range(1, 13))) == {kept}", f"assert {name}([]) == []"],
                f"    return [x for i, x in enumerate(items, 1) if i % {every}]\n",
            )
        )
    return items


def spatial_items() -> list[Problem]:
    """Problems in which nothing is hard but to see where things are."""
    items = []
    moves = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
    for name, (dx, dy) in moves.items():
        for steps in (1, 3):
            function = f"{steps}_{name}".replace("1_", "one_").replace("3_", "three_")
            items.append(
                _item(
                    function,
                    "spatial",
                    f"{function}(x, y)",
                    f"Return the point (x, y) that is {steps} to the {name}. East is the direction "
                    "of growing x,\n    north of growing y.\n    ",
                    [f"assert {function}(5, 7) == ({5 + steps * dx}, {7 + steps * dy})"],
                    f"    return (x + {steps * dx}, y + {steps * dy})\n",
                )
            )
    turns = {
        "left": "[list(row) for row in zip(*grid)][::-1]",
        "right": "[list(row) for row in zip(*grid[::-1])]",
    }
    for side, code in turns.items():
        turned = [[3, 6], [2, 5], [1, 4]] if side == "left" else [[4, 1], [5, 2], [6, 3]]
        function = f"turn_{side}"
        items.append(
            _item(
                function,
                "spatial",
                f"{function}(grid)",
                f"Return the grid (a list of rows) turned by a quarter to the {side}.",
                [f"assert [list(r) for r in {function}([[1, 2, 3], [4, 5, 6]])] == {turned}"],
                f"    return {code}\n",
            )
        )
    flips = {
        "upside_down": ("grid[::-1]", [[4, 5, 6], [1, 2, 3]]),
        "mirrored": ("[row[::-1] for row in grid]", [[3, 2, 1], [6, 5, 4]]),
    }
    for function, (code, flipped) in flips.items():
        items.append(
            _item(
                function,
                "spatial",
                f"{function}(grid)",
                f"Return the grid (a list of rows) {function.replace('_', ' ')}"
                + (" (left and right exchanged)." if function == "mirrored" else "."),
                [f"assert {function}([[1, 2, 3], [4, 5, 6]]) == {flipped}"],
                f"    return {code}\n",
            )
        )
    corners = {
        "top_left": "grid[0][0]",
        "top_right": "grid[0][-1]",
        "bottom_left": "grid[-1][0]",
        "bottom_right": "grid[-1][-1]",
    }
    for value, (corner, code) in zip((1, 3, 7, 9), corners.items(), strict=True):
        items.append(
            _item(
                f"corner_{corner}",
                "spatial",
                f"corner_{corner}(grid)",
                f"Return what stands in the {corner.replace('_', ' ')} corner of the grid, a list "
                "of rows from the top.",
                [f"assert corner_{corner}([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) == {value}"],
                f"    return {code}\n",
            )
        )
    return items


SIDE_BY_SIDE: dict[str, tuple[str, ...]] = {
    "composed instructions": (
        'def shift_and_join(words):\n    """Take the words that are longer than three letters, '
        "reverse each of them, sort them by\n    their second letter, join them with a dash, and "
        'return the result in upper case if it holds\n    an even number of dashes.\n    """\n',
        'def odd_rows(table):\n    """For each row of the table with an odd sum, replace negative '
        "numbers by zero, then append\n    the row's length; drop the other rows; return the rows "
        'in the opposite order.\n    """\n',
        'def ticket_price(age, hour, friends):\n    """A ticket costs 12. Under 12 years it costs '
        "half. After 18 o'clock it costs 3 more. Every\n    third friend is free. Return the price "
        'for the person and the friends, all of the same age.\n    """\n',
    ),
    "pygame": (
        "import pygame\n\n# A window of 640 by 480 in which a ball moves and bounces off the edges."
        " The ball is red,\n# and pressing SPACE doubles its speed.\n",
        "import pygame\n\n# Draw a paddle that follows the mouse, and count how often it is "
        "clicked.\n",
    ),
    "tkinter": (
        "import tkinter as tk\n\n# A window with a text field, a button `Reverse`, and a label that"
        " shows the text backwards\n# after the button is pressed.\n",
        "import tkinter as tk\n\n# A window with a counter and two buttons, `more` and `less`.\n",
    ),
    "pyplot": (
        "import matplotlib.pyplot as plt\n\n# Plot sine and cosine from 0 to 2 pi in one figure, "
        "with a legend, and fill between them.\n",
        "import matplotlib.pyplot as plt\n\n# Draw a bar chart of the word lengths in `text`, "
        'sorted by length.\ntext = "textbooks are all you need"\n',
    ),
    "chat": (
        "Student: I have a list of names and want the ones that start with a vowel. What should I "
        "write?\n\nTA:",
        "Student: My loop never ends. I wrote `while i < 10: print(i)`. Why?\n\nTA:",
        "Student: What is the difference between a list and a tuple?\n\nTA:",
    ),
}
"""Prompts of the paper's kinds; the words are ours."""


def side_by_side_problems() -> list[Problem]:
    """`SIDE_BY_SIDE` as problems without tests, to be drawn by any model."""
    return [
        Problem(
            task_id=f"Probe/{kind}/{number}",
            prompt=prompt,
            test="",
            entry_point="",
            preamble=prompt,
            group=kind,
        )
        for kind, prompts in SIDE_BY_SIDE.items()
        for number, prompt in enumerate(prompts, 1)
    ]


_IMPORT = re.compile(r"(?m)^[ \t]*(?:import[ \t]+([\w., \t]+)|from[ \t]+(\w+)[\w.]*[ \t]+import\b)")


def imports(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """How many of the texts import each top-level package, and how many texts there are.

    By lines, so broken code counts too.
    """
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        number += 1
        found = set()
        for several, one in _IMPORT.findall(text):
            names = [one] if one else several.split(",")
            found |= {name.split()[0].partition(".")[0] for name in names if name.split()}
        counts.update(name for name in found if name.isidentifier())
    return counts, number


def import_table(
    training: Iterable[str], answers: Iterable[str], *, most: int = 25
) -> list[dict[str, Any]]:
    """Shares of texts that import a package, in the training set and in the answers.

    Args:
        training: The training set's texts.
        answers: Completions, with their prompts' imports left out.
        most: Rows at most, the commonest in either first.
    """
    (left, here), (right, there) = imports(training), imports(answers)
    shares: list[dict[str, Any]] = [
        {
            "package": name,
            "training": left[name] / max(1, here),
            "answers": right[name] / max(1, there),
        }
        for name in left.keys() | right.keys()
    ]
    shares.sort(key=lambda row: (-max(row["training"], row["answers"]), row["package"]))
    return shares[:most]
