"""Commands on data: one for each stage, on plain files."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from hornbook import progress
from hornbook.commands.generate import Endpoint
from hornbook.commands.shared import DATA, Json, Out, app, printable, show, summary

tokenizer_app = App(name="tokenizer", group=DATA, help="Train and use byte-level BPE tokenizers.")
pack_app = App(name="pack", group=DATA, help="Tokenize documents; look into packed files.")
contamination_app = App(
    name="contamination", group=DATA, help="See how much of the test problems a corpus holds."
)
app.command(contamination_app)
app.command(tokenizer_app)
app.command(pack_app)


NOBODY = Endpoint()
"""No model is asked."""


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
    against: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
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
        For substring: words in a run that must stand only once.
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
    benchmarks: Annotated[list[str], Parameter(negative="")] = ["humaneval", "mbpp"],  # noqa: B006
    ngram: int = 13,
    fields: Annotated[list[Literal["docstring", "program", "tests"]], Parameter(negative="")] = [  # noqa: B006
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
        form, or files of hashed n-grams (`hornbook contamination hash`).
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
    benchmarks: Annotated[list[str], Parameter(negative="")] = ["humaneval", "mbpp"],  # noqa: B006
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
    benchmarks: Annotated[list[str], Parameter(negative="")] = ["humaneval"],  # noqa: B006
    taus: Annotated[list[float], Parameter(negative="")] = [0.95, 0.9, 0.85, 0.8],  # noqa: B006
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
        hornbook contamination sweep exercises/ --benchmarks humaneval
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
def annotate(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    samples: int = 1000,
    clusters: int = 8,
    repeats: float = 0.0,
    rubric: str = "paper",
    windows: int = 3,
    structured: Literal["auto", "always", "never"] = "auto",
    seed: int = 0,
    endpoint: Endpoint = NOBODY,
    as_json: Json = False,
) -> None:
    """Score a sample of documents for educational value: by a model, or by the offline rubric.

    The sample is spread over sources, lengths and clusters as the corpus is.

    Parameters
    ----------
    clusters
        Kinds of content that the sample is spread over; 0 for none.
    repeats
        Share of the sample that is scored twice; the report then has the labels' kappa.
    rubric
        With --model: paper (0 to 10), additive (0 to 5), or a TOML file.
    windows
        With --model: how many parts of a long document are shown.
    structured
        With --model: hold answers to the rubric's JSON schema. auto: unless the endpoint refuses
        the first call for it.

    Examples:
        hornbook annotate clean/ --samples 1000 --out labels/

        hornbook annotate clean/ --samples 100000 --repeats 0.02 --model MODEL
            --price-in 0.15 --price-out 0.60 --budget-usd 50 --out labels/
    """
    from functools import partial

    from hornbook.quality.annotate import annotate as run_annotate

    def run(annotator: Any) -> Any:
        with progress.shown():
            return run_annotate(
                inputs,
                out,
                samples=samples,
                annotator=annotator,
                clusters=clusters,
                repeats=repeats,
                seed=seed,
            )

    if not endpoint.model:
        summary(run("rubric"), as_json)
        return
    from hornbook.generate.client import complete_all
    from hornbook.generate.labels import annotator as llm_annotator
    from hornbook.generate.ledger import Ledger

    options = endpoint.options(out)
    with Ledger(options.pop("ledger")) as ledger:
        asked = partial(complete_all, ledger=ledger, **options)
        made = llm_annotator(
            asked,
            model=endpoint.model,
            rubric=rubric,
            windows=windows,
            structured=structured,
        )
        report = run(made)
    summary(report, as_json)


@app.command(name="filter", group=DATA)
def filter_(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    labels: Path | None = None,
    model: Path | None = None,
    min_score: float = 5.0,
    threshold: float | None = None,
    keep_tokens: float | None = None,
    keep_quantile: float | None = None,
    keep_precision: float | None = None,
    embedder: Literal["hash", "codegen", "sentence", "http"] = "hash",
    embedder_model: str = "",
    embedder_url: str = "",
    truncation: int | None = None,
    trees: int = 100,
    threads: int | None = None,
    seed: int = 0,
    explain: str | None = None,
    as_json: Json = False,
) -> None:
    """Learn the labels with a random forest, score every document, keep the best.

    Writes parts with a column quality_score, every document's score and decision in a folder of
    scores, forest.bin, and report.html. Interrupted, it goes on after the last finished part.

    Parameters
    ----------
    labels
        The folder that `hornbook annotate` made.
    model
        Instead of labels: the forest.bin of an earlier filter.
    threshold
        Keep from this score (default: 0.5, or the model's own).
    keep_tokens
        Keep the best documents, about this share of the text, instead of a fixed threshold.
    keep_quantile
        Keep the best documents of each source, about this share of its text.
    keep_precision
        Keep from the lowest score that gives this precision on labels not learned from.
    embedder_model
        For codegen and sentence a name or folder, for http the name at --embedder-url.
    truncation
        Tokens (http: characters) of a document that the embedder's model sees.
    threads
        How many parts are made at once; by default one a core. Has no effect on the output.
    explain
        Do not filter: say how the forest in --out (or --model) comes to this document's score.

    Examples:
        hornbook filter clean/ --labels labels/ --keep-tokens 0.17 --out filtered/

        hornbook filter more/ --model filtered/forest.bin --out more-filtered/

        hornbook filter clean/ --out filtered/ --explain 1d5f0c...
    """
    from hornbook.quality.filter import explain as run_explain
    from hornbook.quality.filter import filter_documents

    if explain is not None:
        show(run_explain(model or out, inputs, explain), as_json)
        return
    options: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    with progress.shown():
        report = filter_documents(
            inputs,
            out,
            labels=labels,
            model=model,
            embedder=embedder,
            threads=threads,
            min_score=min_score,
            keep_tokens=keep_tokens,
            keep_quantile=keep_quantile,
            keep_precision=keep_precision,
            embedder_model=embedder_model,
            embedder_url=embedder_url,
            truncation=truncation,
            trees=trees,
            seed=seed,
            **options,
        )
    summary(report, as_json)


@tokenizer_app.command(name="train")
def tokenizer_train(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    vocab_size: int = 4096,
    characters: int = 50_000_000,
    as_json: Json = False,
) -> None:
    """Learn a byte-level BPE vocabulary; writes tokenizer.json.

    Examples:
        hornbook tokenizer train clean/ --vocab-size 8192 --out tokenizer/
    """
    from hornbook.vocabulary import build

    with progress.shown():
        report = build(out, "train", inputs=inputs, vocab_size=vocab_size, characters=characters)
    summary(report, as_json)


def _tokenizer(name: str) -> Any:
    from hornbook.vocabulary import named

    return named(name)


@tokenizer_app.command(name="encode")
def tokenizer_encode(text: str = "-", *, tokenizer: str = "codegen", as_json: Json = False) -> None:
    """Print the token ids of a text (`-`: standard input).

    Examples:
        hornbook tokenizer encode "def f(x):" --tokenizer codegen
    """
    ids = _tokenizer(tokenizer).encode(sys.stdin.read() if text == "-" else text).tolist()
    print(json.dumps(ids) if as_json else " ".join(map(str, ids)))


@tokenizer_app.command(name="decode")
def tokenizer_decode(
    ids: Annotated[list[int], Parameter(negative="")], *, tokenizer: str = "codegen"
) -> None:
    """Print the text of token ids.

    Examples:
        hornbook tokenizer decode 4299 277 7 --tokenizer codegen
    """
    print(_tokenizer(tokenizer).decode(ids))


@tokenizer_app.command(name="info")
def tokenizer_info(tokenizer: str = "codegen", *, as_json: Json = False) -> None:
    """Say what a tokenizer is: codegen, gpt2, or a tokenizer.json.

    Examples:
        hornbook tokenizer info runs/demo/tokenizer/tokenizer.json
    """
    from hornbook.manifest import Report

    tok = _tokenizer(tokenizer)
    info = {"vocab_size": tok.vocab_size, "eot_id": tok.eot_id, "hash": tok.tokenizer_hash}
    show(Report(info), as_json)


@pack_app.default
def pack(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    tokenizer: str = "codegen",
    dtype: Literal["uint16", "uint32"] | None = None,
    threads: int | None = None,
    as_json: Json = False,
) -> None:
    """Tokenize documents into packed files that Megatron-LM, nanotron and memmaps read too.

    Interrupted, it goes on after the last finished part when it is run again.

    Parameters
    ----------
    tokenizer
        codegen, gpt2, or a tokenizer.json.
    dtype
        How ids are stored; by default the smaller one that holds the vocabulary.
    threads
        How many encode; by default one a core. Has no effect on the output.

    Examples:
        hornbook pack clean/ --tokenizer codegen --out packed/
    """
    from hornbook.packing import pack as run_pack

    with progress.shown():
        report = run_pack(
            inputs, out, tokenizer=_tokenizer(tokenizer), dtype=dtype, threads=threads
        )
    summary(report, as_json)


@pack_app.command(name="info")
def pack_info(folder: str, *, as_json: Json = False) -> None:
    """Say what a packed folder (or its URL) holds: counts, tokenizer, types, sources.

    Examples:
        hornbook pack info packed/
    """
    from hornbook.packed_stats import info

    show(info(folder), as_json)


@pack_app.command(name="stats")
def pack_stats(
    folders: Annotated[list[str], Parameter(negative="")],
    *,
    sequence_length: int = 2048,
    as_json: Json = False,
) -> None:
    """Measure packed folders: lengths, tokens by source, padding and torn documents.

    Examples:
        hornbook pack stats packed/ --sequence-length 2048
    """
    from hornbook.packed_stats import stats

    with progress.shown():
        report = stats(folders, sequence_length=sequence_length)
    show(report, as_json)


@pack_app.command(name="peek")
def pack_peek(
    folders: Annotated[list[str], Parameter(negative="")],
    *,
    samples: int = 3,
    first: int = 0,
    sequence_length: int = 2048,
    method: Literal["concat", "best_fit"] = "concat",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Print samples as training sees them, decoded, one document's stretch after another.

    Parameters
    ----------
    first
        The first sample's number in the order that the seed makes.

    Examples:
        hornbook pack peek packed/ --samples 2 --method best_fit
    """
    from hornbook.packed_stats import peek

    texts = peek(
        folders,
        samples=samples,
        first=first,
        sequence_length=sequence_length,
        method=method,
        seed=seed,
    )
    if as_json:
        print(json.dumps(texts, ensure_ascii=False))
        return
    for number, stretches in enumerate(texts, first):
        for place, text in enumerate(stretches, 1):
            print(f"--- sample {number}, stretch {place} of {len(stretches)}")
            print(printable(text))


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
