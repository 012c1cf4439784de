"""A teacher model's labels for the quality filter, by a rubric, strictly read.

Two rubrics are here: `paper` (educational value for a student of basic coding concepts, 0 to 10)
and `additive` (five points that build on each other, 0 to 5); a TOML file holds one's own. Labels
are given on one scale, 0 to 10. A text too long to be shown whole is judged by several windows of
it, never by its beginning alone, and gets their mean.

    annotate = annotator(complete, model="m", rubric="additive"); annotate("def f(x): ...")
"""

import functools
import itertools
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args

from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath, hash_json
from hornbook.generate import prompts
from hornbook.generate.answers import RejectedError, integer, strict_json, words
from hornbook.generate.client import Complete, Request, Response, TeacherError

Label = tuple[float | None, str]
"""A score from 0 to 10, and the reason; the score is None where no label could be had."""

Structured = Literal["auto", "always", "never"]
"""Whether the endpoint is told to hold answers to the rubric's JSON schema."""

MOST_TRIES = 8
"""Texts that are refused with the schema and without, before calls go on without."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What a teacher is asked about a text, and the greatest score it may give."""

    prompt: prompts.Prompt
    """With the places `$fence`, `$code` and `$part`."""
    most: int

    @property
    def schema(self) -> dict[str, Any]:
        """The form of an answer, for endpoints that hold the model to it."""
        return {
            "type": "json_schema",
            "json_schema": {
                "name": "label",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {
                        "reason": {"type": "string"},
                        "score": {"type": "integer", "minimum": 0, "maximum": self.most},
                    },
                    "required": ["reason", "score"],
                    "additionalProperties": False,
                },
            },
        }


RUBRICS = {
    "paper": Rubric(prompt=prompts.ANNOTATION, most=10),
    "additive": Rubric(prompt=prompts.ADDITIVE, most=5),
}


def load_rubric(rubric: StrPath) -> Rubric:
    """A rubric by its name, or from a TOML file with `user`, `most` and perhaps `system`.

    Raises:
        ConfigError: If the name is unknown.
        InputError: If the file is no rubric; names the file and what is wrong.
    """
    if str(rubric) in RUBRICS:
        return RUBRICS[str(rubric)]
    path = Path(rubric)
    if path.suffix != ".toml":
        raise ConfigError(
            f"rubric {str(rubric)!r} is unknown: use {', '.join(RUBRICS)} or a .toml file"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable rubric ({error})") from error
    unknown = sorted(set(data) - {"name", "version", "system", "user", "most"})
    if unknown:
        raise InputError(
            f"{path}: unknown key `{unknown[0]}`; known: name, version, system, user, most"
        )
    most, user = data.get("most"), data.get("user")
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 1000:
        raise InputError(
            f"{path}: `most` must be the greatest score, from 1 to 1,000, not {most!r}"
        )
    if not isinstance(user, str):
        raise InputError(f"{path}: `user` must be the question, with $fence, $code and $part in it")
    system = str(data.get("system", prompts.ANNOTATION.system))
    template = Template(user)
    if not template.is_valid() or not Template(system).is_valid():
        raise InputError(f"{path}: a `$` that is no place; write $$ for the sign")
    places = set(template.get_identifiers())
    if places != {"fence", "code", "part"} or user.count("$fence") < 2:
        raise InputError(
            f"{path}: `user` must hold $code between two lines $fence, and $part; it has "
            f"{', '.join('$' + place for place in sorted(places)) or 'none'}"
        )
    return Rubric(
        prompt=prompts.Prompt(
            name=f"rubric-{data.get('name', path.stem)}"[:16],
            version=int(data.get("version", 1)),
            system=system,
            user=user,
        ),
        most=most,
    )


class Annotator:
    """Asks a teacher for a file's educational value: `annotate(text) -> (score, reason)`."""

    def __init__(
        self,
        complete: Complete,
        *,
        model: str,
        rubric: Rubric,
        longest: int,
        windows: int,
        structured: Structured,
        params: Mapping[str, Any],
    ) -> None:
        self._complete = complete
        self._rubric = rubric
        self._longest = longest
        self._windows = windows
        self._params = dict(params)
        self._structured = structured
        self._schema = structured != "never"
        self._known = structured != "auto"  # whether the endpoint takes the schema
        self._asked = 0
        self._lost: dict[str, int] = {"failed": 0, "refused": 0}
        self._last = ""
        self.prompt_id = rubric.prompt.id
        asked = hash_json([self.prompt_id, rubric.most, longest, windows, structured, self._params])
        self.annotator_id = f"llm/{model}/{asked[:12]}"

    @property
    def details(self) -> dict[str, Any]:
        """For the stage's manifest: whether answers were held to the rubric's JSON schema."""
        if self._structured == "never":
            return {"structured_output": "not asked for"}
        return {"structured_output": "used" if self._schema else "refused by the endpoint"}

    def windows(self, text: str) -> list[tuple[str, str]]:
        """What is shown of a text, and how that is called: all of it, or evenly spread windows."""
        text = prompts.clean(text)
        if len(text) <= self._longest:
            return [(text, "")]
        if self._windows == 1:
            return [(text[: self._longest], ", the beginning of a longer file")]
        last = len(text) - self._longest
        found = []
        for number in range(self._windows):
            start = last * number // (self._windows - 1)
            if 0 < start < last:  # a window in the middle begins with a line
                line = text.find("\n", start, start + self._longest // 4)
                start = line + 1 if line >= 0 else start
            name = (
                ", the beginning of a longer file"
                if number == 0
                else ", the end of a longer file"
                if number == self._windows - 1
                else f", a part from the middle of a longer file ({start / len(text):.0%} in)"
            )
            found.append((text[start : start + self._longest], name))
        return found

    def request(self, text: str, attempt: int = 0, window: int = 0, repeat: int = 0) -> Request:
        """The request about one window of a text; a pure function of its arguments."""
        shown, part = self.windows(text)[window]
        return self._request(shown, part, attempt, repeat)

    def _request(self, shown: str, part: str, attempt: int, repeat: int) -> Request:
        schema = {"response_format": self._rubric.schema} if self._schema else {}
        return Request(
            slot="annotation" if repeat == 0 else f"annotation/repeat-{repeat}",
            messages=self._rubric.prompt.fill(code=shown, fence=prompts.fence(shown), part=part),
            params={**self._params, **schema},
            attempt=attempt,
            prompt_id=self.prompt_id,
        )

    def batch(self, texts: Iterable[str], repeat: int = 0) -> Iterator[Label]:
        """Scores many texts in order, asking again once where the answer is no label.

        Args:
            texts: The texts.
            repeat: A number for each further opinion on the same texts: other calls, other answers.

        Raises:
            TeacherError: After the last text, if calls failed for good, or all were refused: those
                are asked again by the next run.
        """
        source = iter(texts)
        while chunk := list(itertools.islice(source, 512)):
            shown = [self.windows(text) for text in chunk]
            flat = [window for windows in shown for window in windows]
            labels = iter(self._ask(flat, repeat))
            for windows in shown:
                yield _joined([next(labels) for _ in windows])
        if self._lost["failed"] or (self._asked and self._lost["refused"] == self._asked):
            lost = sum(self._lost.values())
            raise TeacherError(
                f"{lost:,} of {self._asked:,} calls came to nothing, the last with: {self._last}; "
                "the answers are kept: run again to send just those"
            )

    def _ask(self, windows: Sequence[tuple[str, str]], repeat: int) -> list[Label]:
        def requests(indices: Iterable[int], attempt: int) -> Iterator[Request]:
            return (self._request(*windows[index], attempt, repeat) for index in indices)

        done: list[Response] = []
        while not self._known and len(done) < len(windows):
            done.append(self._try(functools.partial(requests, [len(done)], 0), len(done)))
        done.extend(self._complete(requests(range(len(done), len(windows)), 0)))
        labels = [label(response, self._rubric.most) for response in done]
        again = [index for index, (score, _) in enumerate(labels) if score is None]
        for index, response in zip(again, self._complete(requests(again, 1)), strict=True):
            done[index], labels[index] = response, label(response, self._rubric.most)
        self._asked += len(done)
        for response in done:
            if response.verdict in self._lost:
                self._lost[response.verdict] += 1
                self._last = response.error
        return labels

    def _try(self, request: Callable[[], Iterable[Request]], number: int) -> Response:
        """One call that tells whether the endpoint takes the schema; its final response.

        It decides for all later calls: after a kill the same ones are made again, and an endpoint
        without schemas refuses one call, not each. A text that is refused without the schema too
        tells nothing; after some such the schema is given up.
        """
        (response,) = self._complete(request())
        self._known = response.verdict != "refused"
        if not self._known:
            self._schema = False
            (response,) = self._complete(request())
            self._known = response.verdict != "refused" or number + 1 >= MOST_TRIES
            self._schema = not self._known
        return response

    def __call__(self, text: str) -> Label:
        """Scores one text. For many, `batch` asks them at once."""
        return next(self.batch([text]))


def _joined(labels: Sequence[Label]) -> Label:
    """The mean of the windows' scores; none if any window has none."""
    if len(labels) == 1:
        return labels[0]
    scores = [score for score, _ in labels if score is not None]
    if len(scores) < len(labels):
        return None, next(reason for score, reason in labels if score is None)
    reasons = " | ".join(f"{score:g}: {reason}" for score, reason in labels)
    return round(sum(scores) / len(scores), 4), reasons


def annotator(
    complete: Complete,
    *,
    model: str,
    rubric: StrPath = "paper",
    longest: int = 12_000,
    windows: int = 3,
    structured: Structured = "auto",
    params: Mapping[str, Any] | None = None,
) -> Annotator:
    """A teacher as annotator for the quality filter (paper section 2.1).

    Args:
        complete: `functools.partial(complete_all, ledger=..., model=...)`.
        model: The same model's name, for the labels' `annotator_id`.
        rubric: `paper`, `additive`, or a TOML file (see `load_rubric`).
        longest: Characters that are shown at once.
        windows: How many windows of a longer text are shown, one call each.
        structured: Whether the answer's JSON schema is sent (`response_format`), to which the
            endpoint then holds the model. `auto`: the first call has it, and if the endpoint
            refuses that call (a status such as 400 or 422) but not the same one without, all
            others are made without. `always`: what is refused has no label. `never`. Answers are
            read just as strictly without.
        params: Sampling parameters (default: temperature 0, 300 tokens).

    Raises:
        ConfigError: If `longest` or `windows` is below 1, or the rubric or `structured` is unknown.
        InputError: If the rubric's file is no rubric.
    """
    if longest < 1 or windows < 1:
        raise ConfigError(f"longest = {longest}, windows = {windows}: must be at least 1")
    if structured not in get_args(Structured):
        raise ConfigError(f"structured = {structured!r}: use {', '.join(get_args(Structured))}")
    return Annotator(
        complete,
        model=model,
        rubric=load_rubric(rubric),
        longest=longest,
        windows=windows,
        structured=structured,
        params=params or {"temperature": 0.0, "max_tokens": 300},
    )


def label(response: Response, most: int = 10) -> Label:
    """A response as `(score from 0 to 10, reason)`; no score if it is not strictly a label."""
    if response.verdict != "ok":
        return None, f"unscored: {response.verdict} {response.error}".strip()
    try:
        values = strict_json(response.text, ("reason", "score"))
        return 10.0 * integer(values["score"], most) / most, words(values["reason"])
    except RejectedError as error:
        return None, f"unscored: {error.detail}"
