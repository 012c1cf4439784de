"""Removes documents that hold a benchmark's text or solutions; measures how close a corpus comes.

Three rules (section 5 of the phi-1 paper), any of which may be left out. *N-gram*: the document
shares a run of 13 words with a problem's docstring or program. *AST*: one of its functions, methods
and nested ones included, matches a problem's reference function at a rate of `ast_threshold` or
more. *Embedding*: its embedding lies within `embedding_threshold` of the reference program's. The
first sees copied text, the second renamed code. The paper does not say how the last two work
together: here either is enough (`combine="or"`), or both must hold for the same problem (`"and"`).

The paper gives no formula for its AST match rate. Ours is 1 - Levenshtein / length of the longer,
of two functions as sequences: of tree-sitter's node kinds in preorder, that is named nodes and
operators, or (`unit="char"`) of the characters of that tree written as `kind(child child)`.
Names, comments, docstrings and values of literals are stripped unless `strip` leaves them in;
annotations and grouping parentheses always are. Short functions reach high rates by chance, so
references of fewer than `min_nodes` nodes are left out; the manifest counts them.

No rule sees a paraphrased prompt or another algorithm. What the n-gram rule removes too much are
phrases that everybody writes; name them in `ignore`. The thread count never changes a byte, and an
interrupted run goes on from its last finished part. Memory is a batch and the references.
Cost: 13-grams 450 MB of JSON lines a CPU second (`scan`; 900 MB of texts in memory), the AST rule
about 8 MB, nearly all of it parsing.

    hornbook.decontaminate(["data/"], "clean/", benchmarks=["humaneval"], ast_threshold=0.95)
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hornbook import _core, progress
from hornbook.contaminants import (
    BENCHMARKS,
    DATA_VARIABLE,
    Contaminants,
    NgramRule,
    Problem,
    benchmark_path,
    load,
    load_problems,
    save_ngrams,
)
from hornbook.corpus import SOURCE_EXTENSIONS
from hornbook.dedup import paths_of
from hornbook.errors import ConfigError
from hornbook.files import StrPath, json_lines
from hornbook.manifest import Outcome, Report, check_threads, run_stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BENCHMARKS",
    "DATA_VARIABLE",
    "Problem",
    "SyntaxRule",
    "ast_match",
    "benchmark_path",
    "decontaminate",
    "load_problems",
    "save_ngrams",
    "scan",
    "similarity",
    "sweep",
]

Embedder = Callable[[Sequence[str]], "NDArray[Any]"]
"""Gives texts as rows of numbers, [n, d]; rows are scaled to unit length before use."""

TAUS = (0.95, 0.9, 0.85, 0.8)
"""The paper's match rates (Table 3)."""

STRIPPED = ("names", "comments", "docstrings", "literals")
"""What the AST rule can leave out of a tree."""

Combine = Literal["or", "and"]
Unit = Literal["node", "char"]


@dataclass(frozen=True, kw_only=True)
class SyntaxRule:
    """How the AST rule reads programs."""

    unit: Unit = "node"
    """What an edit changes: a node of the tree, or a character of the tree as text."""
    strip: tuple[str, ...] = STRIPPED
    """What is left out of the tree: some of `names`, `comments`, `docstrings`, `literals`."""
    min_nodes: int = 20
    """Reference functions of fewer nodes are not used."""

    def __post_init__(self) -> None:
        if self.unit not in ("node", "char"):
            raise ConfigError(f"unit: {self.unit!r} is neither 'node' nor 'char'")
        if not set(self.strip) <= set(STRIPPED):
            raise ConfigError(f"strip: {self.strip!r} is not some of {', '.join(STRIPPED)}")
        if self.min_nodes < 1:
            raise ConfigError(f"min_nodes: {self.min_nodes} is less than 1")

    def reading(self) -> tuple[bool, bool, bool, bool, bool]:
        """For the core: whether characters count, and what is kept."""
        names, comments, docstrings, literals = (part not in self.strip for part in STRIPPED)
        return self.unit == "char", names, comments, docstrings, literals


@dataclass(frozen=True, kw_only=True)
class _Similar:
    """The two tests of similarity."""

    syntax: SyntaxRule
    ast_threshold: float | None
    embedding_threshold: float
    combine: Combine
    sweep: tuple[float, ...]
    nearest: int
    trees: bool = True
    """Whether programs are parsed."""

    def __post_init__(self) -> None:
        for name, values in (("ast_threshold", (self.ast_threshold,)), ("sweep", self.sweep)):
            for value in values:
                if value is not None and not 0 < value <= 1:
                    raise ConfigError(f"{name}: {value} is not above 0 and at most 1")
        if not 0 <= self.embedding_threshold <= 2:
            raise ConfigError(
                f"embedding_threshold: {self.embedding_threshold} is not a distance of unit "
                "vectors, from 0 to 2"
            )
        if self.combine not in ("or", "and"):
            raise ConfigError(f"combine: {self.combine!r} is neither 'or' nor 'and'")
        if self.nearest < 0:
            raise ConfigError(f"nearest: {self.nearest} is less than 0")


def _names(value: Sequence[StrPath], option: str) -> tuple[str, ...]:
    if isinstance(value, str | os.PathLike):
        raise ConfigError(f"{option} is a list: put a single name in brackets")
    return tuple(os.fspath(name) for name in value)


def _embedder(
    embedder: Embedder | str | None, model: str, url: str
) -> tuple[str | None, Embedder | None]:
    """The embedder and what the manifest calls it."""
    if model and (not isinstance(embedder, str) or embedder == "hash"):
        raise ConfigError("embedder_model goes with an embedder by a neural model")
    if url and embedder != "http":
        raise ConfigError("embedder_url goes with the embedder `http`")
    if embedder is None:
        return None, None
    if embedder == "hash":
        from hornbook.quality.embed import DIMENSIONS, embed, embedder_id

        # Its other columns are ratios of any size, which would drown the hashed tokens.
        return f"{embedder_id()}, hashed tokens", lambda texts: embed(texts)[:, :DIMENSIONS]
    if isinstance(embedder, str):
        from hornbook.quality.embed import embedder_of

        made = embedder_of(embedder, model=model, url=url)
        return made.id, made.embed
    if not callable(embedder):
        raise ConfigError(f"embedder: {embedder!r} is neither a name nor a function of texts")
    name = getattr(embedder, "__qualname__", type(embedder).__qualname__)
    return getattr(embedder, "id", f"{getattr(embedder, '__module__', '')}.{name}"), embedder


def _unit(embed: Embedder, name: str | None, texts: Sequence[str]) -> "NDArray[np.float64]":
    import numpy as np

    # In double precision: of close vectors a cosine in single precision is too coarse.
    rows = np.asarray(embed(texts), dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(texts) or not np.isfinite(rows).all():
        raise ConfigError(
            f"embedder {name}: gave shape {rows.shape} for {len(texts)} texts (wanted: one row of "
            "finite numbers each)"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled


def _distances(
    embed: Embedder, name: str | None, problems: Sequence[Problem]
) -> Callable[[list[str]], "NDArray[np.float32]"]:
    """L2 distances of unit vectors between texts and programs; infinite where there is none."""
    import numpy as np

    known = [place for place, problem in enumerate(problems) if problem.program]
    programs = _unit(embed, name, [problems[place].program for place in known]) if known else None

    def distances(texts: list[str]) -> "NDArray[np.float32]":
        found = np.full((len(texts), len(problems)), np.inf, dtype=np.float32)
        if programs is not None:
            rows = _unit(embed, name, texts)
            ends = np.square(rows).sum(1)[:, None] + np.square(programs).sum(1)
            squares = ends - 2 * rows @ programs.T
            # Of close vectors rounding is all that is left.
            close = np.nonzero(squares < 1e-6)
            squares[close] = np.square(rows[close[0]] - programs[close[1]]).sum(1)
            found[:, known] = np.sqrt(squares)
        return found

    return distances


def _judge(
    paths: Sequence[Path],
    out: Path | None,
    contaminants: Contaminants,
    grams: _core.NgramSet,
    similar: _Similar,
    embedder: tuple[str | None, Embedder | None],
    threads: int | None,
) -> dict[str, Any]:
    """One pass of the core over a corpus."""
    problems = contaminants.problems
    syntax = None
    if similar.trees:
        rule = similar.syntax
        syntax = (
            similar.ast_threshold,
            rule.reading(),
            rule.min_nodes,
            list(similar.sweep),
            similar.nearest,
        )
    name, embed = embedder

    def tick(rows: int, files_left: int) -> None:
        progress.advance("documents judged", rows, None, f"{files_left} files left")

    return _core.decontaminate_corpus(
        list(paths),
        list(SOURCE_EXTENSIONS),
        out,
        [(p.task_id, p.program, p.entry_point) for p in problems],
        grams,
        syntax,
        None if embed is None else (similar.embedding_threshold, similar.nearest),
        similar.combine == "and",
        None if embed is None else _distances(embed, name, problems),
        tick,
        threads,
    )


def decontaminate(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    benchmarks: Sequence[StrPath] = ("humaneval", "mbpp"),
    ngram: int | None = 13,
    fields: Sequence[str] = ("docstring", "program"),
    short: bool = True,
    trivial: bool = False,
    ignore: Sequence[str] = (),
    ast_threshold: float | None = None,
    unit: Unit = "node",
    strip: Sequence[str] = STRIPPED,
    min_nodes: int = 20,
    embedder: Embedder | str | None = None,
    embedder_model: str = "",
    embedder_url: str = "",
    embedding_threshold: float = 0.16,
    combine: Combine = "or",
    sweep: Sequence[float] = TAUS,
    nearest: int = 3,
    threads: int | None = None,
) -> Report:
    """Copies documents into the folder `out` without those that resemble a benchmark problem.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        out: Folder for the result: Parquet parts with every column in input order, `manifest.json`,
            `evidence/removed.json` (one JSON object a removed document, problem and rule: `id`,
            `row`, `item`, `rule`; of n-grams the problem's `field`, the first `ngram`, how many
            `words` the first shared run has, its `line` and `context`, how many of the problem's
            `grams` the document holds; of functions `rate`, `function`, `line`; of embeddings
            `distance`) and `problems.json` (one object a problem: documents found `by_ngram`,
            `by_ast`, `by_embedding`, documents `removed`, and the `nearest` documents, each with
            whether it was removed).
        benchmarks: `humaneval`, `humaneval+`, `mbpp`, `mbpp+` (looked up in the folder
            `HORNBOOK_DATA`), problem files, or files of hashed n-grams (`save_ngrams`).
        ngram: Words in an n-gram: maximal runs of `[A-Za-z0-9_]` and non-ASCII alphanumerics,
            lower-cased. None: no n-gram rule.
        fields: Fields of a problem that count, of `docstring`, `program` and `tests`. The paper:
            `["docstring"]`.
        short: Texts of fewer words than `ngram`, but eight or more, count whole. The manifest
            counts problems that the rule cannot see.
        trivial: Also count n-grams of numbers, single letters and repeated words.
        ignore: Texts whose n-grams never count.
        ast_threshold: Least AST match rate, above 0 and at most 1; without it there is no such
            rule. Functions in Markdown's fenced blocks are compared too.
        unit: `node` or `char`: what an edit of the syntax tree changes.
        strip: What is left out of the tree, of `names`, `comments`, `docstrings`, `literals`.
        min_nodes: Reference functions of fewer nodes are not used by the AST rule.
        embedder: `hash` (the hashed tokens of `quality.embed`), `codegen`, `sentence` or `http` (a
            neural model, as in `quality.embedder`), or a function from texts to rows of numbers;
            without it there is no embedding rule. Its `id` (or its name) is in the manifest:
            change it with the embedder. The paper's is `codegen`.
        embedder_model: The neural model: a name or a folder. The paper's is
            Salesforce/codegen-350M-mono.
        embedder_url: For `http`: the endpoint.
        embedding_threshold: Largest L2 distance of unit vectors. The paper does not give its own;
            0.16 is that of a pair it shows as caught, by another embedder than `hash`.
        combine: `or`: one of the last two rules is enough; `and`: both must hold for one problem.
        sweep: Match rates for which `details.sweep` counts similar problems and documents.
        nearest: Nearest documents that `problems.json` names of each problem.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        The manifest. `counts.dropped` holds `ngram`, `ast` (`ast+embedding` with `and`) and
        `embedding`, each document under the first that holds; `details` what was looked for, and
        the sweep.

    Raises:
        ConfigError: If an option makes no sense or a benchmark is not there.
        InputError: If an input or a problem file cannot be read.
        ResumeError: If `out` holds something else.
        StorageError: If the disk is full or not writable.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    names = _names(benchmarks, "benchmarks")
    if not names:
        raise ConfigError(f"benchmarks: name at least one of {', '.join(BENCHMARKS)} or a file")
    rule = _ngram_rule(ngram, fields, short, trivial, ignore)
    with_trees = ast_threshold is not None
    similar = _Similar(
        syntax=SyntaxRule(unit=unit, strip=_names(strip, "strip"), min_nodes=min_nodes),
        ast_threshold=ast_threshold,
        embedding_threshold=embedding_threshold,
        combine=combine,
        sweep=tuple(sweep) if with_trees else (),
        nearest=nearest,
        trees=with_trees,
    )
    if ngram is None and not with_trees and embedder is None:
        raise ConfigError("ngram: give it, an ast_threshold or an embedder: there is no rule left")
    if combine == "and" and (not with_trees or embedder is None):
        raise ConfigError("combine: 'and' needs an ast_threshold and an embedder")
    files = [benchmark_path(name) for name in names]
    contaminants = load(files, rule or NgramRule())
    solved = any(problem.program for problem in contaminants.problems)
    if (with_trees or embedder is not None) and not solved:
        raise ConfigError(
            "ast_threshold and embedder compare with solutions, and files of hashed n-grams hold "
            "none: name the problems themselves"
        )
    # Last, as it may take a model's loading.
    called, embed = _embedder(embedder, embedder_model, embedder_url)
    grams = _grams(contaminants, rule)

    def work(folder: Path) -> Outcome:
        done = _judge(paths, folder, contaminants, grams, similar, (called, embed), threads)
        dropped = {} if ngram is None else {"ngram": done["ngram"]}
        details: dict[str, Any] = {
            "evidence": done["evidence"][0],
            "problems": done["evidence"][1],
            "items": len(contaminants.problems),
            "ngrams": len(grams),
            "items_without_ngram": sum(not item["ngrams"] for item in done["items"]),
            "token_rule": _core.NGRAM_TOKEN_RULE,
        }
        if with_trees:
            dropped["ast+embedding" if combine == "and" else "ast"] = done["ast"]
            details["items_without_reference"] = sum(not item["nodes"] for item in done["items"])
            details["sweep"] = _shares(done)
        if embed is not None:
            details["embedder"] = called
            if combine == "or":
                dropped["embedding"] = done["embedding"]
        return Outcome(
            parts=done["parts"],
            rows_in=done["rows"],
            kept=done["rows"] - sum(dropped.values()),
            dropped=dropped,
            rejected=done["rejected"],
            details=details,
        )

    # Where the benchmarks lie does not matter: their contents are among the inputs.
    identity: dict[str, Any] = {
        "benchmarks": [file.name for file in files],
        "ngram": ngram,
        "fields": list(fields),
        "short": short,
        "trivial": trivial,
        "ignore": list(ignore),
        "ast_threshold": ast_threshold,
        "unit": unit,
        "strip": sorted(strip),
        "min_nodes": min_nodes,
        "embedder": called,
        "embedder_url": embedder_url,
        "embedding_threshold": None if embed is None else embedding_threshold,
        "combine": combine,
        "sweep": list(similar.sweep),
        "nearest": similar.nearest,
    }
    return run_stage(
        "decontaminate", out, inputs=[*paths, *files], config=identity, work=work, resumable=True
    )


def _ngram_rule(
    ngram: int | None, fields: Sequence[str], short: bool, trivial: bool, ignore: Sequence[str]
) -> NgramRule | None:
    if isinstance(ignore, str):
        raise ConfigError("ignore is a list: put a single text in brackets")
    if ngram is None:
        return None
    return NgramRule(
        ngram=ngram,
        fields=_names(fields, "fields"),
        short=short,
        trivial=trivial,
        ignore=tuple(ignore),
    )


def _grams(contaminants: Contaminants, rule: NgramRule | None) -> _core.NgramSet:
    return (
        _core.NgramSet(1, [], [], False, False, []) if rule is None else contaminants.ngrams(rule)
    )


def _shares(done: dict[str, Any]) -> list[dict[str, Any]]:
    rows = max(done["rows"], 1)
    return [{**row, "share": row["documents"] / rows} for row in done["sweep"]]


def scan(
    inputs: StrPath | Sequence[StrPath],
    *,
    benchmarks: Sequence[StrPath] = ("humaneval", "mbpp"),
    ngram: int = 13,
    fields: Sequence[str] = ("docstring", "program"),
    short: bool = True,
    trivial: bool = False,
    ignore: Sequence[str] = (),
    most: int = 1000,
    threads: int | None = None,
) -> dict[str, Any]:
    """Looks for the benchmarks' n-grams in a corpus and writes nothing.

    The same hits as `decontaminate`, faster: plain JSON lines are searched as they lie on disk.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        benchmarks, ngram, fields, short, trivial, ignore: As for `decontaminate`.
        most: At most so many hits are given with their evidence; all are counted.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        `rows`, `contaminated` (rows that share an n-gram), `problems` (of each `item` how many
        `ngrams` it has and in how many `documents` they stand), `hits` (evidence as in
        `decontaminate`, with the `path` of the file and the `row` in it, from 1) and `rejected`
        (`(file, row, reason)` of rows that cannot be used).

    Raises:
        ConfigError: If an option makes no sense or a benchmark is not there.
        InputError: If an input or a problem file cannot be read.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    if most < 0:
        raise ConfigError(f"most: {most} is less than 0")
    rule = _ngram_rule(ngram, fields, short, trivial, ignore)
    files = [benchmark_path(name) for name in _names(benchmarks, "benchmarks")]
    contaminants = load(files, rule or NgramRule())
    grams = _grams(contaminants, rule)
    names = [problem.task_id for problem in contaminants.problems]

    def tick(rows: int, files_left: int) -> None:
        progress.advance("documents scanned", rows, None, f"{files_left} files left")

    done = grams.scan_files(list(paths), list(SOURCE_EXTENSIONS), names, most, threads, tick)
    counts = zip(names, grams.of_items(len(names)), done["by_item"], strict=True)
    return {
        "rows": done["rows"],
        "contaminated": done["contaminated"],
        "problems": [{"item": i, "ngrams": n, "documents": d} for i, n, d in counts],
        "hits": list(json_lines(done["evidence"])),
        "rejected": done["rejected"],
    }


def ast_match(a: str, b: str, *, unit: Unit = "node", strip: Sequence[str] = STRIPPED) -> float:
    """The AST match rate of two Python sources, from 0 to 1 (see the module's docstring).

    Layout makes no difference, nor does what is stripped; broken code is matched as far as it
    parses. Each source is taken whole: for the rate of two functions, give the functions alone.

    Raises:
        ConfigError: If an option makes no sense.
    """
    rule = SyntaxRule(unit=unit, strip=_names(strip, "strip"))
    return _core.ast_match(a, b, rule.reading())


def sweep(
    inputs: StrPath | Sequence[StrPath],
    *,
    benchmarks: Sequence[StrPath] = ("humaneval",),
    taus: Sequence[float] = TAUS,
    unit: Unit = "node",
    strip: Sequence[str] = STRIPPED,
    min_nodes: int = 20,
    embedder: Embedder | str | None = None,
    embedder_model: str = "",
    embedder_url: str = "",
    embedding_threshold: float = 0.16,
    combine: Combine = "or",
    nearest: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """The paper's Table 3 without its scores, for every match rate in one pass; writes nothing.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        benchmarks: As for `decontaminate`.
        taus: Match rates at which a problem and a document are similar.
        unit, strip, min_nodes, embedding_threshold, combine: As for `decontaminate`.
        embedder, embedder_model, embedder_url: As for `decontaminate`.
        nearest: Nearest documents that are named of each problem.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        `documents`; `rows`, one a rate: `tau`, `similar` and `non_similar` problems, and the
        `documents` (also as a `share`) that pruning at that rate takes; `problems`, each with
        `item`, `nodes` of its reference (0: it has none, so it is never similar by AST), `nearest`
        documents and, in the order of `taus`, whether it is `similar`.

    Raises:
        ConfigError: If an option makes no sense or a benchmark is not there.
        InputError: If an input or a problem file cannot be read.
    """
    paths = paths_of(inputs)
    check_threads(threads)
    if combine == "and" and embedder is None:
        raise ConfigError("combine: 'and' needs an embedder")
    called, embed = _embedder(embedder, embedder_model, embedder_url)
    similar = _Similar(
        syntax=SyntaxRule(unit=unit, strip=_names(strip, "strip"), min_nodes=min_nodes),
        ast_threshold=None,
        embedding_threshold=embedding_threshold,
        combine=combine,
        sweep=tuple(taus),
        nearest=nearest,
    )
    files = [benchmark_path(name) for name in _names(benchmarks, "benchmarks")]
    contaminants = load(files, NgramRule())
    none = _grams(contaminants, None)
    done = _judge(paths, None, contaminants, none, similar, (called, embed), threads)
    return {"documents": done["rows"], "rows": _shares(done), "problems": done["items"]}


def similarity(
    inputs: StrPath | Sequence[StrPath], problems: StrPath, *, threads: int | None = None
) -> list[dict[str, Any]]:
    """How close a corpus comes to each problem: the paper's split into similar and non-similar.

    A problem is similar at a rate tau (0.95 to 0.8 in the paper's Table 3) if its `rate` is tau or
    more. Problems of few `nodes` reach high rates by chance: consider leaving them out.

    Args:
        inputs: Parquet or JSON-lines files, or folders of either or of source files.
        problems: A problem file, or a benchmark known by name.
        threads: At most so many; every core if left out. Never changes the result.

    Returns:
        One dict a problem, in order: `task_id`, `rate` (the best AST match rate of any function of
        any document with the reference function), `id` (of that document, the first of equals; None
        if no function has anything in common), `nodes` (of the reference function).

    Raises:
        ConfigError: If an option makes no sense or the benchmark is not there.
        InputError: If an input or the problem file cannot be read.
    """
    done = sweep(inputs, benchmarks=[problems], taus=(), min_nodes=1, threads=threads)
    return [closest(item) for item in done["problems"]]


def closest(item: dict[str, Any]) -> dict[str, Any]:
    """Of a problem of `sweep`: `task_id`, `rate`, `id` and `nodes`, as in `similarity`."""
    best = item["nearest"][0] if item["nearest"] else {"rate": 0.0, "id": None}
    return {
        "task_id": item["item"],
        "rate": best["rate"],
        "id": best["id"],
        "nodes": item["nodes"],
    }
