"""A corpus with known truth: useful functions among configuration, glue and getters."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

OPERATIONS = ["x + {k}", "x * {k}", "x - {k}", "abs(x) % {k}", "x ** 2 // {k}"]
TESTS = ["x > {k}", "x % {k} == 0", "x < {k}", "x != {k}"]
NAMES = ["values", "numbers", "items", "prices", "lengths", "ages", "readings"]
WORDS = ["server", "cache", "queue", "theme", "logger", "panel", "client", "token", "user", "mail"]


def useful(rng: random.Random) -> str:
    name, k = rng.choice(NAMES), rng.randint(2, 9)
    operation = rng.choice(OPERATIONS).format(k=k)
    test = rng.choice(TESTS).format(k=rng.randint(2, 9))
    doc = (
        f'    """Returns the chosen {name}, changed one by one."""\n' if rng.random() < 0.5 else ""
    )
    if rng.random() < 0.5:
        body = f"    return [{operation} for x in {name} if {test}]\n"
    else:
        body = (
            f"    total = 0\n    for x in {name}:\n        if {test}:\n"
            f"            total += {operation}\n    return total\n"
        )
    return f"def change_{name}_{k}({name}):\n{doc}{body}"


def junk(rng: random.Random) -> str:
    words = rng.sample(WORDS, 4)
    doc = f'"""Everything about the {words[0]} of the {words[1]}, in one place."""\n'
    kind = rng.randrange(3)
    if kind == 0:
        lines = [f"{w.upper()}_{rng.randint(1, 99)} = {rng.choice(WORDS)!r}" for w in words * 2]
        return doc + "\n".join(lines) + "\n"
    if kind == 1:
        getters = "".join(f"    def get_{w}(self):\n        return self._{w}\n\n" for w in words)
        return f"{doc}class {words[0].title()}:\n{getters}"
    calls = "".join(f"        self.{w}.set_{words[0]}({rng.randint(1, 9)})\n" for w in words)
    return f"{doc}from .{words[0]} import Base\n\n\nclass App(Base):\n    def setup(self):\n{calls}"


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes `n` documents, a quarter of them useful, with the truth in a column."""

    def make(n: int = 400, seed: int = 0) -> Path:
        rng = random.Random(seed)
        path = tmp_path / f"corpus-{seed}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                good = rng.random() < 0.25
                text = useful(rng) if good else junk(rng)
                row = {"id": f"{seed}-{i}", "text": text, "good": good, "source": "ab"[i % 2]}
                file.write(json.dumps(row) + "\n")
        return path

    return make
