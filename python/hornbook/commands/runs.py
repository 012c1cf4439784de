"""Commands that run a recipe, or its training."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hornbook import progress
from hornbook.commands.shared import RUN, SEVERAL, Json, Out, Settings, app, console
from hornbook.errors import InputError


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
    only: Annotated[list[str] | None, SEVERAL] = None,
    jobs: int | None = None,
    budget_usd: float | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: every step that is not done yet.

    Parameters
    ----------
    recipe
        demo, gpu-20min, phi-1-small, phi-1, or a TOML file.
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

        plan = describe(resolved, folder, only=tuple(only or ()))
        if as_json:
            print(json.dumps(plan))
        else:
            _print_plan(plan)
        return

    def on_event(entry: dict[str, Any]) -> None:
        if as_json:
            return
        if entry["event"] == "step" and not entry["skipped"]:
            memory, name = f"{entry['peak_mb']:,.0f} MB", escape(entry["name"])
            console.print(
                f"  [green]done[/] {name:<44} {entry['seconds']:7.1f} s {memory:>9}",
                soft_wrap=True,
            )
        elif entry["event"] == "failed":
            console.print(f"  [red]failed[/] {escape(entry['name'])}", soft_wrap=True)
        elif entry["event"] == "missing":
            names = ", ".join(entry["benchmarks"])
            plain(f"not found, so not decontaminated against (set HORNBOOK_DATA): {names}")

    report = pipeline.run(resolved, folder, jobs=jobs, only=tuple(only or ()), on_event=on_event)
    if as_json:
        print(json.dumps(dict(report)))
    else:
        _print_end(resolved.name, report, folder, reported="report" in (only or ("report",)))


def plain(text: str) -> None:
    """Prints a line as it is: in a path or a model's name brackets are no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_end(name: str, report: Mapping[str, Any], folder: Path, *, reported: bool) -> None:
    page = folder / "report.html"
    done, skipped = report["done"], report["skipped"]
    steps = "1 step" if done == 1 else f"{done} steps"
    plain(f"{name}: {steps} done, {skipped} done already, {report['seconds']} s")
    if not reported:
        return
    if (folder / "report.json").is_file():
        data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for table in _score_tables(data):
            console.print(table)
    if page.is_file():
        plain(f"report: {page}")


def _score_tables(data: Mapping[str, Any]) -> list[Table]:
    """pass@1 by arm: on held-out problems, then on each public benchmark."""
    found: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for one in data.get("by_seed", []):
        for arm, stages in one["arms"].items():
            row = found.setdefault("held-out problems", {}).setdefault(arm, {})
            for stage, score in stages.items():
                row.setdefault(stage, []).append(score)
    for score in data.get("benchmarks", []):
        row = found.setdefault(score["benchmark"], {}).setdefault(score["arm"], {})
        row.setdefault(score["stage"], []).append(score)
    tables = []
    for problems, arms in found.items():
        table = Table(title=escape(f"pass@1 on {problems}, %"))
        table.add_column("arm", overflow="fold")
        for stage in ("base", "finetuned"):
            table.add_column(stage, justify="right")
        for arm, stages in arms.items():
            table.add_row(escape(arm), *(_scores(stages.get(s, [])) for s in ("base", "finetuned")))
        tables.append(table)
    return tables


def _scores(seeds: Sequence[Mapping[str, Any]]) -> str:
    """One seed's score with its 95% interval, which says more than ± 0.0; of several the mean."""
    if not seeds:
        return "-"
    values = [100 * score["pass@1"] for score in seeds]
    if len(values) == 1:
        low, high = (100 * seeds[0][key] for key in ("low", "high"))
        return f"{values[0]:.1f} ({low:.1f} to {high:.1f})"
    return f"{sum(values) / len(values):.1f} (seeds: {', '.join(f'{v:.1f}' for v in values)})"


def _print_plan(plan: Mapping[str, Any]) -> None:
    title = f"{plan['name']}: {len(plan['steps'])} steps into {plan['out']}"
    table = Table(title=escape(title))
    # Where there is no room, names go on in the next line: a cut one can't be given to --only.
    for column in ("step", "needs", "state", "estimate"):
        table.add_column(column, overflow="fold")
    for step in plan["steps"]:
        needs = ", ".join(step["needs"][:3]) + (" ..." if len(step["needs"]) > 3 else "")
        table.add_row(*map(escape, (step["name"], needs, step["state"], step["estimate"])))
    # A pipe has no width, and what reads it wants a step in one line.
    (console if console.is_terminal else Console(width=200)).print(table)
    for line in plan["notes"]:
        plain(line)


@app.command(group=RUN)
def train(
    recipe: str,
    *,
    data: Annotated[list[Path], SEVERAL],
    out: Out,
    stage: Literal["pretrain", "finetune"] = "pretrain",
    init: Path | None = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one model on packed data with a recipe's model and training sections.

    Runs as one process, or as many under torchrun. Ctrl-C, SIGTERM and SIGUSR1 save and end with
    code 3 (torchrun itself then ends with 1, and passes SIGUSR1 on if told to by
    --signals-to-handle); the same command goes on, also on another number of processes.

    Parameters
    ----------
    data
        Folders made by `hornbook pack`; several are mixed by their size in tokens. Ids must fit the
        recipe's model.vocab_size: 640 in demo, CodeGen's in the others.
    init
        A model's folder to start from; without it a new model is made.

    Examples:
        hornbook train demo --data runs/demo/pack/filtered --out model/

        torchrun --nproc-per-node 8 -m hornbook train phi-1 --data packed/ --out model/
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
    # Under torchrun every process comes here.
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(dict(report)) if as_json else _trained(report, out))


def _trained(report: Mapping[str, Any], out: Path) -> str:
    """What came of training, in one line."""
    details = report["details"]
    return (
        f"train: {details['steps']:,} steps; loss {details['loss']:.4g}; "
        f"{details['tokens_per_second']:,.0f} tokens/s; {report['seconds']:,.1f} s; "
        f"model: {out / 'final'}"
    )


def _tokens_in(folder: Path) -> float:
    from hornbook.manifest import read_manifest

    details = read_manifest(folder).get("details", {})
    if "tokens" not in details:
        raise InputError(f"{folder}: is no packed data set; make one with `hornbook pack`")
    return float(details["tokens"])
