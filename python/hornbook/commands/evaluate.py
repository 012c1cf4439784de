"""Commands that score models: benchmarks, graded problems, probes, a page of results."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from hornbook import progress
from hornbook.commands.generate import Endpoint
from hornbook.commands.shared import MODEL, SEVERAL, Accept, Json, Out, app, show
from hornbook.errors import ConfigError

evaluate = App(
    name="evaluate",
    group=MODEL,
    help="Score a model, or stored samples, by running its answers in a sandbox.",
)
app.command(evaluate)


_ENDPOINT = Endpoint()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model is asked."""

    backend: Literal["auto", "hornbook", "transformers", "endpoint", "completions"] = "auto"
    """auto: a chat endpoint if one is given, Phi's checkpoint, else transformers; see Examples."""
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    """The share of probability drawn from."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    seed: int = 0
    """Of the draws."""
    batch_size: int = 64
    """Prompts at a time; changes no answer in fp32."""
    device: str | None = None
    """Such as cuda; the first accelerator if not given."""

    def options(self, endpoint: Endpoint, out: Path) -> dict[str, Any]:
        """As `evaluate_model` takes them; what an endpoint needs if it is one."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        # Whatever is said of an endpoint besides the name asks for one.
        said = endpoint != Endpoint(model=endpoint.model)
        if self.backend in ("endpoint", "completions") or (said and self.backend == "auto"):
            found["endpoint"] = endpoint.options(out)
        elif said:
            raise ConfigError(
                f"--backend {self.backend} opens a model here: leave out what is said of an "
                "endpoint (--base-url, --ledger, --replay, budgets and the like), or the backend"
            )
        return found


@evaluate.default
def benchmark(
    benchmark: str,
    *,
    out: Out,
    endpoint: Endpoint = _ENDPOINT,
    samples_file: Annotated[Path | None, Parameter(name="--samples")] = None,
    data: str | None = None,
    protocol: str | None = None,
    split: Literal["test", "validation", "all"] = "test",
    samples_per_problem: int = 1,
    k: Annotated[list[int] | None, SEVERAL] = None,
    drawing: Drawing = Drawing(),
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    workers: int | None = None,
    accept_unsafe: Accept = False,
    as_json: Json = False,
) -> None:
    """Score a model, or stored samples, by running its answers in a sandbox.

    Parameters
    ----------
    benchmark
        humaneval, mbpp, mbpp-sanitized, humaneval+, mbpp+ (found through HORNBOOK_DATA or --data),
        unconventional, or a problem file.
    samples_file
        Instead of a model: JSON lines with task_id and completion.
    data
        The benchmark's file, or its name on the Hub.
    protocol
        Of mbpp: docstring (default), 3-shot, sanitized.
    split
        Of mbpp: test (ids 11 to 510), validation (511 to 600) or all.
    k
        For pass@k; one or several.
    timeout_s
        CPU seconds a program (default: the benchmark's, mostly 10).
    memory_mb
        Address space a program (default: the benchmark's, mostly 1024).

    Examples:
        hornbook evaluate humaneval --model runs/phi-1/final --out scores/

        hornbook evaluate humaneval --samples samples.jsonl --out scores/

        hornbook evaluate mbpp --protocol 3-shot --model microsoft/phi-1 --out scores/mbpp

        hornbook evaluate humaneval+ --model NAME --base-url http://localhost:8000/v1
            --budget-tokens 500000 --out scores/plus

        hornbook evaluate humaneval --model NAME --base-url http://localhost:8000/v1
            --backend completions --budget-tokens 500000 --out scores/base

        hornbook evaluate humaneval --model runs/phi-1/final --samples-per-problem 200
            --temperature 0.8 --k 1 10 100 --out scores/passk
    """
    from hornbook.evaluate import evaluate as score
    from hornbook.evaluate import evaluate_model, load_problems

    if bool(endpoint.model) == (samples_file is not None):
        raise ConfigError("name either --model or --samples")
    problems = load_problems(benchmark, protocol=protocol, split=split, data=data)
    options: dict[str, Any] = {
        "timeout_s": timeout_s,
        "memory_mb": memory_mb,
        "workers": workers,
        "accept_unsafe": accept_unsafe,
        "k": tuple(k or (1,)),
        "progress": partial(progress.advance, "programs"),
    }
    with progress.shown():
        if samples_file is None:
            report = evaluate_model(
                problems,
                endpoint.model,
                out,
                samples=samples_per_problem,
                **drawing.options(endpoint, out),
                **options,
            )
        else:
            report = score(problems, None, out, samples=samples_file, **options)
    show(report, as_json)


@app.command(group=MODEL)
def grade(
    samples: Path | None = None,
    *,
    out: Out,
    problems: str = "unconventional",
    votes: int = 3,
    per_batch: int = 25,
    structured: bool = True,
    endpoint: Endpoint = _ENDPOINT,
    rescore: Annotated[bool, Parameter(negative="")] = False,
    accept_unsafe: Accept = False,
    as_json: Json = False,
) -> None:
    """Have samples graded from 0 to 10 by a model, with hidden controls in every batch.

    Exits with 1 if every batch is void, so that no grade counts.

    Parameters
    ----------
    samples
        JSON lines with task_id and completion, such as an evaluation's results.jsonl.
    problems
        What they answer: unconventional, humaneval, a problem file with references and tests.
    votes
        Grades of each attempt; their median counts.
    per_batch
        Attempts in a batch; a batch whose controls fail is void.
    structured
        Send the reply's JSON schema; --no-structured for endpoints that refuse it.
    rescore
        Ask nobody: grades again from the exchanges stored in --out.

    Examples:
        hornbook evaluate unconventional --model runs/phi-1/final --out scores/unconventional

        hornbook grade scores/unconventional/results.jsonl --model MODEL --budget-tokens 2000000
            --out grades/

        hornbook grade --rescore --out grades/
    """
    from functools import partial as bind

    from hornbook.evaluate import grading, load_problems
    from hornbook.generate.client import complete_all
    from hornbook.generate.ledger import Ledger

    if rescore:
        _show_grades(grading.rescore(out), as_json)
        return
    if samples is None:
        raise ConfigError("name the file of samples, or --rescore")
    options = endpoint.options(out)
    with Ledger(options.pop("ledger")) as ledger, progress.shown():
        report = grading.grade_samples(
            load_problems(problems),
            samples,
            out,
            complete=bind(complete_all, ledger=ledger, **options),
            grader=f"{endpoint.model} at {endpoint.base_url or 'the default endpoint'}",
            votes=votes,
            batch=per_batch,
            structured=structured,
            accept_unsafe=accept_unsafe,
        )
    _show_grades(report, as_json)


def _show_grades(report: Mapping[str, Any], as_json: bool) -> None:
    show(report, as_json)
    if "note" in report:
        print(
            f"error: {report['note']}: the grader failed the controls of each (`void` says how); "
            "grade with another model",
            file=sys.stderr,
        )
        sys.exit(1)


@evaluate.command(name="probes")
def probes_command(
    *,
    model: Annotated[list[str], SEVERAL],
    out: Out,
    benchmark: str = "humaneval",
    data: str | None = None,
    kind: Annotated[list[str] | None, SEVERAL] = None,
    training: Annotated[list[Path] | None, SEVERAL] = None,
    drawing: Drawing = Drawing(),
    workers: int | None = None,
    accept_unsafe: Accept = False,
    as_json: Json = False,
) -> None:
    """Compare models on wording, counting, space, libraries and chat.

    Parameters
    ----------
    model
        LABEL=NAME, one or several: base=runs/a/base/final.
    benchmark
        What is reworded, in HumanEval's form.
    data
        The benchmark's file, or its name on the Hub.
    kind
        Of the seven perturbations; all if not given.
    training
        The training set, for the histogram of imports.

    Examples:
        hornbook evaluate probes --model base=runs/a/base/final tuned=runs/a/final
            --training runs/a/exercises --out probes/
    """
    from hornbook.corpus import read
    from hornbook.evaluate import load_problems
    from hornbook.evaluate.models import open_model
    from hornbook.evaluate.probing import run_probes

    problems = load_problems(benchmark, data=data)
    named = [entry.partition("=")[::2] for entry in model]
    if any(not name for _, name in named) or len(dict(named)) < len(named):
        raise ConfigError("give --model LABEL=NAME, each with a label of its own")
    options = drawing.options(_ENDPOINT, out)
    with progress.shown():
        report = run_probes(
            {label: open_model(name, stop=problems.stop, **options) for label, name in named},
            out,
            problems=problems,
            kinds=kind or tuple(_kinds()),
            training=(row["text"] for row in read(training)) if training else None,
            progress=partial(progress.advance, "programs"),
            workers=workers,
            accept_unsafe=accept_unsafe,
        )
    show(report, as_json)


def _kinds() -> tuple[str, ...]:
    from hornbook.evaluate.probes import KINDS

    return tuple(KINDS)


@evaluate.command
def page(folders: list[Path], *, out: Out, name: str = "") -> None:
    """Write one model's results beside the paper's tables, saying what is comparable.

    Parameters
    ----------
    folders
        Finished folders of evaluate, grade and evaluate probes.
    name
        What to call the model; by default the folder of its results.

    Examples:
        hornbook evaluate page scores/humaneval scores/mbpp grades/ probes/ --out model.html
    """
    from hornbook.report.model_page import write_model_page

    print(write_model_page(folders, out, name=name))
