"""Textbook sections and exercises from a teacher model, and its labels for the quality filter.

A slot is (hash of the spec, seed, index); its prompt follows from it alone, offline, byte for byte,
and does not change when more rows are asked for. Every answer becomes a row or a rejection with a
reason code. Answers live in the ledger, outside the stage's folder, so a killed run, a larger
`count` or a lost output folder pays for nothing twice. Costs what the teacher costs; here, about
3 ms of one core a row.

    generate_llm("exercises", "out/", count=1000, model="gpt-4o-mini", ledger="teacher.ledger",
                 prices={"gpt-4o-mini": (0.15, 0.60)}, budget_usd=2)
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any, Literal

from hornbook import _core, corpus
from hornbook.errors import ConfigError
from hornbook.generate import prompts
from hornbook.generate.answers import (
    TESTS,
    RejectedError,
    integer,
    parse_exercise,
    parse_textbook,
    strict_json,
    textbook_code,
)
from hornbook.generate.client import (
    Complete,
    Prices,
    Request,
    Response,
    TeacherError,
    complete_all,
)
from hornbook.generate.ledger import Ledger
from hornbook.manifest import Outcome, Report, StrPath, hash_json, run_stage, write_text

Kind = Literal["textbooks", "exercises"]
Row = dict[str, Any]

VERIFIED_AT_ONCE = 256

_PARAMS: dict[Kind, dict[str, Any]] = {
    "textbooks": {"temperature": 1.0, "max_tokens": 3000},
    "exercises": {"temperature": 1.0, "max_tokens": 1200},
}
_SCHEMA = {
    "kind": "string",
    "topic": "string",
    "audience": "string",
    "teacher": "string",
    "model": "string",
    "served_model": "string",
    "prompt_id": "string",
    "slot": "string",
    "seed": "int64",
    "call": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "cost_usd": "float64",
}
_EXTRA = {
    "textbooks": {"words": "string"},
    "exercises": {
        "prompt": "string",
        "solution": "string",
        "tests": "string",
        "entry_point": "string",
    },
}


# Slots -> requests


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What decides every prompt of a run."""

    kind: Kind
    topics: tuple[str, ...] = prompts.TOPICS
    audiences: tuple[str, ...] = prompts.AUDIENCES
    words: tuple[str, ...] = prompts.WORDS
    """Textbooks: where the injected words come from."""
    inject: int = 3
    """Textbooks: how many."""
    libraries: tuple[str, ...] = prompts.LIBRARIES
    """Exercises: what they may import."""

    def __post_init__(self) -> None:
        if self.kind not in _PARAMS:
            raise ConfigError(f"kind must be textbooks or exercises, not `{self.kind}`")
        for name in ("topics", "audiences", "words", "libraries"):
            values = getattr(self, name)
            if isinstance(values, str) or not values:
                raise ConfigError(f"{name} must be a list with at least one entry")
            object.__setattr__(self, name, tuple(prompts.clean(value) for value in values))
        if not 0 <= self.inject <= len(self.words):
            raise ConfigError(f"inject must be between 0 and {len(self.words)}, not {self.inject}")

    @property
    def template(self) -> prompts.Prompt:
        """The template the prompts are made from."""
        return prompts.TEXTBOOK if self.kind == "textbooks" else prompts.EXERCISE

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits for the spec and its template."""
        return hash_json([asdict(self), self.template.id])[:16]


def slot_request(spec: Spec, index: int, seed: int, params: Mapping[str, Any]) -> Request:
    """The request of one slot.

    Cells (topic, audience) are dealt in rounds: each cell comes up once before any comes up twice,
    in an order that the seed decides.
    """
    cells = len(spec.topics) * len(spec.audiences)
    round_, place = divmod(index, cells)
    step = _coprime(prompts.digest(spec.kind, seed, round_, "step"), cells)
    cell = (place * step + prompts.digest(spec.kind, seed, round_, "start")) % cells
    topic = spec.topics[cell // len(spec.audiences)]
    audience = spec.audiences[cell % len(spec.audiences)]
    values = {"topic": topic, "audience": audience}
    provenance: dict[str, Any] = {
        "kind": spec.kind,
        **values,
        "prompt_id": spec.template.id,
        "slot": f"{spec.hash}/{seed}/{index}",
        "seed": seed,
    }
    if spec.kind == "textbooks":
        order = sorted(spec.words, key=lambda word: prompts.digest(spec.kind, seed, index, word))
        values["words"] = provenance["words"] = ", ".join(order[: spec.inject])
    else:
        name = function_name(index, seed)
        values |= {"name": name, "libraries": ", ".join(spec.libraries), "tests": str(TESTS)}
        provenance["entry_point"] = name
    return Request(
        slot=f"{seed}/{index}",
        messages=spec.template.fill(**values),
        params={name: value for name, value in params.items() if value is not None},
        prompt_id=spec.template.id,
        provenance=provenance,
    )


def function_name(index: int, seed: int) -> str:
    """The name an exercise's function must have: `verb_quality_noun`.

    The first 600,000 or so indices of a seed get distinct names.
    """
    verbs, qualities, nouns = prompts.VERBS, prompts.QUALITIES, prompts.NOUNS
    size = len(verbs) * len(qualities) * len(nouns)
    step = _coprime(prompts.digest("name", seed, "step"), size)
    place = (index * step + prompts.digest("name", seed, "start")) % size
    place, verb = divmod(place, len(verbs))
    noun, quality = divmod(place, len(qualities))
    return f"{verbs[verb]}_{qualities[quality]}_{nouns[noun]}"


def _coprime(value: int, size: int) -> int:
    """A number below `size` that shares no factor with it, so that its multiples visit all."""
    step = value % size or 1
    while gcd(step, size) != 1:
        step = step % size + 1
    return step


def textbook_requests(
    topics: Sequence[str], audiences: Sequence[str], count: int, seed: int
) -> Iterator[Request]:
    """Requests for textbook sections (paper section 2.2), with the default parameters."""
    spec = Spec(kind="textbooks", topics=tuple(topics), audiences=tuple(audiences))
    return (slot_request(spec, index, seed, _PARAMS["textbooks"]) for index in range(count))


def exercise_requests(
    topics: Sequence[str], audiences: Sequence[str], count: int, seed: int
) -> Iterator[Request]:
    """Requests for exercises (paper section 2.3), each with its own function name."""
    spec = Spec(kind="exercises", topics=tuple(topics), audiences=tuple(audiences))
    return (slot_request(spec, index, seed, _PARAMS["exercises"]) for index in range(count))


# Responses -> rows


def program(row: Row) -> str:
    """What has to run without an error for a row to be verified."""
    if row["kind"] == "exercises":
        return f"{row['prompt']}{row['solution']}\n{row['tests']}"
    return "\n".join(textbook_code(row["text"]))


def to_row(response: Response, spec: Spec) -> Row:
    """The row that a response makes.

    Raises:
        RejectedError: With the response's verdict, or what the parsers say.
    """
    if response.verdict != "ok" or response.answer is None:
        raise RejectedError(response.verdict, response.error or "the answer is not whole")
    provenance = dict(response.request.provenance)
    if spec.kind == "exercises":
        parts = parse_exercise(
            response.text, entry_point=provenance["entry_point"], libraries=spec.libraries
        )
        text = parts["prompt"] + parts["solution"]
    else:
        parts, text = {}, parse_textbook(response.text)
    answer = response.answer
    return {
        **provenance,
        **parts,
        "text": text,
        "teacher": "openai",
        "model": response.model,
        "served_model": answer.served_model,
        "call": response.key,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cost_usd": answer.cost_usd,
    }


# The stage


def generate_llm(
    kind: Kind,
    out: StrPath,
    *,
    count: int,
    model: str,
    ledger: StrPath,
    seed: int = 0,
    spec: Spec | None = None,
    params: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    concurrency: int = 16,
    max_retries: int = 6,
    budget_usd: float | None = None,
    budget_tokens: int | None = None,
    prices: Prices | None = None,
    timeout_s: float = 600.0,
    verify: Callable[[Sequence[str]], Iterable[Any]] | None = None,
) -> Report:
    """Asks a teacher for `count` textbook sections or exercises and writes those that hold up.

    Args:
        kind: `textbooks` or `exercises`.
        out: The stage's folder: Parquet parts, `rejected/rows.jsonl`, the manifest.
        count: Slots asked for; rejected ones are not replaced.
        model: The teacher.
        ledger: The file of calls, outside `out`.
        seed: Decides cells, words and names.
        spec: Topics, audiences, words, libraries (default: the built-in ones).
        params: Sampling parameters over the defaults; None takes one away.
        base_url: See `complete_all`, as for everything down to `timeout_s`.
        api_key_env: The variable with the key.
        concurrency: Most calls under way.
        max_retries: Most retries of a call.
        budget_usd: Most money, over all that the ledger has seen.
        budget_tokens: Most tokens, likewise.
        prices: Model -> US dollars per million prompt and answer tokens.
        timeout_s: Most seconds for one try.
        verify: Runs programs in a sandbox and says, for each in order, whether it passed (a bool,
            or an object with `passed`), such as `hornbook.evaluate.run_programs`. None: nothing is
            executed, and the manifest says `verified: false`.

    Returns:
        The manifest. Rows carry topic, audience, slot, seed, prompt_id, model, call and cost.

    Raises:
        BudgetReachedError: The budget is spent. Nothing is lost: run again with a larger one, or
            with `count` set to the error's `made` to finish with what there is.
        TeacherError: The endpoint is down, or some calls failed. Run again to send just those.
        ConfigError: See `complete_all`.
    """
    spec = spec or Spec(kind=kind)
    if spec.kind != kind:
        raise ConfigError(f"the spec is for {spec.kind}, not for {kind}")
    if count < 1:
        raise ConfigError(f"count must be at least 1, not {count}")
    if Path(out).resolve() in Path(ledger).resolve().parents:
        raise ConfigError(f"{ledger}: keep the ledger outside the stage's folder {out}")
    asked = {
        name: value
        for name, value in {**_PARAMS[kind], **(params or {})}.items()
        if value is not None
    }
    config = {
        "kind": kind,
        "model": model,
        "count": count,
        "seed": seed,
        "params": asked,
        "spec": asdict(spec),
        "prompt_id": spec.template.id,
        "verified": verify is not None,
    }

    def work(folder: Path) -> Outcome:
        with Ledger(ledger) as book:
            responses = complete_all(
                (slot_request(spec, index, seed, asked) for index in range(count)),
                ledger=book,
                model=model,
                base_url=base_url,
                api_key_env=api_key_env,
                concurrency=concurrency,
                max_retries=max_retries,
                budget_usd=budget_usd,
                budget_tokens=budget_tokens,
                prices=prices,
                timeout_s=timeout_s,
            )
            sieve = _Sieve(spec, verify)
            schema = {**_SCHEMA, **_EXTRA[kind]}
            # Closed before the ledger, which the calls under way still have to reach.
            with closing(responses):
                parts = corpus.write(folder, sieve.rows(responses), schema)
            if sieve.failed:
                raise TeacherError(
                    f"{sieve.failed:,} of {count:,} calls failed, the last with: {sieve.last}; "
                    f"the rest are kept in {book.path}: run again to send just those"
                )
            totals = book.totals()
        kept = sum(part["rows"] for part in parts)
        if sieve.rejected:
            (folder / "rejected").mkdir(exist_ok=True)
            lines = (json.dumps(row) + "\n" for row in sieve.rejected)
            write_text(folder / "rejected" / "rows.jsonl", "".join(lines))
        return Outcome(
            parts=parts,
            rows_in=count,
            kept=kept,
            dropped=dict(sorted(sieve.reasons.items())),
            details={
                "verified": verify is not None,
                "cost_usd": sieve.usd if model in (prices or {}) else None,
                "tokens": sieve.tokens,
                "answers_from_ledger": sieve.stored,
                "ledger": asdict(totals),
            },
        )

    # Not resumable in place: the ledger is what a run goes on from, and the folder is remade.
    return run_stage(f"generate.{kind}", out, inputs=[], config=config, work=work, seed=seed)


class _Sieve:
    """Turns responses into the rows that hold up, and counts the rest."""

    def __init__(self, spec: Spec, verify: Callable[[Sequence[str]], Iterable[Any]] | None) -> None:
        self._spec = spec
        self._verify = verify
        self._seen: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []
        self.failed = 0
        self.last = ""
        self.stored = 0
        self.usd = 0.0
        self.tokens = 0

    def rows(self, responses: Iterable[Response]) -> Iterator[Row]:
        """The rows, in order."""
        size = VERIFIED_AT_ONCE if self._verify else 1
        parsed = (row for row in map(self._parse, responses) if row is not None)
        while batch := list(itertools.islice(parsed, size)):
            yield from self._passed(batch)

    def _parse(self, response: Response) -> Row | None:
        self.stored += response.stored
        if response.answer is not None:
            self.usd += response.answer.cost_usd or 0.0
            self.tokens += response.answer.charged_tokens
        if response.verdict == "failed":
            self.failed += 1
            self.last = response.error
            return None
        try:
            row = to_row(response, self._spec)
            identity = _core.hash_bytes(row["text"].encode())
            if identity in self._seen:
                raise RejectedError("duplicate", "the same text came from an earlier slot")
        except RejectedError as error:
            slot = response.request.provenance["slot"]
            self._reject(slot, response.key, error.code, error.detail)
            return None
        self._seen.add(identity)
        return row

    def _passed(self, batch: list[Row]) -> Iterator[Row]:
        if self._verify is None:
            yield from batch
            return
        outcomes = list(self._verify([program(row) for row in batch]))
        for row, outcome in zip(batch, outcomes, strict=True):
            if bool(getattr(outcome, "passed", outcome)):
                yield row
            else:
                status = str(getattr(outcome, "status", "failed"))
                self._reject(row["slot"], row["call"], "not_verified", status)

    def _reject(self, slot: str, call: str, code: str, detail: str) -> None:
        self.reasons[code] += 1
        self.rejected.append({"slot": slot, "call": call, "reason": code, "detail": detail})


# Labels for the quality filter


class Annotator:
    """Asks a teacher for a file's educational value: `annotate(text) -> (score, reason)`."""

    def __init__(
        self, complete: Complete, *, model: str, longest: int, params: Mapping[str, Any]
    ) -> None:
        self._complete = complete
        self._longest = longest
        self._params = dict(params)
        self.prompt_id = prompts.ANNOTATION.id
        asked = hash_json([self.prompt_id, longest, self._params])
        self.annotator_id = f"llm/{model}/{asked[:12]}"

    def request(self, text: str, attempt: int = 0) -> Request:
        """The request about one text; a pure function of it."""
        text = prompts.clean(text)
        part = ""
        if len(text) > self._longest:
            text = text[: self._longest]
            part = ", the beginning of a longer file"
        return Request(
            slot="annotation",
            messages=prompts.ANNOTATION.fill(code=text, fence=prompts.fence(text), part=part),
            params=self._params,
            attempt=attempt,
            prompt_id=prompts.ANNOTATION.id,
        )

    def batch(self, texts: Iterable[str]) -> Iterator[tuple[float | None, str]]:
        """Scores many texts in order, asking again once where the answer is no label.

        Yields:
            `(score from 0 to 10, reason)`; the score is None where no label could be had.
        """
        source = iter(texts)
        while chunk := list(itertools.islice(source, 512)):
            labels = [label(response) for response in self._complete(map(self.request, chunk))]
            again = [index for index, (score, _) in enumerate(labels) if score is None]
            requests = [self.request(chunk[index], 1) for index in again]
            for index, response in zip(again, self._complete(requests), strict=True):
                labels[index] = label(response)
            yield from labels

    def __call__(self, text: str) -> tuple[float | None, str]:
        """Scores one text. For many, `batch` asks them at once."""
        return next(self.batch([text]))


def annotator(
    complete: Complete,
    *,
    model: str,
    longest: int = 12_000,
    params: Mapping[str, Any] | None = None,
) -> Annotator:
    """A teacher as annotator for the quality filter (paper section 2.1).

    Args:
        complete: `functools.partial(complete_all, ledger=..., model=...)`.
        model: The same model's name, for the labels' `annotator_id`.
        longest: Characters of a file that are shown.
        params: Sampling parameters (default: temperature 0, 300 tokens).
    """
    sampling = params or {"temperature": 0.0, "max_tokens": 300}
    return Annotator(complete, model=model, longest=longest, params=sampling)


def label(response: Response) -> tuple[float | None, str]:
    """A response as `(score, reason)`; the score is None if it is not strictly a label."""
    if response.verdict != "ok":
        return None, f"unscored: {response.verdict} {response.error}".strip()
    try:
        values = strict_json(response.text, ("reason", "score"))
        return float(integer(values["score"], 10)), str(values["reason"])
    except RejectedError as error:
        return None, f"unscored: {error.detail}"
