"""Keeps the documents a forest finds worth learning from (paper section 2.1).

Trains on the scores of an `annotate` stage (or takes a forest that is there), scores every
document, and writes those above the threshold with a column `quality_score`; every other column is
carried through. Beside the parts lie `forest.bin`, `report.html`, and `__scores__/`: id, score and
decision of every document. Work is cut into units of about `part_bytes` of text, each a part of the
output; an interrupted run goes on after the last finished one. Memory: a batch and a row group for
each thread, whatever the size. Reads the corpus twice where the threshold depends on the scores.

    hb.quality.filter_documents(["clean/"], "filtered/", labels="labels/", keep_tokens=0.17)
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import _core, corpus, progress
from hornbook.errors import ConfigError, InputError, need
from hornbook.files import StrPath, hash_json, read_json, write_text
from hornbook.manifest import (
    MANIFEST,
    Outcome,
    Report,
    check_threads,
    file_part,
    input_hash,
    read_manifest,
    run_stage,
)
from hornbook.quality.embed import DIMENSIONS, Embedder, embedder_id, embedder_of, from_settings
from hornbook.quality.embed import embedder as make_embedder
from hornbook.quality.filter_report import Tally, page
from hornbook.quality.forest import Forest
from hornbook.quality.training import threshold_of_precision, train

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PART_BYTES = 64 << 20
"""Text of a unit of work, unless told otherwise."""
SCORES = "__scores__"

Rule = tuple[float, dict[str, float]]
"""The score from which a document is kept, and that of sources that have their own."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What decides a filter's bytes, besides its inputs and labels."""

    trees: int = 100
    """Trees of the forest."""
    min_score: float = 5.0
    """Labels of at least this score count as educational."""
    keep_tokens: float | None = None
    """Keep the best documents, about this share of the text (in bytes; the paper keeps 17%)."""
    keep_quantile: float | None = None
    """Keep the best documents of each source, about this share of its text."""
    keep_precision: float | None = None
    """Keep from the lowest score that gives this precision on the held-out labels."""
    threshold: float = 0.5
    """Keep from this probability, when none of the three above is set."""
    dimensions: int = DIMENSIONS
    """Hashed dimensions of the features, for the embedder `hash`."""
    embedder: str = "hash"
    """`hash`, or what a neural model stands behind: `codegen`, `sentence`, `http`."""
    embedder_model: str = ""
    """That model: a name or a folder."""
    embedder_url: str = ""
    """For `http`: the endpoint."""
    truncation: int | None = None
    """Tokens of a text that a neural model sees (`http`: characters); if not set, its default."""
    part_bytes: int = PART_BYTES
    """Text of one part of the output before filtering: what an interruption can lose."""
    seed: int = 0
    """Decides the forest and which labels are held out."""

    def __post_init__(self) -> None:
        if self.trees < 1:
            raise ConfigError(f"trees = {self.trees}: must be at least 1")
        if self.part_bytes < 1:
            raise ConfigError(f"part_bytes = {self.part_bytes}: must be at least 1")
        ways = ("keep_tokens", "keep_quantile", "keep_precision")
        chosen = [name for name in ways if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} exclude each other: set one")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed = {self.seed}: must lie between 0 and 4,294,967,295")
        for name in chosen:
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"{name} = {getattr(self, name)}: must lie above 0 and at most at 1"
                )
        for name in ("embedder_model", "embedder_url", "truncation"):
            if self.embedder == "hash" and getattr(self, name):
                raise ConfigError(f"{name}: the embedder `hash` has no use for it")
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold = {self.threshold}: must lie between 0 and 1")

    def make_embedder(self) -> Embedder:
        """The embedder that is asked for.

        Raises:
            ConfigError: If it is unknown or its model is not named.
        """
        if self.embedder == "hash":
            return make_embedder("hash", dimensions=self.dimensions)
        return embedder_of(
            self.embedder,
            model=self.embedder_model,
            url=self.embedder_url,
            truncation=self.truncation,
        )


def filter_documents(
    inputs: Sequence[StrPath],
    out: StrPath,
    *,
    labels: StrPath | None = None,
    model: StrPath | None = None,
    embedder: str | Embedder = "hash",
    threads: int | None = None,
    **options: Any,
) -> Report:
    """Trains a forest on labels, or takes one, and keeps the documents it finds educational.

    Args:
        inputs: Documents.
        out: The stage's folder.
        labels: Folder of an `annotate` stage, or a file with columns `text` and `score`.
        model: Instead of labels: the `forest.bin` of an earlier filter. Its threshold holds unless
            another is asked for.
        embedder: `hash`, `codegen`, `sentence` or `http` (see `FilterConfig`), or an object with
            `id`, `settings` and `embed(texts)`. With `model`, the forest's own unless an object.
        threads: How many units are under way at once (default: one for each core). No influence on
            the output. Neural embedders take units one after the other.
        options: The other fields of `FilterConfig`.

    Returns:
        The manifest; `details` has the threshold, the share of text kept, under `held_out` what the
        forest's judgement of unseen labels is worth, and keep rates, curve and examples.

    Raises:
        ConfigError: If an option makes no sense or the wanted precision is out of reach.
        InputError: If the labels are too few, of one class only, or have no `score`.
        MissingExtraError: If scikit-learn, or what the embedder needs, is not installed.
    """
    if (labels is None) == (model is None):
        raise ConfigError("filter: give either `labels` to learn from, or the `model` to use")
    check_threads(threads)
    custom = None if isinstance(embedder, str) else embedder
    if isinstance(embedder, str):
        options["embedder"] = embedder
    forest = None if model is None else Forest.load(model)
    if forest is not None and "threshold" not in options:
        options["threshold"] = forest.header["threshold"]
    try:
        config = FilterConfig(**options)
    except TypeError as error:
        raise ConfigError(f"filter: {error}") from error
    if forest is not None and config.keep_precision is not None:
        raise ConfigError("keep_precision needs labels, on which precision can be measured")
    for name in ("trees", "min_score") if forest is not None else ():
        if getattr(config, name) != getattr(FilterConfig, name):
            raise ConfigError(f"{name}: a forest is given, so none is trained")
    if labels is not None:
        need("sklearn", "quality")
    if custom is None and forest is None:
        custom = config.make_embedder()
    elif custom is None and forest is not None:
        custom = _embedder_of(forest)
    assert custom is not None
    if forest is not None and custom.id != forest.header["embedder"]:
        raise ConfigError(
            f"the forest was trained on `{forest.header['embedder']}` features, and here are "
            f"`{custom.id}`: use what it was trained with, or train it again"
        )
    job = _Job(inputs, labels, forest, custom, config, threads or os.cpu_count() or 1)
    source = labels if labels is not None else model
    assert source is not None
    return run_stage(
        "filter",
        out,
        inputs=[*inputs, source],
        config={**asdict(config), "embedder_id": custom.id},
        work=job.run,
        seed=config.seed,
        resumable=True,
    )


def _embedder_of(forest: Forest) -> Embedder:
    header = forest.header
    if not header["settings"]:
        return make_embedder("hash", dimensions=header["dimensions"])
    return from_settings(header["settings"], header["embedder"])


class _Job:
    """One run of the stage, in a folder that may hold what an interrupted one left."""

    def __init__(
        self,
        inputs: Sequence[StrPath],
        labels: StrPath | None,
        forest: Forest | None,
        embedder: Embedder,
        config: FilterConfig,
        threads: int,
    ) -> None:
        self.inputs = [Path(path) for path in inputs]
        self.labels = labels
        self.forest = forest
        self.embedder = embedder
        self.config = config
        self.threads = threads

    def run(self, folder: Path) -> Outcome:
        """Does what is not done yet."""
        for name in (SCORES, "rejected"):
            (folder / name).mkdir(exist_ok=True)
        precise, training = self._train(folder)
        forest = self.forest
        assert forest is not None
        units = _core.Units(self.inputs, list(corpus.SOURCE_EXTENSIONS), self.config.part_bytes)
        rule = self._rule(folder, units, precise)
        self._each(
            units,
            folder,
            "filter",
            _scores_path,
            lambda unit: self._unit(units, unit, folder, rule),
        )
        passes = sorted((folder / SCORES).glob(".pass-*"))
        decided = [_scores_path(folder, unit) for unit in range(len(units))]
        tally = Tally(decided)
        forest = forest.with_threshold(rule[0])
        forest.save(folder / "forest.bin")
        report = self._report(training, tally, rule)
        examples = tally.examples(units, self.threads)
        write_text(folder / "report.html", page(report, examples))
        for path in passes:
            path.unlink()
        rejected = _merge_rejected(folder)
        names = [f"part-{unit:05}.parquet" for unit in range(len(units))]
        scores = [f"{SCORES}/{name}" for name in names]
        parts = [
            file_part(folder, name, _core.parquet_rows(folder / name)) for name in [*names, *scores]
        ]
        others = ("forest.bin", "report.html", "training.json", "rule.json")
        parts += [file_part(folder, name) for name in others if (folder / name).is_file()]
        if not any((folder / "rejected").iterdir()):
            (folder / "rejected").rmdir()
        rows = sum(part["rows"] for part in parts[len(names) : 2 * len(names)])
        kept = sum(part["rows"] for part in parts[: len(names)])
        return Outcome(
            parts=parts,
            rows_in=rows,
            kept=kept,
            dropped={"low score": rows - kept},
            rejected=rejected,
            details=report,
        )

    def _train(self, folder: Path) -> tuple[float | None, dict[str, Any]]:
        """Sets the forest; gives the threshold for a wanted precision, and the report on labels."""
        record = folder / "training.json"
        if self.labels is None:
            return None, {}
        if record.is_file():
            self.forest = Forest.load(folder / "forest.bin")
            found = read_json(record)
            return found["threshold"], found["report"]
        settings = json.dumps(self.embedder.settings, sort_keys=True)
        if self.embedder.settings.get("kind") == "hash":
            settings = ""
        name = hash_json([asdict(self.config), input_hash(self.labels), self.embedder.id])
        trained = train(self.labels, self.embedder, settings, self.config, name)
        self.forest = trained.forest
        wanted = self.config.keep_precision
        precise = None if wanted is None else threshold_of_precision(trained, wanted)
        cut = self.config.threshold if precise is None else precise
        report = trained.report(cut, self.config.min_score)
        trained.forest.save(folder / "forest.bin")
        write_text(record, json.dumps({"threshold": precise, "report": report}))
        return precise, report

    def _rule(self, folder: Path, units: _core.Units, precise: float | None) -> Rule:
        """From which score documents are kept; reads the corpus where that depends on it."""
        config = self.config
        if config.keep_tokens is None and config.keep_quantile is None:
            return (config.threshold if precise is None else precise, {})
        record = folder / "rule.json"
        if record.is_file():
            found = read_json(record)
            return found["threshold"], found["by_source"]
        self._each(
            units, folder, "score", _pass_path, lambda unit: self._unit(units, unit, folder, None)
        )
        tally = Tally([_pass_path(folder, unit) for unit in range(len(units))])
        rule = tally.rule(config.keep_tokens, config.keep_quantile)
        write_text(record, json.dumps({"threshold": rule[0], "by_source": rule[1]}))
        return rule

    def _unit(self, units: _core.Units, unit: int, folder: Path, rule: Rule | None) -> None:
        forest = self.forest
        assert forest is not None
        parallel = len(units) < self.threads
        if _pass_path(folder, unit).is_file():
            units.filter(unit, folder, None, None, rule, parallel)
        elif self._in_core:
            units.filter(unit, folder, forest.inner, None, rule, parallel)
        else:
            units.filter(unit, folder, None, self._embed(units, unit, forest), rule, parallel)

    def _embed(self, units: _core.Units, unit: int, forest: Forest) -> "NDArray[np.float64]":
        """A unit's scores by an embedder outside the core."""
        import numpy as np

        scores = (
            forest.score(self.embedder.embed(columns["text"])) for columns in units.read(unit)
        )
        return np.concatenate([np.zeros(0, np.float64), *scores])

    @property
    def _in_core(self) -> bool:
        forest = self.forest
        return forest is not None and forest.header["embedder"] == embedder_id(
            forest.header["dimensions"]
        )

    def _each(
        self,
        units: _core.Units,
        folder: Path,
        label: str,
        path: Callable[[Path, int], Path],
        work: Callable[[int], None],
    ) -> None:
        """Does the units whose file is not there yet; the first that fails stops all."""
        left = [
            unit
            for unit in range(len(units))
            if not (path(folder, unit).is_file() or _scores_path(folder, unit).is_file())
        ]
        done = len(units) - len(left)
        workers = self.threads if self._in_core else 1
        with ThreadPoolExecutor(workers) as pool:
            try:
                waiting = {pool.submit(work, unit) for unit in left}
                # For the report; a tenth of a second that passes while the core works.
                import numpy  # noqa: F401

                while waiting:
                    progress.advance(label, done, len(units))
                    finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                        done += 1
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        progress.advance(label, done, len(units))

    def _report(self, training: dict[str, Any], tally: Tally, rule: Rule) -> dict[str, Any]:
        documents, text, _, kept_text = tally.totals
        return {
            "threshold": rule[0],
            "threshold_by_source": rule[1],
            "documents": documents,
            "text_bytes": text,
            "kept_text_bytes": kept_text,
            "kept_text_share": kept_text / max(1, text),
            "embedder": self.embedder.id,
            **training,
            "corpus": tally.correlations(),
            "keep_rate": tally.keep_rates(),
            "curve": tally.curve(),
            "highest": tally.highest,
            "lowest": tally.lowest,
        }


def _scores_path(folder: Path, unit: int) -> Path:
    return folder / SCORES / f"part-{unit:05}.parquet"


def _pass_path(folder: Path, unit: int) -> Path:
    return folder / SCORES / f".pass-{unit:05}.parquet"


def _merge_rejected(folder: Path) -> int:
    """Joins what the units set aside into `rejected/rows.jsonl`; gives how many rows that are."""
    target = folder / "rejected" / "rows.jsonl"
    pieces = sorted((folder / "rejected").glob(".unit-*.jsonl"))
    # Written whole, and only after every unit is done: if it is there, it has all of them.
    if pieces and not target.is_file():
        write_text(target, "".join(piece.read_text(encoding="utf-8") for piece in pieces))
    for piece in pieces:
        piece.unlink()
    if not target.is_file():
        return 0
    with target.open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def explain(model: StrPath, inputs: Sequence[StrPath], name: str) -> Report:
    """Says how a forest comes to a document's score, and what a filter makes of that.

    Args:
        model: A `forest.bin`, or the folder of a filter, whose own thresholds then count.
        inputs: Where the document is.
        name: Its id.

    Returns:
        Score, threshold, decision, and the features that the trees ask for most, with their values
        and how often they were asked for; for a hashed one, which tokens of the text it stands for.

    Raises:
        InputError: If no document has that id.
    """
    import numpy as np

    path = Path(model)
    forest = Forest.load(path / "forest.bin" if path.is_dir() else path)
    header = forest.header
    text, source = _find(inputs, name)
    threshold = header["threshold"]
    if path.is_dir() and (path / MANIFEST).is_file():
        made = read_manifest(path).get("details", {})
        threshold = made.get("threshold", threshold)
        threshold = made.get("threshold_by_source", {}).get(source, threshold)
    row = _embedder_of(forest).embed([text])[0]
    asked = np.array(forest.inner.asked(np.ascontiguousarray(row)))
    hashed = not header["settings"]
    names = (
        [f"hash_{slot}" for slot in range(header["dimensions"])] + list(_core.RATIO_NAMES)
        if hashed
        else [f"column_{column}" for column in range(len(row))]
    )
    tokens: dict[int, list[str]] = {}
    if hashed:
        for token, slot in _core.token_slots(text[: 1 << 20], header["dimensions"]):
            known = tokens.setdefault(slot, [])
            if token not in known and len(known) < 5:
                known.append(token)
    score = float(forest.score(row[None])[0])
    order = np.argsort(-asked, kind="stable")[:20]
    return Report(
        {
            "id": name,
            "score": score,
            "threshold": threshold,
            "keep": score >= threshold,
            "embedder": header["embedder"],
            "features": [
                {
                    "name": names[column],
                    "value": float(row[column]),
                    "asked": int(asked[column]),
                    **({"tokens": tokens[column]} if column in tokens else {}),
                }
                for column in order.tolist()
                if asked[column] > 0
            ],
            "ratios": {
                ratio: float(row[header["dimensions"] + at])
                for at, ratio in enumerate(_core.RATIO_NAMES)
            }
            if hashed
            else {},
        }
    )


def _find(inputs: Sequence[StrPath], name: str) -> tuple[str, str]:
    """Text and source of a document."""
    for columns in corpus.read(inputs).batches():
        if name in columns["id"]:
            at = columns["id"].index(name)
            source = columns["source"][at] if "source" in columns else None
            return str(columns["text"][at]), str(source or "")
    raise InputError(f"no document has the id {name!r}")
