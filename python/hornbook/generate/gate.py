"""What a row must pass before it is accepted: it is taken apart, run, run again, and attacked.

Exercises: parse -> syntax and imports (`answers.py`) -> docstring and signature agree ->
boilerplate -> run against its tests, twice over in each of two processes, with the same results
-> examples in the docstring hold -> mutants of the solution fail its tests -> decontamination.
Textbook sections: code blocks parse -> run in order, and output that is shown equals real output.
Each failure has a code. Novelty is last, in the order of the slots, by whoever counts (`llm.py`).

Model-written code runs in the sandbox only. Costs about (3 + mutants) sandboxed processes a row.

    Gate(Spec(kind="exercises"), GateOptions(), run_programs).check(rows)
"""

import ast
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from hornbook import _core
from hornbook.errors import ConfigError
from hornbook.files import json_lines, write_text
from hornbook.generate.answers import RejectedError, split_blocks, textbook_code
from hornbook.generate.mutants import mutants, text_mutants
from hornbook.generate.prompts import digest
from hornbook.generate.slots import Spec
from hornbook.quality.rubric import own_nodes

Row = dict[str, Any]
Run = Callable[..., Iterable[Any]]
"""`run(programs, timeout_s=..., memory_mb=...)`, such as `hornbook.evaluate.run_programs`: an
outcome a program, in order, with `passed`, and if possible `status` and `output`."""

VERSION = 2
"""Part of what a stored verdict is good for."""
MUTANT_S = 2.0
"""CPU seconds for a mutant, which may never end; that fails it too."""
_PROBED = 8
_CLOCKS = frozenset({"now", "today", "utcnow", "time", "urandom"})
_FILLER = re.compile(
    r"\W*(todo|your code here|sure|certainly|here is|here's|as an ai|this exercise|lorem ipsum)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What is asked of a row."""

    mutants: int = 6
    """Broken versions of each solution that are tried; 0 for none."""
    least_killed: float = 0.5
    """Share of them that the tests must notice. Not all: some changes change nothing. The first,
    a function that returns nothing, must always be noticed."""
    repeats: int = 20
    """Most accepted rows of one structure."""
    benchmarks: tuple[str, ...] = ()
    """Rows that share 13 words in a row with one of these are turned away: `humaneval`, `mbpp`, or
    problem files."""
    repair: bool = False
    """Ask once more, with the reason, where the gate turned an answer away."""
    timeout_s: float = 10.0
    """CPU seconds for a row's program."""
    memory_mb: int = 512
    """Address space for it."""

    def __post_init__(self) -> None:
        if self.mutants < 0 or not 0 <= self.least_killed <= 1 or self.repeats < 1:
            raise ConfigError(
                "gate: mutants must be at least 0, least_killed between 0 and 1, repeats at least 1"
            )


class Gate:
    """Checks rows in batches; pure but for the programs it runs."""

    def __init__(self, spec: Spec, options: GateOptions, run: Run | None) -> None:
        self._spec = spec
        self._options = options
        self._run = run

    def check(self, rows: Sequence[Row]) -> list[RejectedError | None]:
        """For each row, why it is turned away; None if it holds up.

        Adds `signature` to a row that holds up, and `mutants` and `killed` to an exercise.
        """
        found: list[RejectedError | None] = [self._examined(row) for row in rows]
        if self._run is not None:
            self._executed(rows, found)
            if self._spec.kind == "exercises" and self._options.mutants:
                self._attacked(rows, found)
        if self._options.benchmarks:
            self._compared(rows, found)
        for row, why in zip(rows, found, strict=True):
            if why is None:
                row["signature"] = signature(self._spec, row)
        return found

    def _examined(self, row: Row) -> RejectedError | None:
        if self._spec.form is not None or self._spec.kind == "textbooks":
            return None
        try:
            examine(row)
        except RejectedError as error:
            return error
        return None

    def _outcomes(self, programs: Sequence[str], timeout_s: float) -> list[Any]:
        assert self._run is not None
        if not programs:
            return []
        made = self._run(list(programs), timeout_s=timeout_s, memory_mb=self._options.memory_mb)
        return list(made)

    def _executed(self, rows: Sequence[Row], found: list[RejectedError | None]) -> None:
        places = [place for place, why in enumerate(found) if why is None]
        programs = [program(self._spec, rows[place]) for place in places]
        first = self._outcomes([_lucky(text, 0) for text in programs], self._options.timeout_s)
        again = [place for place, outcome in enumerate(first) if outcome.passed]
        other = [_lucky(programs[place], 1) for place in again]
        second = self._outcomes(other, self._options.timeout_s)
        for place, outcome in zip(places, first, strict=True):
            if not outcome.passed:
                found[place] = _failure(outcome)
        for index, outcome in zip(again, second, strict=True):
            same = getattr(outcome, "output", "") == getattr(first[index], "output", "")
            if not outcome.passed or not same:
                found[places[index]] = RejectedError(
                    "not_deterministic", "two runs gave different results"
                )

    def _attacked(self, rows: Sequence[Row], found: list[RejectedError | None]) -> None:
        attacks: list[tuple[int, str]] = []
        for place, row in enumerate(rows):
            if found[place] is None:
                broken = mutant_programs(self._spec, row, self._options.mutants)
                row["mutants"], row["killed"] = len(broken), 0
                attacks += [(place, text) for text in broken]
        outcomes = self._outcomes([text for _, text in attacks], MUTANT_S)
        survived: dict[int, list[int]] = {}
        for (place, _), outcome in zip(attacks, outcomes, strict=True):
            survived.setdefault(place, []).append(bool(outcome.passed))
        for place, passed in survived.items():
            rows[place]["killed"] = killed = len(passed) - sum(passed)
            if passed[0] or killed < self._options.least_killed * len(passed):
                found[place] = RejectedError(
                    "weak_tests", f"{killed} of {len(passed)} broken solutions fail the tests"
                )

    def _compared(self, rows: Sequence[Row], found: list[RejectedError | None]) -> None:
        from hornbook.decontaminate import decontaminate

        places = [place for place, why in enumerate(found) if why is None]
        if not places:
            return
        with tempfile.TemporaryDirectory(prefix="hornbook-gate-") as folder:
            lines = [json.dumps({"id": str(p), "text": rows[p]["text"]}) + "\n" for p in places]
            write_text(Path(folder) / "rows.jsonl", "".join(lines))
            decontaminate(
                [Path(folder) / "rows.jsonl"],
                Path(folder) / "clean",
                benchmarks=list(self._options.benchmarks),
            )
            evidence = (Path(folder) / "clean/evidence/removed.json").read_text("utf-8")
        for entry in json_lines(evidence):
            found[int(entry["id"])] = RejectedError(
                "contaminated", f"shares text with {entry['item']}"
            )


def _lucky(text: str, seed: int) -> str:
    """A program whose `random` draws by this seed: the sandbox gives all of them one."""
    return text if "from __future__" in text else f"__import__('random').seed({seed})\n{text}"


def _failure(outcome: Any) -> RejectedError:
    status = str(getattr(outcome, "status", "failed"))
    lines = str(getattr(outcome, "output", "")).strip().splitlines()
    last = lines[-1][:200] if lines else ""
    if last.endswith(_SHOWN):
        return RejectedError("shown_output", "an example's output is not what running it gives")
    if status in ("cpu", "wall", "memory", "output"):
        return RejectedError("limits", f"{status}: {last}".rstrip(": "))
    return RejectedError("not_verified", f"{status}: {last}".rstrip(": "))


_SHOWN = "shown output differs"


# What is checked without running it


def examine(row: Row) -> None:
    """Checks that an exercise's docstring and signature agree and say something.

    Raises:
        RejectedError: With one of the codes signature, docstring, boilerplate, not_deterministic.
    """
    tree = ast.parse(row["prompt"] + row["solution"])
    function = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == row["entry_point"]
    )
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    bare = [argument.arg for argument in named if argument.annotation is None]
    if bare or function.returns is None:
        what = f"`{bare[0]}` has no type" if bare else "the result has no type"
        raise RejectedError("signature", what)
    returns = any(
        isinstance(node, ast.Yield | ast.YieldFrom)
        or (isinstance(node, ast.Return) and node.value is not None)
        for node in own_nodes(function)
    )
    nothing = isinstance(function.returns, ast.Constant) and function.returns.value is None
    if nothing == returns:
        raise RejectedError("signature", "the type of the result and the body do not agree")
    text = ast.get_docstring(function) or ""
    if len(text) < 20 or _FILLER.match(text):
        raise RejectedError("boilerplate", f"the docstring is {text[:60]!r}")
    described = _described(text)
    names = {argument.arg for argument in named}
    names |= {extra.arg for extra in (arguments.vararg, arguments.kwarg) if extra is not None}
    if described and described != names:
        odd = sorted(described ^ names)[0]
        raise RejectedError("docstring", f"it and the signature do not agree on `{odd}`")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _CLOCKS:
            raise RejectedError("not_deterministic", f"line {node.lineno}: `{node.attr}`")


def _described(text: str) -> set[str]:
    """The arguments that a docstring has a section for: Google's, NumPy's or Sphinx's form."""
    sphinx = set(re.findall(r"^\s*:param (?:[\w\[\], |.]+ )?\*{0,2}(\w+):", text, re.M))
    if sphinx:
        return sphinx
    google = re.search(
        r"^(\s*)(?:Args|Arguments|Parameters):\s*\n((?:\1[ \t]+.*\n?|\s*\n)+)", text, re.M
    )
    if google:
        lines = [line for line in google[2].split("\n") if line.strip()]
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        entries = (re.match(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:", line[indent:]) for line in lines)
        return {entry[1] for entry in entries if entry}
    numpy = re.search(
        r"^\s*Parameters\s*\n\s*-{3,}\n((?:.*\n?)*?)(?=\n\s*\w+\s*\n\s*-{3,}|\Z)", text, re.M
    )
    if numpy:
        return set(re.findall(r"^\*{0,2}(\w+)\s*:", numpy[1], re.M))
    return set()


# What is run


def program(spec: Spec, row: Row) -> str:
    """What has to run without an error, and print the same each time, for a row to be verified."""
    if spec.form is not None:
        values = {name: repr(value) for name, value in _places(spec, row).items()}
        return Template(spec.form.program).substitute(values)
    if spec.kind == "textbooks":
        return _section_program(row["text"])
    code, tests, name = row["prompt"] + row["solution"], row["tests"], row["entry_point"]
    shown = _EXAMPLES.format(name=name) if ">>>" in row["prompt"] else ""
    calls = ", ".join(_calls(tests, name))
    return f"{code}\n{tests}\n{tests}\n{shown}\nprint(repr([{calls}]))\n"


_EXAMPLES = """
import doctest as _doctest
_case = _doctest.DocTestParser().get_doctest({name}.__doc__, dict(globals()), "x", None, 0)
_done = _doctest.DocTestRunner(verbose=False).run(_case, out=lambda _: None)
assert not _done.failed, "shown output differs"
"""


def _calls(tests: str, name: str) -> list[str]:
    """Calls in the tests whose arguments are literals."""
    found = []
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            try:
                for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, RecursionError):
                continue
            found.append(ast.unparse(node))
    return found[:_PROBED]


def _places(spec: Spec, row: Row) -> dict[str, Any]:
    if spec.kind == "textbooks":
        assert spec.form is not None
        blocks = split_blocks(row["text"])[1]
        return {"code": [code for language, code in blocks if language in spec.form.fences]}
    return {"name": row["entry_point"], **row["blocks"]}


_SECTION = """\
import contextlib, doctest, io
_scope = {{"__name__": "section"}}
for _kind, _code, _shown in {steps!r}:
    if _kind == "session":
        _case = doctest.DocTestParser().get_doctest(_code, _scope, "section", None, 0)
        _runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not _runner.run(_case, out=lambda _: None, clear_globs=False).failed, \
"shown output differs"
        _scope.update(_case.globs)
        continue
    _printed = io.StringIO()
    with contextlib.redirect_stdout(_printed):
        exec(compile(_code, "section", "exec"), _scope)
    if _shown is not None:
        assert _printed.getvalue().split() == _shown.split(), "shown output differs"
    print(_printed.getvalue(), end="")
"""


def _section_program(text: str) -> str:
    """Runs a section's blocks in order; sessions and blocks of output must show what comes out."""
    textbook_code(text)
    steps: list[tuple[str, str, str | None]] = []
    for language, code in split_blocks(text)[1]:
        if language in ("py", "python", "pycon"):
            kind = "session" if code.lstrip().startswith(">>>") else "code"
            steps.append((kind, code, None))
        elif language in ("output", "text", "console") and steps and steps[-1][0] == "code":
            kind, before, shown = steps[-1]
            if shown is None and "print(" in before:
                steps[-1] = (kind, before, code)
    return _SECTION.format(steps=steps)


def mutant_programs(spec: Spec, row: Row, most: int) -> list[str]:
    """Programs with a broken solution; tests worth having fail them."""
    if spec.form is not None:
        broken = text_mutants(row["blocks"]["solution"], spec.form.mutations, most=most)
        return [
            program(spec, {**row, "blocks": {**row["blocks"], "solution": text}}) for text in broken
        ]
    code = row["prompt"] + row["solution"]
    return [f"{text}\n{row['tests']}" for text in mutants(code, row["entry_point"], most=most)]


# What a row is like


def code_of(spec: Spec, row: Row) -> str:
    """A row's code without docstring: what shows its concept."""
    if spec.kind == "textbooks":
        tags = spec.form.fences if spec.form else ("py", "python", "pycon")
        return "\n".join(
            code for language, code in split_blocks(row["text"])[1] if language in tags
        )
    if spec.form is not None:
        return str(row["blocks"]["solution"])
    return f"def {row['entry_point']}(x):\n{row['solution']}"


def signature(spec: Spec, row: Row) -> str:
    """What a row's code is but for names and values, as 32 hexadecimal digits or fewer.

    Python: of the first function (of each block, in a section), by its syntax tree. Otherwise: of
    the words that are keywords and the marks between them.
    """
    if spec.curriculum.language == "python":
        sources = [row["text"]] if spec.kind == "exercises" else textbook_code(row["text"])
        found = []
        for source in sources:
            try:
                found.append(_core.signature(source))
            except ConfigError:  # a block without a function
                continue
        if found:
            return found[0] if len(found) == 1 else f"{digest(*found):016x}"
    keywords = {word.lower() for word in spec.curriculum.keywords}
    shape = []
    for word, mark in re.findall(r"('[^']*'|\"[^\"]*\"|\w+)|([^\w\s])", code_of(spec, row)):
        if mark:
            shape.append(mark)
        else:
            shape.append(word.lower() if word.lower() in keywords else "_")
    return f"{digest(*shape):016x}"


def gist(spec: Spec, row: Row) -> str:
    """One line on what a row is about, fit to stand in a prompt: no longer than 120 characters."""
    if spec.kind == "textbooks":
        lines = (line.lstrip("#* ").strip() for line in row["text"].split("\n"))
        text = next((line for line in lines if line), "")
    elif spec.form is not None:
        blocks = row["blocks"]
        text = str(next(blocks[name] for name in spec.form.blocks if name != "solution"))
        text = f"{row['entry_point']}: {text}"
    else:
        tree = ast.parse(row["prompt"] + row["solution"])
        texts = [
            ast.get_docstring(node) or ""
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == row["entry_point"]
        ]
        text = f"{row['entry_point']}: {texts[0] if texts else ''}"
    line = " ".join(re.sub(r"[^\w\s.,:;()'=<>+*/%-]", " ", text).split())
    return line[:120]
