"""Grades from a teacher model: a short evaluation in words, then a whole number from 0 to 10.

Section 4 of the paper grades its unconventional problems so. A reply counts only if it is strictly
one JSON object with the evaluation before the grade; otherwise it is asked for once more, and then
the vote is unscored: a grade is never guessed, and the rate of unscored attempts is reported. The
attempt stands between markers that it cannot hold, as data. Everything sent and received is kept
in the grade's transcript (and in the ledger, so that grading again costs nothing).

    ask = functools.partial(complete_all, ledger=ledger, model="gpt-4o", budget_usd=1, prices=...)
    print(summarize(grade(problems, completions, complete=ask)))
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from hornbook.errors import ConfigError, InputError
from hornbook.evaluate.passk import wilson_interval
from hornbook.generate import prompts
from hornbook.generate.answers import RejectedError, integer, strict_json, words
from hornbook.generate.client import Complete, Request, Response
from hornbook.manifest import Report

MOST = 10
"""The best grade."""
FEW = 10
"""Problems below which a bootstrap says too little."""
LONGEST = 20_000
"""Characters of an attempt that are shown; a longer one is cut there."""
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "grade",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "evaluation": {"type": "string"},
                "grade": {"type": "integer", "minimum": 0, "maximum": MOST},
            },
            "required": ["evaluation", "grade"],
            "additionalProperties": False,
        },
    },
}
"""A reply's form (`response_format`), for endpoints that hold the model to it: words first."""
_REMINDER = "\n\nAn earlier reply was not that JSON object alone. Reply with it and nothing else."


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What the teacher made of one attempt."""

    task_id: str
    grade: float | None
    """The median of the votes that count; None if none does: unscored."""
    votes: tuple[int | None, ...]
    """Each vote; None where no reply was strictly a grade."""
    evaluation: str
    """The words of the first vote that counts."""
    transcript: tuple[dict[str, Any], ...]
    """Every exchange: `vote`, `attempt`, `messages`, `reply`, `verdict`, `problem`."""

    @property
    def spread(self) -> int | None:
        """The largest vote less the smallest."""
        counted = [vote for vote in self.votes if vote is not None]
        return max(counted) - min(counted) if counted else None


def grade(
    problems: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    *,
    complete: Complete,
    votes: int = 1,
    params: Mapping[str, Any] | None = None,
    secret: str = "",
    texts: Sequence[str | None] | None = None,
) -> list[Grade]:
    """Grades one completion for each problem.

    Args:
        problems: With `task_id`, `prompt` and `canonical_solution`, as in HumanEval.
        completions: What continues each prompt.
        complete: `functools.partial(complete_all, ledger=..., model=...)`.
        votes: Independent grades of each attempt; the median counts.
        params: Sampling parameters (default: temperature 0 for one vote, 1 for several).
        secret: Makes the markers random; the same one gives the same ones, and so stored answers.
        texts: Where not None, what is shown as the attempt, instead of prompt and completion.

    Raises:
        InputError: If a problem lacks a field.
        ConfigError: If the lengths differ or `votes` is not positive.
    """
    if len(problems) != len(completions):
        raise ConfigError(f"{len(problems)} problems, but {len(completions)} completions")
    if votes < 1:
        raise ConfigError(f"votes must be at least 1, not {votes}")
    sampling = dict(params or {"temperature": 0.0 if votes == 1 else 1.0, "max_tokens": 600})
    places = [(index, vote) for index in range(len(problems)) for vote in range(votes)]
    ballots = {place: _Ballot() for place in places}
    for attempt in (0, 1):
        open_ = [place for place in places if ballots[place].vote is None]
        requests = [
            _request(
                problems[index],
                completions[index],
                vote,
                attempt,
                sampling,
                secret=secret,
                shown=texts[index] if texts is not None else None,
            )
            for index, vote in open_
        ]
        for place, response in zip(open_, complete(requests), strict=True):
            ballots[place].count(place[1], attempt, response)
    return [
        _grade(str(problem["task_id"]), [ballots[index, vote] for vote in range(votes)])
        for index, problem in enumerate(problems)
    ]


class _Ballot:
    """One vote under way."""

    def __init__(self) -> None:
        self.vote: int | None = None
        self.evaluation = ""
        self.transcript: list[dict[str, Any]] = []

    def count(self, number: int, attempt: int, response: Response) -> None:
        problem = "" if response.verdict == "ok" else response.error or response.verdict
        if not problem:
            try:
                self.vote, self.evaluation = read_reply(response.text)
            except RejectedError as error:
                problem = error.detail
        self.transcript.append(
            {
                "vote": number,
                "attempt": attempt,
                "messages": [dict(message) for message in response.request.messages],
                "reply": response.text,
                "verdict": response.verdict,
                "problem": problem,
            }
        )


def read_reply(text: str) -> tuple[int, str]:
    """The grade and the words of a reply.

    Raises:
        RejectedError: If it is not strictly one JSON object with `evaluation`, then `grade`.
    """
    values = strict_json(text, ("evaluation", "grade"))
    return integer(values["grade"], MOST), words(values["evaluation"])


def _request(
    problem: Mapping[str, Any],
    completion: str,
    vote: int,
    attempt: int,
    params: Mapping[str, Any],
    *,
    secret: str,
    shown: str | None,
) -> Request:
    try:
        task, solution = str(problem["prompt"]), str(problem["canonical_solution"])
        task_id = str(problem["task_id"])
    except KeyError as error:
        raise InputError(f"a problem to grade lacks the field {error}") from None
    task = prompts.clean(task)
    whole = prompts.clean(task + completion if shown is None else shown)[: LONGEST + len(task)]
    solution = prompts.clean(task + solution)
    return Request(
        slot=f"{task_id}/{vote}",
        messages=prompts.GRADING.fill(
            task=task,
            solution=solution,
            attempt=whole,
            # A hash of a secret and all that it fences off: no attempt can hold it, and a rerun
            # finds it again.
            fence=prompts.fence(secret, task, solution, whole, str(vote)),
            reminder=_REMINDER if attempt else "",
        ),
        params=params,
        attempt=attempt,
        prompt_id=prompts.GRADING.id,
    )


def _grade(task_id: str, ballots: Sequence[_Ballot]) -> Grade:
    counted = [ballot for ballot in ballots if ballot.vote is not None]
    return Grade(
        task_id=task_id,
        grade=float(statistics.median(b.vote for b in counted if b.vote is not None))
        if counted
        else None,
        votes=tuple(ballot.vote for ballot in ballots),
        evaluation=counted[0].evaluation if counted else "",
        transcript=tuple(entry for ballot in ballots for entry in ballot.transcript),
    )


def summarize(grades: Sequence[Grade], *, confidence: float = 0.95, seed: int = 0) -> Report:
    """The mean over the scored attempts with an interval: by bootstrap over problems, or of fewer
    than ten or all alike Wilson's, which is wider.

    Returns:
        `attempts`, `scored`, `unscored_rate`, `mean` and `low`, `high` (of 10; None if nothing is
        scored), `percent` (the paper's scale), `confidence`.
    """
    by_problem: dict[str, list[float]] = {}
    for one in grades:
        if one.grade is not None:
            by_problem.setdefault(one.task_id, []).append(one.grade)
    sums = np.array([sum(found) for found in by_problem.values()], dtype=np.float64)
    counts = np.array([len(found) for found in by_problem.values()], dtype=np.int64)
    report: dict[str, Any] = {
        "attempts": len(grades),
        "scored": int(counts.sum()),
        "unscored_rate": 1 - int(counts.sum()) / len(grades) if grades else 0.0,
        "confidence": confidence,
        "mean": None,
        "low": None,
        "high": None,
        "percent": None,
    }
    if by_problem:
        # Attempts at one problem resemble each other, so problems are drawn, each with all of its.
        draws = np.random.default_rng(seed).integers(0, len(sums), (4000, len(sums)))
        tail = (1 - confidence) / 2
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        low, high = np.quantile(means, (tail, 1 - tail))
        mean = float(sums.sum() / counts.sum())
        if len(sums) < FEW or np.ptp(sums / counts) == 0:
            # Draws of few problems, or of equal ones, know nothing of those that were not asked.
            # Grades vary less than passes would: this interval is conservative.
            z = NormalDist().inv_cdf(1 - tail)
            low, high = (MOST * end for end in wilson_interval(mean / MOST, len(sums), z))
        report |= {"mean": mean, "low": float(low), "high": float(high), "percent": mean * 10}
    return Report(report)
