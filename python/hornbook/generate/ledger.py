"""The ledger: every call to a paid endpoint, written down before it is sent and after it answered.

One SQLite file. A slot is *planned*; its call is `intent` (its greatest possible cost reserved)
before it is sent, then `answered` or `failed`; its answer gets a *verdict*; its row is *committed*
when a data set is whole on disk. What was answered is never sent again. A call that was under way
when its run was killed may have been billed: when the ledger is next opened it becomes `lost`, and
its reserve counts as spent from then on. Costs two small transactions a call (well under a
millisecond) and about the size of the texts on disk. A killed process loses nothing; a power cut
may lose the last moments (write-ahead log, synchronous=NORMAL). One run at a time holds it.

It holds prompts and answers; no key, header or address is ever handed to it.

    with Ledger("runs/teacher.ledger") as ledger: print(ledger.totals())
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from hornbook.errors import InputError, ResumeError, StorageError
from hornbook.files import StrPath

_APPLICATION = 0x48424C47  # "HBLG", so that another program's database is not taken for ours
_SCHEMA = 2
_TABLES = (
    """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('intent', 'answered', 'failed', 'lost')),
    model TEXT NOT NULL,
    slot TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    prompt_id TEXT NOT NULL,
    request TEXT NOT NULL,
    reserved_usd REAL,
    reserved_tokens INTEGER NOT NULL,
    text TEXT,
    finish TEXT,
    served_model TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    charged_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL,
    error TEXT,
    lost_calls INTEGER NOT NULL DEFAULT 0,
    lost_usd REAL NOT NULL DEFAULT 0,
    lost_tokens INTEGER NOT NULL DEFAULT 0,
    sent REAL NOT NULL,
    settled REAL
)
""",
    # What each block of slots asks for: written before its first call, so that a run that goes on
    # asks the same whatever it has learned since.
    """
CREATE TABLE IF NOT EXISTS plans (
    run TEXT NOT NULL, block INTEGER NOT NULL, slots TEXT NOT NULL, PRIMARY KEY (run, block)
) WITHOUT ROWID
""",
    # What the gate said of an answer: it need not be run again.
    """
CREATE TABLE IF NOT EXISTS verdicts (
    call TEXT NOT NULL,
    gate TEXT NOT NULL,
    run TEXT NOT NULL,
    slot INTEGER NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    found TEXT NOT NULL,
    PRIMARY KEY (call, gate)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS commits (
    run TEXT NOT NULL, folder TEXT NOT NULL, slots INTEGER NOT NULL, rows INTEGER NOT NULL,
    time REAL NOT NULL, PRIMARY KEY (run, folder)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS batches (
    name TEXT PRIMARY KEY, id TEXT NOT NULL, calls TEXT NOT NULL
) WITHOUT ROWID
""",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one call."""

    text: str
    """The model's text, as valid UTF-8."""
    finish: str
    """The endpoint's finish reason: `stop`, `length`, `content_filter`, ..."""
    served_model: str
    """The model that the endpoint says it used."""
    prompt_tokens: int | None
    """As billed; None if the endpoint did not say."""
    completion_tokens: int | None
    """As billed; None if the endpoint did not say."""
    charged_tokens: int
    """Counted against a token budget: the usage, or the whole reserve if the usage is unknown."""
    cost_usd: float | None
    """Counted against a money budget; None without a price."""


class Intent(NamedTuple):
    """A call that is about to be sent."""

    key: str
    """Its identity."""
    model: str
    slot: str
    attempt: int
    prompt_id: str
    request: Mapping[str, Any]
    """What is asked."""
    reserved_usd: float | None
    """The most it can cost; None without a price."""
    reserved_tokens: int


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Everything a ledger has seen, over all runs."""

    answered: int
    failed: int
    lost: int
    """Calls that may have been billed without an answer: cut off by a kill or by the network."""
    usd: float
    """Cost of the answers."""
    tokens: int
    lost_usd: float
    """At most this much more."""
    lost_tokens: int
    unpriced: tuple[str, ...]
    """Models whose price was not known when they were called."""


class Ledger:
    """A file of calls; safe to use from several threads of one process."""

    def __init__(self, path: StrPath) -> None:
        """Opens or makes a ledger and marks what an earlier run left under way as lost.

        Args:
            path: The SQLite file. Keep it outside the stage folders.

        Raises:
            ResumeError: If another run holds it.
            InputError: If the file is something else, or damaged.
            StorageError: If it cannot be written.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, timeout=0.2, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{self.path}: cannot open the ledger ({error})") from error
        try:
            self.left_behind = self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> int:
        # Exclusive: a second run would take this run's calls under way for lost ones.
        self._run("PRAGMA locking_mode = EXCLUSIVE")
        self._run("PRAGMA journal_mode = WAL")
        self._run("PRAGMA synchronous = NORMAL")
        ours = (self._number("PRAGMA application_id"), self._number("PRAGMA user_version"))
        empty = self._number("SELECT count(*) FROM sqlite_master") == 0
        if not empty and ours != (_APPLICATION, _SCHEMA):
            raise InputError(
                f"{self.path}: is a database, but not a ledger of this version; name another file"
            )
        self._run("BEGIN IMMEDIATE")
        for table in _TABLES:
            self._run(table)
        self._run(f"PRAGMA application_id = {_APPLICATION}")
        self._run(f"PRAGMA user_version = {_SCHEMA}")
        # A batch that was handed in is worked on without us; its calls are not lost.
        away = "state = 'intent' AND key NOT IN (SELECT value FROM batches, json_each(calls))"
        left = self._number(f"SELECT count(*) FROM calls WHERE {away}")
        self._run(
            "UPDATE calls SET state = 'lost', lost_calls = lost_calls + 1, "
            "lost_usd = lost_usd + coalesce(reserved_usd, 0), "
            f"lost_tokens = lost_tokens + reserved_tokens WHERE {away}"
        )
        self._run("COMMIT")
        return left

    def _run(self, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._database.execute(sql, tuple(values)).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._meant(error) from error

    def _run_many(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            with self._lock:
                self._database.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            raise self._meant(error) from error

    def _meant(self, error: sqlite3.DatabaseError) -> Exception:
        if isinstance(error, sqlite3.ProgrammingError):
            return error  # our own mistake, such as a closed ledger
        if not isinstance(error, sqlite3.OperationalError):
            return InputError(
                f"{self.path}: not a readable ledger ({error}); restore it or name another file"
            )
        if "locked" in str(error):
            return ResumeError(
                f"{self.path}: another run holds this ledger; wait for it or name another file"
            )
        return StorageError(f"{self.path}: {error}")

    def _number(self, sql: str) -> int:
        return int(self._run(sql)[0][0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Writes together what is written inside, which no other thread's statement joins."""
        with self._lock:
            self._run("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                # What was written before an error is as true as what came before the transaction.
                self._run("COMMIT")

    def answer(self, key: str) -> Answer | None:
        """The stored answer to a call, if there is one."""
        return self.answers([key]).get(key)

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The stored answers to those of some calls that have one."""
        wanted = json.dumps(list(keys))
        if wanted == "[]":
            return {}
        rows = self._run(
            "SELECT key, text, finish, served_model, prompt_tokens, completion_tokens, "
            "charged_tokens, cost_usd FROM calls "
            "WHERE key IN (SELECT value FROM json_each(?)) AND state = 'answered'",
            (wanted,),
        )
        return {
            key: Answer(
                text=text,
                finish=finish,
                served_model=served,
                prompt_tokens=prompt,
                completion_tokens=completion,
                charged_tokens=charged,
                cost_usd=cost,
            )
            for key, text, finish, served, prompt, completion, charged, cost in rows
        }

    def record(
        self, *, answers: Iterable[tuple[str, Answer]] = (), intents: Iterable[Intent] = ()
    ) -> None:
        """Writes down, together, the answers to calls and the calls that are about to be sent.

        A call that failed or was lost before keeps what it may have cost then; one that was
        answered stays as it is.
        """
        now = time.time()
        settled = [
            (
                answer.text,
                answer.finish,
                answer.served_model,
                answer.prompt_tokens,
                answer.completion_tokens,
                answer.charged_tokens,
                answer.cost_usd,
                now,
                key,
            )
            for key, answer in answers
        ]
        intended = [
            (*intent[:5], json.dumps(intent.request, sort_keys=True), *intent[6:], now)
            for intent in intents
        ]
        with self.transaction():
            if settled:
                self._run_many(
                    "UPDATE calls SET state = 'answered', text = ?, finish = ?, "
                    "served_model = ?, prompt_tokens = ?, completion_tokens = ?, "
                    "charged_tokens = ?, cost_usd = ?, settled = ? WHERE key = ?",
                    settled,
                )
            if intended:
                self._run_many(
                    "INSERT INTO calls (key, model, slot, attempt, prompt_id, request, "
                    "reserved_usd, reserved_tokens, sent, state) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'intent') "
                    "ON CONFLICT (key) DO UPDATE SET state = 'intent', error = NULL, "
                    "settled = NULL, reserved_usd = excluded.reserved_usd, "
                    "reserved_tokens = excluded.reserved_tokens, sent = excluded.sent "
                    "WHERE state != 'answered'",
                    intended,
                )

    def intend(self, key: str, **fields: Any) -> None:
        """`record` for one call that is about to be sent: the other fields of `Intent`."""
        self.record(intents=[Intent(key=key, **fields)])

    def settle(self, key: str, answer: Answer) -> None:
        """`record` for one answer."""
        self.record(answers=[(key, answer)])

    def fail(self, key: str, error: str, *, billed: bool) -> None:
        """Writes down that a call gave no answer.

        Args:
            key: The call.
            error: Why, without secrets.
            billed: It may have cost something; its reserve then counts as spent.
        """
        state = "lost" if billed else "failed"
        self._run(
            "UPDATE calls SET state = ?, error = ?, settled = ?, lost_calls = lost_calls + ?, "
            "lost_usd = lost_usd + ? * coalesce(reserved_usd, 0), "
            "lost_tokens = lost_tokens + ? * reserved_tokens WHERE key = ?",
            (state, error, time.time(), int(billed), int(billed), int(billed), key),
        )

    def lose_try(self, key: str) -> None:
        """Counts a try that was cut off and may have been billed; the call goes on."""
        self._run(
            "UPDATE calls SET lost_calls = lost_calls + 1, "
            "lost_usd = lost_usd + coalesce(reserved_usd, 0), "
            "lost_tokens = lost_tokens + reserved_tokens WHERE key = ?",
            (key,),
        )

    # Slots: planned, judged, committed

    def plan(self, run: str, block: int) -> Any | None:
        """The stored plan of a block, if there is one."""
        rows = self._run("SELECT slots FROM plans WHERE run = ? AND block = ?", (run, block))
        return json.loads(rows[0][0]) if rows else None

    def save_plan(self, run: str, block: int, slots: Any) -> None:
        """Writes down what a block of slots asks for."""
        self._run("INSERT INTO plans VALUES (?, ?, ?)", (run, block, json.dumps(slots)))

    def verdict(self, call: str, gate: str) -> tuple[str, str, dict[str, Any]] | None:
        """What a gate said of an answer: code (empty if accepted), detail, what it found."""
        rows = self._run(
            "SELECT code, detail, found FROM verdicts WHERE call = ? AND gate = ?", (call, gate)
        )
        return (rows[0][0], rows[0][1], json.loads(rows[0][2])) if rows else None

    def save_verdicts(
        self, gate: str, run: str, verdicts: Iterable[tuple[str, int, str, str, Mapping[str, Any]]]
    ) -> None:
        """Writes down verdicts: call, slot, code, detail, what was found."""
        values = [
            (call, gate, run, slot, code, detail, json.dumps(found, sort_keys=True))
            for call, slot, code, detail, found in verdicts
        ]
        with self.transaction():
            for value in values:
                self._run("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", value)

    def commit(self, run: str, folder: StrPath, slots: int, rows: int) -> None:
        """Writes down that a data set of this run is whole on disk."""
        self._run(
            "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?)",
            (run, str(folder), slots, rows, time.time()),
        )

    # Batches

    def batches(self) -> list[tuple[str, str, list[str]]]:
        """Batches that were handed in and not yet fetched: name, the endpoint's id, keys."""
        rows = self._run("SELECT name, id, calls FROM batches ORDER BY name")
        return [(name, id_, json.loads(calls)) for name, id_, calls in rows]

    def save_batch(self, name: str, id_: str, keys: Iterable[str]) -> None:
        """Writes down a batch: before it is handed in (id empty), and after."""
        values = (name, id_, json.dumps(list(keys)))
        self._run("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", values)

    def reserve(self, key: str) -> tuple[float | None, int]:
        """What was set aside for a call: US dollars (None without a price) and tokens."""
        rows = self._run("SELECT reserved_usd, reserved_tokens FROM calls WHERE key = ?", (key,))
        return rows[0] if rows else (None, 0)

    def drop_batch(self, name: str) -> None:
        """Forgets a batch whose answers are in."""
        self._run("DELETE FROM batches WHERE name = ?", (name,))

    def totals(self) -> Totals:
        """Sums over all calls."""
        return _totals(self._run)

    def close(self) -> None:
        """Closes the file. Calls still under way count as lost when it is next opened."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _totals(run: Callable[[str], list[Any]]) -> Totals:
    row = run(
        "SELECT count(*) FILTER (WHERE state = 'answered'), "
        "count(*) FILTER (WHERE state = 'failed'), coalesce(sum(lost_calls), 0), "
        "coalesce(sum(cost_usd), 0), coalesce(sum(charged_tokens), 0), "
        "coalesce(sum(lost_usd), 0), coalesce(sum(lost_tokens), 0) FROM calls"
    )[0]
    unpriced = run(
        "SELECT DISTINCT model FROM calls WHERE (state = 'answered' AND cost_usd IS NULL) "
        "OR (lost_calls > 0 AND reserved_usd IS NULL) ORDER BY model"
    )
    return Totals(
        answered=row[0],
        failed=row[1],
        lost=row[2],
        usd=row[3],
        tokens=row[4],
        lost_usd=row[5],
        lost_tokens=row[6],
        unpriced=tuple(model for (model,) in unpriced),
    )


def read_totals(path: Path) -> Totals | None:
    """A ledger's sums, without touching it; None where it cannot be read, or is in use just now."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return _totals(lambda query: database.execute(query).fetchall())
    except sqlite3.Error:
        return None
