import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook.quality.rubric import rubric

USEFUL = '''
def running_mean(values, size):
    """Returns the mean of every window of the given size."""
    means = []
    for start in range(len(values) - size + 1):
        window = values[start : start + size]
        means.append(sum(window) / size)
    return means
'''
BARE = USEFUL.replace('    """Returns the mean of every window of the given size."""\n', "")
CONFIG = '''"""Settings of the production deployment of the billing service."""

# Address of the database host.
DATABASE_HOST = "db.internal"
# Port on which the database listens.
DATABASE_PORT = 5432
RETRIES = {"first": 1, "second": 2}
'''
DOCUMENTED_GETTERS = '''
class Account:
    """An account that holds the money of one of our customers."""

    def __init__(self, owner, balance):
        """Makes an account with the given owner and starting balance."""
        self._owner = owner
        self._balance = balance

    def get_owner(self):
        """Returns the person whose money is kept here."""
        return self._owner

    def get_balance(self):
        """Returns the amount of money that is kept here."""
        return self._balance
'''
GUI = '''
import tkinter


class Window(tkinter.Frame):
    """The main window, with two buttons and a field for text."""

    def build(self, width):
        """Builds all the widgets and puts them in their places."""
        self.button = tkinter.Button(self)
        self.button.configure(width=width * 2)
        self.field = tkinter.Entry(self)
        self.field.pack()
        self.button.pack()
        if width > 3:
            self.master.title("wide")
        return self.button
'''


def test_useful_functions_pass_with_and_without_docstring() -> None:
    assert rubric(USEFUL)[0] >= 8
    assert 5 <= rubric(BARE)[0] < rubric(USEFUL)[0]


@pytest.mark.parametrize("text", [CONFIG, DOCUMENTED_GETTERS, GUI])
def test_docstrings_alone_do_not_pass(text: str) -> None:
    assert rubric(text)[0] < 5


def test_leaning_on_others_costs() -> None:
    whole = rubric(USEFUL)[0]
    for line in ("import numpy as np\n", "from . import tools\n"):
        score, reason = rubric(line + USEFUL)
        assert score <= 6 < whole
        assert "imports" in reason
    score, reason = rubric(USEFUL.replace("sum(window)", "add_up(window)"))
    assert score < whole
    assert "undefined: add_up" in reason
    assert rubric("import math\n" + USEFUL)[0] == pytest.approx(whole, abs=0.3)


def test_scripts_that_compute_beat_scripts_that_do_not() -> None:
    computing = "total = 0\nfor i in range(10):\n    total += i * i\nprint(total)\n"
    assert rubric(computing)[0] > rubric("print('a')\nprint('b')\nprint('c')\n")[0] + 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "does not parse"),
        ("", "no code"),
        ("# only words\n", "no code"),
        ("a\0b", "does not parse"),
        ("(" * 100_000, "does not parse"),
        ("x = " + "-" * 100_000 + "1", "does not parse"),
    ],
)
def test_what_is_no_code_scores_nothing(text: str, reason: str) -> None:
    assert rubric(text) == (0.0, reason)


def test_warnings_about_the_text_are_not_raised() -> None:
    assert rubric("x = '\\d'\nassert (1, 2)\n")[0] > 0


def test_new_syntax_is_understood() -> None:
    text = "def f(x):\n    match x:\n        case [a, *rest] if a > 1:\n            return rest\n"
    assert "undefined" not in rubric(text)[1]
    if sys.version_info >= (3, 12):
        assert "undefined" not in rubric("def f[T](x: T) -> T:\n    return x\n")[1]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=100), st.sampled_from([USEFUL, CONFIG, GUI, DOCUMENTED_GETTERS]))
def test_scores_stay_on_the_scale(noise: str, text: str) -> None:
    for candidate in (noise, text + f"\nnoise = {noise!r}\n"):
        score, reason = rubric(candidate)
        assert 0 <= score <= 10
        assert reason
        assert rubric(candidate) == (score, reason)
