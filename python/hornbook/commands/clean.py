"""Commands that clean documents, or say what is in them: dedup, decontamination, diversity."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hornbook import progress
from hornbook.commands.shared import DATA, SEVERAL, Json, Out, app, printable, show, summary

contamination_app = App(
    name="contamination", group=DATA, help="See how much of the test problems a corpus holds."
)
app.command(contamination_app)


@app.command(group=DATA)
def dedup(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    method: Literal["minhash", "exact-join", "exact", "substring"] = "minhash",
    threshold: float = 0.7,
    ngram: int = 5,
    keep: Literal["longest", "first", "highest"] = "longest",
    column: str | None = None,
    recall: float | None = None,
    normalize: bool = False,
    length: int = 50,
    source: str | None = None,
    components: bool = False,
    against: Annotated[list[Path], SEVERAL] = [],  # noqa: B006
    index: Path | None = None,
    memory_mb: int | None = None,
    as_json: Json = False,
) -> None:
    """Remove exact and near duplicates; every removal is verified against a kept document.

    Parameters
    ----------
    method
        minhash (near copies that share a band), exact-join (every near copy), exact (whole texts),
        substring (repeated runs of words).
    column
        For --keep highest: the column of numbers.
    recall
        Choose the bands so that a pair at the threshold is found with this probability.
    normalize
        Texts that differ in white space alone are exact copies.
    length
        For substring: a run of so many words that stands in the result already is cut.
    source
        Count removals by this column; by input if left out.
    components
        Also write connected components, for looking at.
    against
        Documents or indexes of earlier runs that stay.
    index
        Folder of an index to compare against and add to.
    memory_mb
        Memory for sorting and buffers; everything else then stays on disk.

    Examples:
        hornbook dedup data/*.parquet --out clean/

        hornbook dedup new/ --method exact-join --index seen/ --out clean/
    """
    from hornbook.dedup import dedup as run_dedup

    with progress.shown():
        report = run_dedup(
            inputs,
            out,
            method=method,
            threshold=threshold,
            ngram=ngram,
            keep=keep,
            column=column,
            recall=recall,
            normalize=normalize,
            length=length,
            source=source,
            components=components,
            against=against,
            index=index,
            memory_mb=memory_mb,
        )
    for warning in report["details"].get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    summary(report, as_json)


@app.command(group=DATA)
def decontaminate(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    benchmarks: Annotated[list[str], SEVERAL] = ["humaneval", "mbpp"],  # noqa: B006
    ngram: int = 13,
    fields: Annotated[list[Literal["docstring", "program", "tests"]], SEVERAL] = [  # noqa: B006
        "docstring",
        "program",
    ],
    short: bool = True,
    trivial: bool = False,
    ast_threshold: float | None = None,
    unit: Literal["node", "char"] = "node",
    min_nodes: int = 20,
    embedder: Literal["hash", "codegen", "sentence", "http"] | None = None,
    embedder_model: str = "",
    embedder_url: str = "",
    embedding_threshold: float = 0.16,
    combine: Literal["or", "and"] = "or",
    as_json: Json = False,
) -> None:
    """Remove documents that resemble test problems.

    Parameters
    ----------
    benchmarks
        humaneval, humaneval+, mbpp, mbpp+ (found through HORNBOOK_DATA), problem files in their
        form, or files of hashed n-grams (`hornbook contamination hash`); several may follow, behind
        the inputs.
    ngram
        Words in an n-gram.
    fields
        What of a problem is looked for; the paper compares the docstring alone.
    short
        Texts of fewer words, but eight or more, count whole.
    trivial
        Also count n-grams of numbers, single letters and repeated words.
    ast_threshold
        Also remove code whose syntax tree matches a solution's at this rate or more.
    unit
        What an edit of the tree changes: a node, or a character of the tree as text.
    min_nodes
        Solutions of fewer nodes match by chance, and are not compared.
    embedder
        Also compare embeddings: of hashed tokens, or by a neural model. The paper's is codegen.
    embedder_model
        For codegen and sentence a name or folder (the paper's: Salesforce/codegen-350M-mono), for
        http the name at --embedder-url.
    embedder_url
        For http: the endpoint.
    embedding_threshold
        Largest L2 distance of embeddings, scaled to unit length.
    combine
        Whether tree or embedding is enough, or both must be similar to one problem.

    Examples:
        hornbook decontaminate exercises/ --benchmarks humaneval --ast-threshold 0.95 --out clean/
    """
    from hornbook.decontaminate import decontaminate as run_decontaminate

    with progress.shown():
        report = run_decontaminate(
            inputs,
            out,
            benchmarks=benchmarks,
            ngram=ngram,
            fields=fields,
            short=short,
            trivial=trivial,
            ast_threshold=ast_threshold,
            unit=unit,
            min_nodes=min_nodes,
            embedder=embedder,
            embedder_model=embedder_model,
            embedder_url=embedder_url,
            embedding_threshold=embedding_threshold,
            combine=combine,
        )
    summary(report, as_json)


@contamination_app.command(name="scan")
def contamination_scan(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    benchmarks: Annotated[list[str], SEVERAL] = ["humaneval", "mbpp"],  # noqa: B006
    ngram: int = 13,
    trivial: bool = False,
    most: int = 20,
    as_json: Json = False,
) -> None:
    """Show which n-grams of test problems a corpus holds, in context; write nothing.

    Parameters
    ----------
    benchmarks
        As for `hornbook decontaminate`.
    ngram
        Words in an n-gram.
    trivial
        Also count n-grams of numbers, single letters and repeated words.
    most
        Show at most so many hits; all are counted.

    Examples:
        hornbook contamination scan data/*.jsonl --benchmarks humaneval
    """
    from hornbook.decontaminate import scan

    with progress.shown():
        found = scan(inputs, benchmarks=benchmarks, ngram=ngram, trivial=trivial, most=most)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, default=str))
        return
    for hit in found["hits"]:
        place = f"{hit['path']}: row {hit['row']}, line {hit['line']}"
        print(printable(f"{place}: {hit['item']} ({hit['field']}), {hit['words']} words"))
        print(printable("    " + " ".join(hit["context"].split())))
    touched = sum(1 for problem in found["problems"] if problem["documents"])
    print(
        f"{found['contaminated']:,} of {found['rows']:,} documents share a {ngram}-gram with "
        f"{touched:,} of {len(found['problems']):,} problems; "
        f"{len(found['rejected']):,} rows unusable"
    )


@contamination_app.command(name="sweep")
def contamination_sweep(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    benchmarks: Annotated[list[str], SEVERAL] = ["humaneval"],  # noqa: B006
    taus: Annotated[list[float], SEVERAL] = [0.95, 0.9, 0.85, 0.8],  # noqa: B006
    unit: Literal["node", "char"] = "node",
    min_nodes: int = 20,
    embedder: Literal["hash", "codegen", "sentence", "http"] | None = None,
    embedder_model: str = "",
    embedder_url: str = "",
    embedding_threshold: float = 0.16,
    combine: Literal["or", "and"] = "or",
    as_json: Json = False,
) -> None:
    """Count similar problems and documents at each AST match rate (the paper's Table 3).

    Parameters
    ----------
    benchmarks
        As for `hornbook decontaminate`.
    taus
        Match rates.
    unit
        What an edit of the tree changes: a node, or a character of the tree as text.
    min_nodes
        Solutions of fewer nodes match by chance, and are not compared.
    embedder
        Also compare embeddings: of hashed tokens, or by a neural model. The paper's is codegen.
    embedder_model
        For codegen and sentence a name or folder (the paper's: Salesforce/codegen-350M-mono), for
        http the name at --embedder-url.
    embedder_url
        For http: the endpoint.
    embedding_threshold
        Largest L2 distance of embeddings, scaled to unit length.
    combine
        Whether tree or embedding is enough, or both must be similar to one problem.

    Examples:
        hornbook contamination sweep exercises/ --benchmarks humaneval --taus 0.95 0.9
    """
    from hornbook.decontaminate import sweep

    with progress.shown():
        found = sweep(
            inputs,
            benchmarks=benchmarks,
            taus=taus,
            unit=unit,
            min_nodes=min_nodes,
            embedder=embedder,
            embedder_model=embedder_model,
            embedder_url=embedder_url,
            embedding_threshold=embedding_threshold,
            combine=combine,
        )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print("  tau  similar  non-similar  documents")
    for row in found["rows"]:
        print(
            f"{row['tau']:5.2f}  {row['similar']:7,}  {row['non_similar']:11,}  "
            f"{row['documents']:9,} ({row['share']:.1%})"
        )


@contamination_app.command(name="hash")
def contamination_hash(
    benchmarks: Annotated[list[str], Parameter(negative="")],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    ngram: int = 13,
) -> None:
    """Save the hashed n-grams of test problems: a file that may travel, with no word of them.

    Parameters
    ----------
    benchmarks
        As for `hornbook decontaminate`.
    out
        The file to write (gzip).
    ngram
        Words in an n-gram.

    Examples:
        hornbook contamination hash humaneval mbpp --out tests.ngrams.gz
    """
    from hornbook.decontaminate import save_ngrams

    print(f"{save_ngrams(out, benchmarks, ngram=ngram):,} n-grams in {out}")


@app.command(group=DATA)
def diversity(
    inputs: Annotated[list[Path], Parameter(negative="")], *, as_json: Json = False
) -> None:
    """Measure how many different things a data set holds, and how often it repeats itself.

    Examples:
        hornbook diversity exercises/
    """
    from hornbook.diversity import diversity as measure

    with progress.shown():
        report = measure(inputs)
    show(report, as_json)
