"""Scores a sample of documents from 0 to 10 for their educational value (paper section 2.1).

That is: "for a student whose goal is to learn basic coding concepts". The sample is spread over
sources (the column `source`, if there is one) and lengths as the corpus is, and chosen by hashes of
ids: the same seed takes the same documents in whatever order or number of files they come. Memory:
the sample itself. Reads the corpus twice; the built-in rubric costs about 1.5 ms for each KB.

    hb.quality.annotate(["clean/"], "labels/", samples=1000)
"""

import heapq
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import Outcome, Report, StrPath, hash_json, run_stage
from hornbook.quality import rubric as rubric_module
from hornbook.quality.embed import embed, feature_names
from hornbook.quality.rubric import rubric

Annotator = Callable[[str], tuple[float, str]]
"""Gives a text's score from 0 to 10 and the reason for it."""

LENGTH_STRATA = 5
MOST_SOURCES = 256
"""With more sources than this, the sample is spread over lengths alone."""

_Stratum = tuple[str, int]


def annotate(
    inputs: Sequence[StrPath],
    out: StrPath,
    *,
    samples: int = 1000,
    annotator: str | Annotator = "rubric",
    seed: int = 0,
) -> Report:
    """Scores a stratified sample; writes it with the columns `score` (float64) and `reason`.

    Args:
        inputs: Documents.
        out: The stage's folder.
        samples: How many to score; all, if there are fewer.
        annotator: `"rubric"`, the offline stand-in for the LLM, or a function of the text. A
            function is known by its `annotator_id` if it has one, else by name and source text;
            what it closes over is not seen, so give it an `annotator_id` when that matters. If it
            has `batch(texts)`, that is used. A score of None leaves the document out.
        seed: Decides which documents are taken.

    Returns:
        The manifest; `details` has the histogram of scores and their rank correlation with length
        and docstring share.

    Raises:
        ConfigError: If `samples` is below 1 or the annotator is unknown.
        InputError: If there are no documents, or the annotator gives something that is no score.
    """
    if samples < 1:
        raise ConfigError(f"samples = {samples}: must be at least 1")
    judge, name = _annotator(annotator)

    def work(folder: Path) -> Outcome:
        documents, total = _sample(inputs, samples, seed)
        # A teacher that takes many texts at once is asked so: its calls then run side by side.
        batch = getattr(judge, "batch", None)
        texts = [row["text"] for row in documents.rows]
        answers = batch(texts) if batch else map(judge, texts)
        found = [_scored(*pair) for pair in zip(documents.rows, answers, strict=True)]
        rows = [row for row in found if row is not None]
        schema = {
            column: kind
            for column, kind in documents.schema
            if column not in ("id", "text", "score", "reason")
        }
        parts = corpus.write(folder, rows, {**schema, "score": "float64", "reason": "string"})
        corpus.write_rejected(folder, documents.rejected)
        return Outcome(
            parts=parts,
            rows_in=total,
            kept=len(rows),
            dropped={
                "not sampled": total - len(found),
                **({"unscored": len(found) - len(rows)} if len(rows) < len(found) else {}),
            },
            rejected=len(documents.rejected),
            details={"annotator": name, "strata": documents.strata, **_summary(rows)},
        )

    config = {"samples": samples, "annotator": name, "seed": seed}
    return run_stage("annotate", out, inputs=inputs, config=config, work=work, seed=seed)


def _annotator(annotator: str | Annotator) -> tuple[Annotator, str]:
    if annotator == "rubric":
        return rubric, f"rubric/v{rubric_module.VERSION}"
    if isinstance(annotator, str) or not callable(annotator):
        raise ConfigError(f"annotator {annotator!r} is unknown: use 'rubric' or a function")
    known = getattr(annotator, "annotator_id", None)
    if known is not None:
        return annotator, str(known)
    kind = annotator if inspect.isroutine(annotator) else type(annotator)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = ""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return annotator, f"{name}/{hash_json(source)[:12]}"


class _Sample:
    """Sampled rows in reading order, and what was learned on the way."""

    def __init__(self, documents: corpus.Documents, rows: list[corpus.Row], strata: int) -> None:
        self.schema = documents.schema
        self.rejected = documents.rejected
        self.rows = rows
        self.strata = strata


def _sample(inputs: Sequence[StrPath], samples: int, seed: int) -> tuple[_Sample, int]:
    counts = _length_counts(inputs)
    total = sum(sum(lengths.values()) for lengths in counts.values())
    if total == 0:
        names = ", ".join(str(path) for path in inputs)
        raise InputError(f"{names}: no usable document to annotate")
    lengths: Counter[int] = Counter()
    for of_source in counts.values():
        lengths.update(of_source)
    edges = _edges(lengths)
    by_source = len(counts) > 1

    def stratum(source: str, octave: int) -> _Stratum:
        return (source if by_source else "", sum(octave > edge for edge in edges))

    sizes: Counter[_Stratum] = Counter()
    for source, of_source in counts.items():
        for octave, count in of_source.items():
            sizes[stratum(source, octave)] += count
    quotas = _quotas(sizes, samples, seed)

    # The documents of each stratum with the smallest hashes; heaps keep the largest on top.
    heaps: dict[_Stratum, list[tuple[int, int, corpus.Row]]] = {key: [] for key in quotas}
    documents = corpus.read(inputs)
    for index, row in enumerate(documents):
        key = stratum(_source(row), _octave(row["text"]))
        quota = quotas.get(key, 0)
        if quota == 0:
            continue
        entry = (-_hash(seed, row["id"]), -index, row)
        if len(heaps[key]) < quota:
            heapq.heappush(heaps[key], entry)
        elif entry[:2] > heaps[key][0][:2]:
            heapq.heapreplace(heaps[key], entry)
    chosen = sorted((-index, row) for heap in heaps.values() for _, index, row in heap)
    return _Sample(documents, [row for _, row in chosen], len(sizes)), total


def _hash(seed: int, name: str) -> int:
    return int(_core.hash_bytes(f"{seed}:{name}".encode()), 16)


def _source(row: Mapping[str, Any]) -> str:
    return str(row.get("source") or "")


def _octave(text: str) -> int:
    """Length on a scale with eight steps for each doubling."""
    return int(8 * math.log2(len(text) + 1))


def _length_counts(inputs: Sequence[StrPath]) -> dict[str, Counter[int]]:
    """For each source, how many documents there are of each length; one entry if there are many."""
    counts: dict[str, Counter[int]] = {}
    merged: Counter[int] | None = None
    for row in corpus.read(inputs):
        octave = _octave(row["text"])
        if merged is not None:
            merged[octave] += 1
            continue
        counts.setdefault(_source(row), Counter())[octave] += 1
        if len(counts) > MOST_SOURCES:
            merged = Counter()
            for of_source in counts.values():
                merged.update(of_source)
    return counts if merged is None else {"": merged}


def _edges(lengths: Counter[int]) -> list[int]:
    """The lengths that part the documents into equal shares."""
    total = sum(lengths.values())
    edges: list[int] = []
    seen = 0
    for octave in sorted(lengths):
        seen += lengths[octave]
        if len(edges) < LENGTH_STRATA - 1 and seen * LENGTH_STRATA >= total * (len(edges) + 1):
            edges.append(octave)
    return edges


def _quotas(sizes: Counter[_Stratum], samples: int, seed: int) -> dict[_Stratum, int]:
    """Shares of the sample, in proportion; what rounding leaves goes to the largest remainders."""
    total = sum(sizes.values())
    samples = min(samples, total)
    quotas = {key: samples * size // total for key, size in sizes.items()}
    left = samples - sum(quotas.values())

    def order(key: _Stratum) -> tuple[int, int]:
        return (-(samples * sizes[key] % total), _hash(seed, f"{key[0]}:{key[1]}"))

    for key in sorted(sizes, key=order)[:left]:
        quotas[key] += 1
    return quotas


def _scored(row: corpus.Row, answer: Any) -> corpus.Row | None:
    """The row with its score; None where the annotator could give none."""
    try:
        value, reason = answer
        if value is None:
            return None
        score = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"document {row['id']}: the annotator must give (score, reason), not {answer!r}"
        ) from error
    if not 0.0 <= score <= 10.0:
        raise InputError(f"document {row['id']}: the annotator gave {score}, not 0 to 10")
    return {**row, "score": score, "reason": str(reason)}


def _summary(rows: Sequence[corpus.Row]) -> dict[str, Any]:
    """Histogram by whole points (10 with 9), and what the score goes along with."""
    import numpy as np

    from hornbook.quality.stats import rank_correlation

    scores = np.array([row["score"] for row in rows])
    histogram = Counter(min(9, int(score)) for score in scores.tolist())
    column = feature_names(1).index("docstring_share")
    shares = np.array([embed([row["text"]], dimensions=1)[0, column] for row in rows])
    lengths = np.array([len(row["text"]) for row in rows])
    return {
        "histogram": {f"{low}-{low + 1}": histogram[low] for low in range(10)},
        "mean_score": round(float(scores.mean()), 4),
        "correlation_with_length": rank_correlation(scores, lengths),
        "correlation_with_docstring_share": rank_correlation(scores, shares),
    }
