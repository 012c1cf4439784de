"""Commands that judge documents: a score for a sample, a filter that learns from it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from hornbook import progress
from hornbook.commands.generate import Endpoint
from hornbook.commands.shared import DATA, Json, Out, app, show, summary

NOBODY = Endpoint()
"""No model is asked."""


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
        endpoint.check_unused(rubric != "paper", windows != 3, structured != "auto")
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
