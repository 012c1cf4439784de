"""Commands that run a recipe, or its training."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from hornbook import progress
from hornbook.commands.shared import RUN, Json, Out, Settings, app, console
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
        _print_end(resolved.name, report, folder, reported="report" in (only or ("report",)))


def _print_end(name: str, report: Mapping[str, Any], folder: Path, *, reported: bool) -> None:
    page = folder / "report.html"
    done, skipped = report["done"], report["skipped"]
    console.print(f"{name}: {done} steps done, {skipped} were done already, {report['seconds']} s")
    if not reported:
        return
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
        console.print(line, highlight=False, soft_wrap=True)


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

    Runs as one process, or as many under torchrun. Ctrl-C, SIGTERM and SIGUSR1 save and end with
    code 3 (torchrun itself then ends with 1, and passes SIGUSR1 on if told to by
    --signals-to-handle); the same command goes on, also on another number of processes.

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
    from hornbook.manifest import MANIFEST, read_json

    details = read_json(folder / MANIFEST).get("details", {})
    if "tokens" not in details:
        raise InputError(f"{folder}: is no packed data set; make one with `hornbook pack`")
    return float(details["tokens"])
