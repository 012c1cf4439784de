"""Scores a sample of documents from 0 to 10 for their educational value (paper section 2.1).

That is: "for a student whose goal is to learn basic coding concepts". The sample is spread over
sources (the column `source`, if there is one), lengths, and clusters of like content, as the corpus
is, and chosen by hashes of ids: the same seed takes the same documents in whatever order or number
of files they come. Memory: the sample itself. Reads the corpus three times; the built-in rubric
costs about 1.5 ms for each KB.

    hb.quality.annotate(["clean/"], "labels/", samples=1000)
"""

import heapq
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath, hash_json
from hornbook.manifest import Outcome, Report, run_stage
from hornbook.quality import rubric as rubric_module
from hornbook.quality.embed import docstring_shares, embed
from hornbook.quality.rubric import rubric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Annotator = Callable[[str], tuple[float, str]]
"""Gives a text's score from 0 to 10 and the reason for it."""

LENGTH_STRATA = 5
MOST_SOURCES = 256
"""With more sources than this, the sample is spread over lengths alone."""

CLUSTER_SAMPLE = 2_000
"""Documents that clusters are found on."""
CLUSTER_DIMENSIONS = 64

_Stratum = tuple[str, int, int]
"""Source, step of length, cluster."""


def annotate(
    inputs: Sequence[StrPath],
    out: StrPath,
    *,
    samples: int = 1000,
    annotator: str | Annotator = "rubric",
    clusters: int = 8,
    repeats: float = 0.0,
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
            has `batch(texts)`, that is used; `details`, if there, goes into the manifest. A score
            of None leaves the document out.
        clusters: Kinds of content that the sample is spread over; 0 or 1 for none.
        repeats: Share of the sample that is scored a second time, to see how far labels can be
            trusted. The first score is what is written; a `batch` is told `repeat=1`.
        seed: Decides which documents are taken.

    Returns:
        The manifest; `details` has the histogram of scores, their rank correlation with length and
        docstring share, and under `label_noise` what second opinions say: kappa of "at least 5",
        weighted kappa of the scores, mean difference.

    Raises:
        ConfigError: If a number makes no sense or the annotator is unknown.
        InputError: If there are no documents, or the annotator gives something that is no score.
    """
    if samples < 1:
        raise ConfigError(f"samples = {samples}: must be at least 1")
    if clusters < 0:
        raise ConfigError(f"clusters = {clusters}: must be at least 0")
    if not 0.0 <= repeats <= 1.0:
        raise ConfigError(f"repeats = {repeats}: must lie between 0 and 1")
    judge, name = _annotator(annotator)

    def work(folder: Path) -> Outcome:
        documents, total = _sample(inputs, samples, clusters, seed)
        # A teacher that takes many texts at once is asked so: its calls then run side by side.
        batch = getattr(judge, "batch", None)
        texts = [row["text"] for row in documents.rows]
        answers = batch(texts) if batch else map(judge, texts)
        found = [_scored(*pair) for pair in zip(documents.rows, answers, strict=True)]
        rows = [row for row in found if row is not None]
        if found and not rows:
            raise InputError(f"none of {len(found):,} documents got a score: there is no label")
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
            details={
                "annotator": name,
                "strata": documents.strata,
                **getattr(judge, "details", {}),
                **_summary(rows),
                "label_noise": _noise(rows, judge, repeats, seed),
            },
        )

    config = {
        "samples": samples,
        "annotator": name,
        "clusters": clusters,
        "repeats": repeats,
        "seed": seed,
    }
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


def _sample(
    inputs: Sequence[StrPath], samples: int, clusters: int, seed: int
) -> tuple[_Sample, int]:
    lengths, sources = _look(inputs)
    total = sum(lengths.values())
    if total == 0:
        names = ", ".join(str(path) for path in inputs)
        raise InputError(f"{names}: no usable document to annotate")
    edges = _edges(lengths)
    by_source = 1 < len(sources) <= MOST_SOURCES
    centres = _centres(inputs, clusters, seed)

    def strata(columns: Mapping[str, list[Any]]) -> list[_Stratum]:
        texts = columns["text"]
        named = columns.get("source") if by_source else None
        of = [str(name or "") for name in named] if named else [""] * len(texts)
        steps = [sum(_octave(text) > edge for edge in edges) for text in texts]
        return list(zip(of, steps, _nearest(texts, centres), strict=True))

    sizes: Counter[_Stratum] = Counter()
    for columns in corpus.read(inputs).batches():
        sizes.update(strata(columns))
    quotas = _quotas(sizes, samples, seed)

    # The documents of each stratum with the smallest hashes; heaps keep the largest on top.
    heaps: dict[_Stratum, list[tuple[int, int, corpus.Row]]] = {key: [] for key in quotas}
    documents = corpus.read(inputs)
    index = 0
    for columns in documents.batches():
        held = list(columns)
        for row, key in enumerate(strata(columns)):
            quota = quotas.get(key, 0)
            rank = -_hash(seed, columns["id"][row])
            # A new one comes of an input that changes, which is noticed at the end.
            heap = heaps.setdefault(key, [])
            if quota and (len(heap) < quota or (rank, -index) > heap[0][:2]):
                entry = (rank, -index, {name: columns[name][row] for name in held})
                (heapq.heappush if len(heap) < quota else heapq.heapreplace)(heap, entry)
            index += 1
    chosen = sorted((-index, row) for heap in heaps.values() for _, index, row in heap)
    return _Sample(documents, [row for _, row in chosen], len(sizes)), total


def _centres(inputs: Sequence[StrPath], clusters: int, seed: int) -> "NDArray[np.float32] | None":
    """Centres of clusters of hashed tokens, by k-means on the smallest hashes of ids."""
    import numpy as np

    if clusters < 2:
        return None
    smallest: list[tuple[int, str]] = []
    for columns in corpus.read(inputs).batches():
        for name, text in zip(columns["id"], columns["text"], strict=True):
            entry = (-_hash(seed + 1, name), text)
            if len(smallest) < CLUSTER_SAMPLE:
                heapq.heappush(smallest, entry)
            elif entry > smallest[0]:
                heapq.heapreplace(smallest, entry)
    texts = [text for _, text in sorted(smallest, reverse=True)]
    rows = embed(texts, dimensions=CLUSTER_DIMENSIONS)[:, :CLUSTER_DIMENSIONS]
    # The first centre is the first text; each further one is the text that is farthest from all.
    centres = rows[:1]
    while len(centres) < min(clusters, len(rows)):
        far = int(np.argmax(((rows[:, None] - centres) ** 2).sum(2).min(1)))
        centres = np.vstack([centres, rows[far]])
    for _ in range(10):
        near = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack(
            [
                rows[near == at].mean(0) if (near == at).any() else centre
                for at, centre in enumerate(centres)
            ]
        )
    return centres


def _nearest(texts: Sequence[str], centres: "NDArray[np.float32] | None") -> list[int]:
    """The cluster of each text."""
    if centres is None:
        return [0] * len(texts)
    rows = embed(texts, dimensions=CLUSTER_DIMENSIONS)[:, :CLUSTER_DIMENSIONS]
    near: list[int] = ((rows[:, None] - centres) ** 2).sum(2).argmin(1).tolist()
    return near


def _hash(seed: int, name: str) -> int:
    return int(_core.hash_bytes(f"{seed}:{name}".encode()), 16)


def _octave(text: str) -> int:
    """Length on a scale with eight steps for each doubling."""
    return int(8 * math.log2(len(text) + 1))


def _look(inputs: Sequence[StrPath]) -> tuple[Counter[int], set[str]]:
    """How many documents there are of each length, and the sources (no more than are of use)."""
    lengths: Counter[int] = Counter()
    sources: set[str] = set()
    for columns in corpus.read(inputs).batches():
        lengths.update(map(_octave, columns["text"]))
        if len(sources) <= MOST_SOURCES:
            sources.update(str(name or "") for name in columns.get("source", ()))
    return lengths, sources


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
    """Shares of the sample in proportion: of the sources, of the lengths in each, of the clusters
    in those. What rounding leaves goes to the largest remainders, so each level is exact."""
    quotas = {(): min(samples, sum(sizes.values()))}
    nested: dict[tuple[Any, ...], int] = dict(quotas)
    for level in (1, 2, 3):
        below: Counter[tuple[Any, ...]] = Counter()
        for key, size in sizes.items():
            below[key[:level]] += size
        groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for key in below:
            groups.setdefault(key[:-1], []).append(key)
        nested = {
            key: quota
            for parent, keys in groups.items()
            for key, quota in _shares(nested[parent], keys, below, seed).items()
        }
    return {(key[0], key[1], key[2]): quota for key, quota in nested.items()}


def _shares(
    samples: int, keys: Sequence[tuple[Any, ...]], sizes: Mapping[Any, int], seed: int
) -> dict[tuple[Any, ...], int]:
    total = sum(sizes[key] for key in keys)
    quotas = {key: samples * sizes[key] // total for key in keys}

    def order(key: tuple[Any, ...]) -> tuple[int, int]:
        return (-(samples * sizes[key] % total), _hash(seed, ":".join(map(str, key))))

    for key in sorted(keys, key=order)[: samples - sum(quotas.values())]:
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
    shares = docstring_shares([row["text"] for row in rows])
    lengths = np.array([len(row["text"]) for row in rows])
    return {
        "histogram": {f"{low}-{low + 1}": histogram[low] for low in range(10)},
        "mean_score": round(float(scores.mean()), 4),
        "correlation_with_length": rank_correlation(scores, lengths),
        "correlation_with_docstring_share": rank_correlation(scores, shares),
    }


def _noise(
    rows: Sequence[corpus.Row], judge: Annotator, repeats: float, seed: int
) -> dict[str, Any] | None:
    """What second opinions on some of the documents say of the labels."""
    import numpy as np

    from hornbook.quality.stats import classification, weighted_kappa

    count = min(len(rows), math.ceil(repeats * len(rows)))
    if count == 0:
        return None
    chosen = sorted(rows, key=lambda row: _hash(seed + 2, row["id"]))[:count]
    batch = getattr(judge, "batch", None)
    texts = [row["text"] for row in chosen]
    answers = batch(texts, repeat=1) if batch else map(judge, texts)
    again = [_scored(*pair) for pair in zip(chosen, answers, strict=True)]
    both = [(old["score"], new["score"]) for old, new in zip(chosen, again, strict=True) if new]
    first = np.array([old for old, _ in both])
    second = np.array([new for _, new in both])
    return {
        "asked_twice": count,
        "scored_twice": len(both),
        "kappa": classification(second >= 5.0, first >= 5.0)["kappa"] if both else None,
        "weighted_kappa": weighted_kappa(first, second),
        "mean_difference": round(float(np.abs(first - second).mean()), 4) if both else None,
    }
