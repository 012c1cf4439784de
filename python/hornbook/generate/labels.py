"""A teacher model's labels for the quality filter: educational value from 0 to 10, strictly read.

annotate = annotator(complete, model="m"); annotate("def f(x): ...")
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hornbook.generate import prompts
from hornbook.generate.answers import RejectedError, integer, strict_json
from hornbook.generate.client import Complete, Request, Response
from hornbook.manifest import hash_json


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
