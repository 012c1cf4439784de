"""Fifty problems unlike what exercises, textbooks and benchmarks ask, in HumanEval's form.

Section 4 of the paper scores models on 50 problems of its own that it does not publish; these are
ours. Each composes a few odd rules that must all be followed, so that nothing learned by heart
helps. In `set_*.py` each stands as a function (signature and docstring are the prompt, the body is
the reference) with its tests after it, which neither a model nor a grader is shown. These files
are read, never imported.

    load_problems("unconventional")[0].prompt
"""

import ast
import hashlib
from importlib.resources import files

from hornbook.evaluate.problems import Problem, ProblemSet

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
SETS = ("numbers", "words", "lists", "grids", "machines")


def load() -> ProblemSet:
    """The problems, by set."""
    folder = files("hornbook.evaluate.unconventional")
    texts = [folder.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in SETS]
    problems = [
        problem for name, text in zip(SETS, texts, strict=True) for problem in _problems(name, text)
    ]
    return ProblemSet(
        name="unconventional",
        problems=tuple(problems),
        sha256=hashlib.sha256("".join(texts).encode()).hexdigest(),
        protocol="completion",
        stop=STOP,
    )


def _problems(group: str, text: str) -> list[Problem]:
    """The problems of a file: functions, each followed by its `check_` function."""
    lines = text.splitlines(keepends=True)
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]

    def source(first: ast.AST, last: ast.AST) -> str:
        return "".join(lines[first.lineno - 1 : last.end_lineno])  # type: ignore[attr-defined]

    problems = []
    for asked, tests in zip(functions[::2], functions[1::2], strict=True):
        assert tests.name == f"check_{asked.name}", tests.name
        prompt = source(asked, asked.body[0])
        check = source(tests, tests).replace(tests.name, "check", 1)
        problems.append(
            Problem(
                task_id=f"Unconventional/{asked.name}",
                prompt=prompt,
                test=f"from typing import Any\n\n{check}\ncheck({asked.name})",
                entry_point=asked.name,
                canonical_solution=source(asked.body[1], asked.body[-1]),
                preamble=prompt,
                group=group,
            )
        )
    return problems
