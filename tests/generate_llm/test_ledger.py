"""The ledger: states, what a kill leaves, who may open it."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hornbook.errors import InputError, ResumeError, StorageError
from hornbook.generate.ledger import Answer, Ledger, read_totals

ANSWER = Answer(
    text="a\x00b é \U0001f600",
    finish="stop",
    served_model="m-1",
    prompt_tokens=3,
    completion_tokens=4,
    charged_tokens=7,
    cost_usd=0.25,
)


def intend(ledger: Ledger, key: str, usd: float | None = 0.5) -> None:
    ledger.intend(
        key,
        model="m",
        slot="0/0",
        attempt=0,
        prompt_id="p",
        request={"messages": [], "params": {}},
        reserved_usd=usd,
        reserved_tokens=10,
    )


def test_an_answer_survives_reopening_byte_for_byte(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        intend(ledger, "k")
        assert ledger.answer("k") is None
        ledger.settle("k", ANSWER)
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.answer("k") == ANSWER
        assert ledger.left_behind == 0
        totals = ledger.totals()
    assert (totals.answered, totals.usd, totals.tokens, totals.lost) == (1, 0.25, 7, 0)
    assert totals.unpriced == ()


def test_what_was_under_way_is_lost_once_and_its_reserve_counts(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(tmp_path / "l") as ledger:
            intend(ledger, "k")
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.left_behind == 1
        totals = ledger.totals()
        assert (totals.lost, totals.lost_usd, totals.lost_tokens) == (2, 1.0, 20)
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.left_behind == 0
        intend(ledger, "k")
        ledger.settle("k", ANSWER)
        totals = ledger.totals()
    assert (totals.answered, totals.lost, totals.usd, totals.lost_usd) == (1, 2, 0.25, 1.0)


def test_failures_cost_nothing_unless_they_may_have(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        intend(ledger, "a")
        ledger.fail("a", "HTTP 500", billed=False)
        intend(ledger, "b")
        ledger.fail("b", "cut off", billed=True)
        totals = ledger.totals()
        assert ledger.answer("a") is None
    assert (totals.failed, totals.lost, totals.lost_usd) == (1, 1, 0.5)


def test_an_answer_is_never_replaced_by_an_intent(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        intend(ledger, "k")
        ledger.settle("k", ANSWER)
        intend(ledger, "k")
        assert ledger.answer("k") == ANSWER


def test_models_without_a_price_are_named(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        intend(ledger, "k", usd=None)
        ledger.fail("k", "cut off", billed=True)
        assert ledger.totals().unpriced == ("m",)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l"), pytest.raises(ResumeError, match="another run holds"):
        Ledger(tmp_path / "l")
    Ledger(tmp_path / "l").close()


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(b"not a database, certainly not one of ours" * 40)
    with pytest.raises(InputError, match="not a readable ledger"):
        Ledger(noise)
    assert noise.read_bytes().startswith(b"not a database")
    other = tmp_path / "other"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE theirs (x)")
    database.commit()
    database.close()
    with pytest.raises(InputError, match="not a ledger"):
        Ledger(other)
    with pytest.raises(StorageError):
        Ledger(tmp_path / "noise" / "inside")


def test_totals_are_read_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "l#1?.sqlite"
    code = (
        "import os, sys\nfrom hornbook.generate.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\nledger.intend('k', model='m', slot='s', attempt=0, "
        "prompt_id='p', request={}, reserved_usd=None, reserved_tokens=10)\nos._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    before = path.read_bytes()
    totals = read_totals(path)
    assert totals is not None
    assert (totals.answered, totals.lost) == (0, 0)
    assert path.read_bytes() == before
    # The next run counts what was under way.
    with Ledger(path) as ledger:
        assert ledger.totals().lost == 1
        assert read_totals(path) is None  # in use
    (tmp_path / "no").write_bytes(b"no database" * 100)
    assert read_totals(tmp_path / "no") is None
