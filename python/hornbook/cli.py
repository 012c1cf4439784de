"""The command line: one command for each function, with the same option names.

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 stopped early with resumable output.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from rich.console import Console
from rich.table import Table

import hornbook
from hornbook import progress
from hornbook.errors import ConfigError, HornbookError, InputError

app = App(
    name="hornbook",
    help="Make textbook-quality data, train a small code model on it, measure what it learned.",
    version=hornbook.__version__,
    suppress_keyboard_interrupt=False,  # `main` gives it the exit code for resumable stops
)
RUN = Group("The whole recipe", sort_key=1)
DATA = Group("Data", sort_key=2)
MODEL = Group("Models", sort_key=3)
LOOK = Group("Looking at results", sort_key=4)

generate = App(
    name="generate", group=DATA, help="Make textbooks, exercises, problems and a practice pool."
)
tokenizer_app = App(name="tokenizer", group=DATA, help="Train and use byte-level BPE tokenizers.")
export = App(name="export", group=MODEL, help="Write a model for other software.")
study = App(name="study", group=LOOK, help="Studies on a finished run.")
app.command(generate)
app.command(tokenizer_app)
app.command(export)
app.command(study)

Out = Annotated[Path, Parameter(name=["--out", "-o"], help="The stage's folder.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for machines.")]
Settings = Annotated[
    list[str] | None,
    Parameter(name="--set", negative="", help="A recipe key: section.key=value. Repeatable."),
]
Accept = Annotated[
    bool,
    Parameter(
        name="--i-accept-unsafe-execution",
        negative="",
        help="Run model-written code with resource limits only, where isolation can't be had.",
    ),
]

console = Console()


def _show(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(dict(report), ensure_ascii=False))
    else:
        print(report)


def _summary(report: Mapping[str, Any], as_json: bool) -> None:
    """A stage's manifest in one line, or whole as JSON."""
    if as_json:
        print(json.dumps(dict(report), ensure_ascii=False))
        return
    counts = report["counts"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items() if n)
    parts = [f"{counts['kept']:,} kept of {counts['in']:,}"]
    if dropped:
        parts.append(f"dropped: {dropped}")
    if counts["rejected"]:
        parts.append(f"{counts['rejected']:,} unusable rows set aside in rejected/")
    parts.append(f"{report['seconds']:.1f} s")
    print(f"{report['stage']}: {'; '.join(parts)}")


# The whole recipe.


@app.command(group=RUN)
def demo(
    *,
    out: Out = Path("runs/demo"),
    seeds: int = 1,
    settings: Settings = None,
    jobs: int | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole recipe at small scale: no key, no network, no GPU, minutes on two cores.

    The result is `report.html` in the run's folder.

    Examples:
        hornbook demo

        hornbook demo --seeds 3 --out runs/three
    """
    settings = [f"seeds={seeds}", *(settings or [])]
    run("demo", out=out, settings=settings, jobs=jobs, dry_run=dry_run, as_json=as_json)


@app.command(group=RUN)
def run(
    recipe: str,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    settings: Settings = None,
    only: list[str] | None = None,
    jobs: int | None = None,
    budget_usd: float | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: every step that is not done yet.

    Parameters
    ----------
    recipe
        demo, phi-1-small, phi-1, or a TOML file.
    out
        The run's folder; by default runs/<recipe's name>.
    only
        Run just these steps (or all under a prefix such as `pack`) and what they need.
    jobs
        Training and evaluation steps side by side; by default one for each core, at most 8.
    budget_usd
        Stop asking the teacher before this much is spent.
    dry_run
        Print the plan with estimated tokens, steps, memory and time; run nothing.

    Examples:
        hornbook run phi-1-small --set source.raw=/data/stack --dry-run

        hornbook run my-recipe.toml --only pack
    """
    from hornbook import pipeline
    from hornbook.recipe import load

    settings = list(settings or [])
    if budget_usd is not None:
        settings.append(f"generate.budget_usd={budget_usd}")
    resolved = load(recipe, settings)
    folder = out or Path("runs") / resolved.name
    if dry_run:
        from hornbook.estimate import describe

        plan = describe(resolved, folder)
        if as_json:
            print(json.dumps(plan))
        else:
            _print_plan(plan)
        return

    def on_event(entry: dict[str, Any]) -> None:
        if as_json:
            return
        if entry["event"] == "step" and not entry["skipped"]:
            memory = f"{entry['peak_mb']:,.0f} MB"
            console.print(
                f"  [green]done[/] {entry['name']:<44} {entry['seconds']:7.1f} s {memory:>9}"
            )
        elif entry["event"] == "failed":
            console.print(f"  [red]failed[/] {entry['name']}")

    report = pipeline.run(resolved, folder, jobs=jobs, only=tuple(only or ()), on_event=on_event)
    if as_json:
        print(json.dumps(dict(report)))
    else:
        _print_end(resolved.name, report, folder)


def _print_end(name: str, report: Mapping[str, Any], folder: Path) -> None:
    page = folder / "report.html"
    done, skipped = report["done"], report["skipped"]
    console.print(f"{name}: {done} steps done, {skipped} were done already, {report['seconds']} s")
    if (folder / "report.json").is_file():
        data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        console.print(_arms_table(data))
    if page.is_file():
        console.print(f"report: {page}", soft_wrap=True)


def _arms_table(data: Mapping[str, Any]) -> Table:
    table = Table(title="pass@1 on held-out problems")
    table.add_column("arm")
    table.add_column("base", justify="right")
    table.add_column("finetuned", justify="right")
    for arm, stages in data.get("arms", {}).items():
        cells = [
            f"{100 * stages[s]['pass@1']:.1f} ± {100 * stages[s]['stderr']:.1f} %"
            if s in stages
            else "-"
            for s in ("base", "finetuned")
        ]
        table.add_row(arm, *cells)
    return table


def _print_plan(plan: Mapping[str, Any]) -> None:
    table = Table(title=f"{plan['name']}: {len(plan['steps'])} steps into {plan['out']}")
    for column in ("step", "needs", "state", "estimate"):
        table.add_column(column)
    for step in plan["steps"]:
        needs = ", ".join(step["needs"][:3]) + (" ..." if len(step["needs"]) > 3 else "")
        table.add_row(step["name"], needs, step["state"], step["estimate"])
    console.print(table)
    for line in plan["notes"]:
        console.print(line, highlight=False)


@app.command(group=RUN)
def train(
    recipe: str,
    *,
    data: Annotated[list[Path], Parameter(negative="")],
    out: Out,
    stage: Literal["pretrain", "finetune"] = "pretrain",
    init: Path | None = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one model on packed data with a recipe's model and training sections.

    Runs as one process, or as many under torchrun.

    Parameters
    ----------
    data
        Folders made by `hornbook pack`; several are mixed by their size in tokens.
    init
        A model's folder to start from; without it a new model is made.

    Examples:
        hornbook train demo --data packed/ --out model/

        torchrun --nproc-per-node 8 -m hornbook train phi-1.toml --data packed/ --out model/
    """
    from hornbook.recipe import load
    from hornbook.train import train_stage

    resolved = load(recipe, settings or [])
    config = resolved.pretrain if stage == "pretrain" else resolved.finetune
    with progress.shown():
        report = train_stage(
            config,
            init or resolved.model,
            {str(folder): _tokens_in(folder) for folder in data},
            out,
            seed=resolved.seed,
        )
    _summary(report, as_json)


def _tokens_in(folder: Path) -> float:
    from hornbook.manifest import MANIFEST, read_json

    details = read_json(folder / MANIFEST).get("details", {})
    if "tokens" not in details:
        raise InputError(f"{folder}: is no packed data set; make one with `hornbook pack`")
    return float(details["tokens"])


# Data.


@app.command(group=DATA)
def dedup(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    method: Literal["minhash", "exact"] = "minhash",
    threshold: float = 0.7,
    ngram: int = 5,
    keep: Literal["longest", "first"] = "longest",
    as_json: Json = False,
) -> None:
    """Remove exact and near duplicates; every removal is verified against a kept document.

    Examples:
        hornbook dedup data/*.parquet --out clean/
    """
    from hornbook.dedup import dedup as run_dedup

    with progress.shown():
        report = run_dedup(inputs, out, method=method, threshold=threshold, ngram=ngram, keep=keep)
    _summary(report, as_json)


@app.command(group=DATA)
def decontaminate(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    benchmarks: Annotated[list[str], Parameter(negative="")] = ["humaneval", "mbpp"],  # noqa: B006
    ngram: int = 13,
    ast_threshold: float | None = None,
    as_json: Json = False,
) -> None:
    """Remove documents that resemble test problems.

    Parameters
    ----------
    benchmarks
        humaneval, mbpp (found through HORNBOOK_DATA), or problem files in HumanEval's form.
    ast_threshold
        Also remove code whose syntax tree matches a solution's at this rate or more.

    Examples:
        hornbook decontaminate exercises/ --benchmarks humaneval --ast-threshold 0.95 --out clean/
    """
    from hornbook.decontaminate import decontaminate as run_decontaminate

    with progress.shown():
        report = run_decontaminate(
            inputs, out, benchmarks=benchmarks, ngram=ngram, ast_threshold=ast_threshold
        )
    _summary(report, as_json)


@app.command(group=DATA)
def annotate(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    samples: int = 1000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Score a sample of documents for educational value with the offline rubric.

    Examples:
        hornbook annotate clean/ --samples 1000 --out labels/
    """
    from hornbook.quality.annotate import annotate as run_annotate

    with progress.shown():
        report = run_annotate(inputs, out, samples=samples, seed=seed)
    _summary(report, as_json)


@app.command(name="filter", group=DATA)
def filter_(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    labels: Path,
    min_score: float = 5.0,
    threshold: float = 0.5,
    keep_tokens: float | None = None,
    trees: int = 100,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Learn the labels with a random forest, score every document, keep the best.

    Parameters
    ----------
    labels
        The folder that `hornbook annotate` made.
    keep_tokens
        Keep the best documents up to this share of the text, instead of a fixed threshold.

    Examples:
        hornbook filter clean/ --labels labels/ --keep-tokens 0.17 --out filtered/
    """
    from hornbook.quality.filter import filter_documents

    with progress.shown():
        report = filter_documents(
            inputs,
            out,
            labels=labels,
            min_score=min_score,
            threshold=threshold,
            keep_tokens=keep_tokens,
            trees=trees,
            seed=seed,
        )
    _summary(report, as_json)


@generate.command
def textbooks(
    *,
    out: Out,
    characters: int = 1_000_000,
    levels: tuple[int, ...] = (1,),
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Make textbook sections with the built-in procedural teacher (no key, no network).

    For an LLM as the teacher: `hornbook run RECIPE --only textbooks --set generate.teacher=openai`.

    Examples:
        hornbook generate textbooks --characters 2000000 --levels 1 --levels 2 --out textbooks/
    """
    from hornbook.generate import textbooks as make

    with progress.shown():
        report = make(out, characters=characters, levels=levels, seed=seed)
    _summary(report, as_json)


@generate.command
def exercises(
    *,
    out: Out,
    count: int = 2000,
    levels: tuple[int, ...] = (1,),
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Make exercises (signature, docstring, solution, tests) with the procedural teacher.

    Examples:
        hornbook generate exercises --count 5000 --out exercises/
    """
    from hornbook.generate import exercises as make

    with progress.shown():
        report = make(out, count=count, levels=levels, seed=seed)
    _summary(report, as_json)


@generate.command
def problems(
    *,
    out: Out,
    count: int = 300,
    levels: tuple[int, ...] = (1,),
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Make held-out problems, from compositions that no training source ever gets.

    Examples:
        hornbook generate problems --count 300 --out problems/
    """
    from hornbook.generate import heldout

    with progress.shown():
        report = heldout(out, count=count, levels=levels, seed=seed)
    _summary(report, as_json)


@generate.command
def pool(*, out: Out, files: int = 2000, seed: int = 0, as_json: Json = False) -> None:
    """Make repository-like files with the paper's four defects, hiding some useful ones.

    Examples:
        hornbook generate pool --files 2000 --out pool/
    """
    from hornbook.generate import pool as make

    with progress.shown():
        report = make(out, count=files, seed=seed)
    _summary(report, as_json)


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
    _summary(report, as_json)


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
    _show(Report(info), as_json)


@app.command(group=DATA)
def pack(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    tokenizer: str = "codegen",
    as_json: Json = False,
) -> None:
    """Tokenize documents into packed files that Megatron-LM, datatrove and memmaps read too.

    Examples:
        hornbook pack clean/ --tokenizer codegen --out packed/
    """
    from hornbook.packing import pack as run_pack

    with progress.shown():
        report = run_pack(inputs, out, tokenizer=_tokenizer(tokenizer))
    _summary(report, as_json)


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
    _show(report, as_json)


# Models.


@app.command(group=MODEL)
def sample(
    prompt: str = "-",
    *,
    model: Path,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Complete a prompt (`-`: standard input).

    Examples:
        hornbook sample "def add(a, b):" --model runs/demo/train/filtered/seed-0/finetuned/final
    """
    from hornbook.model import Phi
    from hornbook.model.sample import generate as complete
    from hornbook.tokenizer import Tokenizer

    text = sys.stdin.read() if prompt == "-" else prompt
    opened = Phi.from_pretrained(model)
    tok = Tokenizer.from_file(model / "tokenizer.json")
    answer = complete(
        opened,
        tok,
        [text],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop or ()),
        seed=seed,
    )[0]
    print(text + answer)


@app.command(group=MODEL)
def evaluate(
    benchmark: str,
    *,
    out: Out,
    model: Path | None = None,
    samples_file: Annotated[Path | None, Parameter(name="--samples")] = None,
    samples_per_problem: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    timeout_s: float = 10.0,
    workers: int | None = None,
    accept_unsafe: Accept = False,
    as_json: Json = False,
) -> None:
    """Score a model, or stored samples, by running its answers in a sandbox.

    Parameters
    ----------
    benchmark
        humaneval, mbpp, mbpp-sanitized (found through HORNBOOK_DATA), or a problem file.
    model
        A model's folder.
    samples_file
        Instead of a model: JSON lines with task_id and completion.

    Examples:
        hornbook evaluate humaneval --model runs/phi-1/final --out scores/

        hornbook evaluate humaneval --samples samples.jsonl --out scores/
    """
    from hornbook.evaluate import evaluate as score
    from hornbook.evaluate import evaluate_model

    if (model is None) == (samples_file is None):
        raise ConfigError("name either --model or --samples")
    options: dict[str, Any] = {
        "timeout_s": timeout_s,
        "workers": workers,
        "accept_unsafe": accept_unsafe,
        "progress": partial(progress.advance, "programs"),
    }
    with progress.shown():
        if model is not None:
            report = evaluate_model(
                benchmark,
                model,
                out,
                samples=samples_per_problem,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                **options,
            )
        else:
            assert samples_file is not None
            report = score(benchmark, None, out, samples=samples_file, **options)
    _show(report, as_json)


@app.command(group=MODEL)
def sandbox(*, as_json: Json = False) -> None:
    """Say which layers of isolation this machine has for model-written code."""
    from hornbook.evaluate.sandbox import status
    from hornbook.manifest import Report

    _show(Report(status()), as_json)


@export.command(name="hf")
def export_hf(model: Path, *, out: Out) -> None:
    """Write a model in the Hugging Face layout, for transformers and servers that know Phi.

    Examples:
        hornbook export hf runs/phi-1/train/phi-1/seed-0/finetuned/final --out phi-1/
    """
    from hornbook.model import Phi
    from hornbook.tokenizer import Tokenizer

    tok = Tokenizer.from_file(model / "tokenizer.json")
    Phi.from_pretrained(model).save_pretrained(out, tokenizer=tok)
    print(f"wrote {out}")


# Looking at results.


@study.command(name="contamination")
def study_contamination(run_folder: Path, *, as_json: Json = False) -> None:
    """Split a run's held-out scores into problems similar and not similar to its exercises.

    Examples:
        hornbook study contamination runs/demo
    """
    from hornbook.study.contamination import split_study

    _show(split_study(_recipe_of(run_folder), run_folder), as_json)


def _recipe_of(run_folder: Path) -> Any:
    from hornbook.manifest import read_json
    from hornbook.recipe import from_dict

    return from_dict(read_json(run_folder / "recipe.json"))


@app.command(group=LOOK)
def report(run_folder: Path) -> None:
    """Write report.html and report.json of a run.

    Examples:
        hornbook report runs/demo
    """
    from hornbook.report import build_report

    build_report(_recipe_of(run_folder), run_folder.absolute())
    print(run_folder / "report.html")


@app.command(group=LOOK)
def verify(
    folders: Annotated[list[Path], Parameter(negative="")], *, as_json: Json = False
) -> None:
    """Check every file of a stage, or of a whole run, against its manifest.

    Examples:
        hornbook verify runs/demo
    """
    from hornbook.manifest import MANIFEST, Report
    from hornbook.manifest import verify as check

    found = [p.parent for folder in folders for p in sorted(folder.rglob(MANIFEST))]
    if not found:
        raise InputError(f"{', '.join(map(str, folders))}: no {MANIFEST} in it")
    reports = [check(folder) for folder in found]
    total = {
        "stages": len(reports),
        "files": sum(r["checked"] for r in reports),
        "bytes": sum(r["bytes"] for r in reports),
        "ok": True,
    }
    _show(Report(total), as_json)


@app.command(group=LOOK)
def trace(row_id: str, *, run_folder: Annotated[Path, Parameter(name="--run")]) -> None:
    """Print one document's way through a run: where it was kept or dropped, and why.

    Examples:
        hornbook trace 1f0c9d --run runs/demo
    """
    from hornbook.trace import trace as find

    for line in find(row_id, run_folder):
        print(line)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; errors become one line on standard error and an exit code."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        app(argv)
    except HornbookError as error:
        errors.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped; what is done is kept, the same command goes on", highlight=False)
        sys.exit(3)
    except BrokenPipeError:
        sys.exit(1)


def _escape(text: str) -> str:
    from rich.markup import escape

    # Names and rows can hold control characters; a terminal must not obey them.
    return escape("".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text))


if __name__ == "__main__":
    main()
