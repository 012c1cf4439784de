"""Commands on models, and on the results of a run."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from hornbook.commands.shared import (
    LOOK,
    MODEL,
    Accept,
    Json,
    Out,
    app,
    printable,
    read_stdin,
    show,
)
from hornbook.errors import InputError, ResumeError

export = App(name="export", group=MODEL, help="Write a model for other software.")
study = App(name="study", group=LOOK, help="Studies on a finished run.")
sandbox = App(name="sandbox", group=MODEL, help="Where model-written code is run.")
app.command(export)
app.command(sandbox)
app.command(study)


@app.command(group=MODEL)
def sample(
    *prompts: str,
    model: str,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Annotated[list[str] | None, Parameter(negative="", metavar="STR")] = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    as_json: Json = False,
) -> None:
    """Complete prompts; a single one is printed as it is written.

    Parameters
    ----------
    prompts
        Texts to go on from; `-`, or none, is standard input, without the ends of lines it ends in:
        models know those as one token with the indentation that follows.
    model
        A model's folder, or a Hub name.
    temperature
        0 takes the likeliest token each time.
    stop
        End a completion before this text; given again for each.
    samples
        Completions of each prompt.
    as_json
        Print one JSON line for each completion: prompt, completion.

    Examples:
        hornbook sample "def add(a, b):" --model runs/demo/train/filtered/seed-0/finetuned/final

        hornbook sample - --model model/ --temperature 0.8 --top-p 0.95 --stop $'\\n\\n' < prompt.py
    """
    from hornbook.model.hf import find_folder, load
    from hornbook.model.sample import generate as complete
    from hornbook.tokenizer import Tokenizer

    texts = [read_stdin().rstrip("\n") if text == "-" else text for text in prompts or ("-",)]
    texts = [text for text in texts for _ in range(samples)]
    folder = find_folder(model)
    _check_model(folder)
    opened = load(folder, device=_device())
    live = len(texts) == 1 and not as_json
    begun = False

    def write(_: int, piece: str) -> None:
        nonlocal begun
        # The prompt comes with the first piece: an error stands alone.
        print(piece if begun else texts[0] + piece, end="", flush=True)
        begun = True

    answers = complete(
        opened,
        Tokenizer.from_file(folder / "tokenizer.json"),
        texts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop or ()),
        seed=seed,
        batch_size=batch_size,
        on_text=write if live else None,
    )
    if live:
        print("" if begun else texts[0])
        return
    for text, answer in zip(texts, answers, strict=True):
        if as_json:
            print(json.dumps({"prompt": text, "completion": answer}))
        else:
            print(f"{text}{answer}\n{'-' * 72}")


def _check_model(folder: Path) -> None:
    """Names what is missing, and the model inside a training's folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a model's folder, or a checkpoint's")
    lacking = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if lacking and (folder / "final").is_dir():
        raise InputError(
            f"{folder}: is the folder of a training; its model is in {folder / 'final'}"
        )
    if lacking:
        raise InputError(f"{folder}: holds no model: {' and '.join(lacking)} not there")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@sandbox.command(name="status")
def sandbox_status(*, as_json: Json = False) -> None:
    """Say which layers of isolation this machine has for model-written code.

    Examples:
        hornbook sandbox status
    """
    from hornbook.evaluate.sandbox import status
    from hornbook.manifest import Report

    show(Report(status()), as_json)


@sandbox.command(name="run")
def sandbox_run(
    file: str = "-",
    *,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    accept_unsafe: Accept = False,
    as_json: Json = False,
) -> None:
    """Run a Python file (`-`: standard input) as a model's program, and say how it ended.

    Exits with 1 if the program did not pass.

    Parameters
    ----------
    timeout_s
        CPU seconds; the wall allows six times as much, at least 60 s.
    memory_mb
        Address space.

    Examples:
        hornbook sandbox run answer.py

        echo "assert 1 + 1 == 2" | hornbook sandbox run
    """
    from hornbook.evaluate import run_programs
    from hornbook.evaluate.problems import read_bytes
    from hornbook.manifest import Report

    try:
        text = read_stdin() if file == "-" else read_bytes(Path(file)).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}") from error
    [outcome] = run_programs(
        [text], timeout_s=timeout_s, memory_mb=memory_mb, accept_unsafe=accept_unsafe
    )
    found = asdict(outcome)
    if not as_json:
        print(printable(found.pop("output")), end="")
    show(Report(found), as_json)
    if not outcome.passed:
        sys.exit(1)


@export.command(name="hf")
def export_hf(model: Path, *, out: Out) -> None:
    """Write a model in the Hugging Face layout, for transformers and servers that know Phi.

    Parameters
    ----------
    model
        A model's folder, or a training checkpoint.

    Examples:
        hornbook export hf runs/phi-1/train/CodeTextbook/seed-0/finetuned/final --out phi-1/

        hornbook export hf model/checkpoints/step-00024000 --out phi-1-base/
    """
    from hornbook.model import Phi
    from hornbook.tokenizer import Tokenizer
    from hornbook.train import checkpoint

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ResumeError(f"{out}: is not empty; name another folder")
    if (model / checkpoint.STATE).is_file():
        checkpoint.export(model, out)
    else:
        _check_model(model)
        tok = Tokenizer.from_file(model / "tokenizer.json")
        Phi.from_pretrained(model).save_pretrained(out, tokenizer=tok)
    print(f"wrote {out}")


@study.command(name="contamination")
def study_contamination(run_folder: Path, *, as_json: Json = False) -> None:
    """Split a run's held-out scores into problems similar and not similar to its exercises.

    Examples:
        hornbook study contamination runs/demo
    """
    from hornbook.study.contamination import split_study

    found = split_study(_recipe_of(run_folder), run_folder)
    if as_json:
        show(found, as_json)
        return
    rows = found["details"]["rows"]
    width = max([3, *(len(row["arm"]) for row in rows)])
    print(f"{'arm':<{width}}  seed    model       tau  similar  pass@1  non-similar  pass@1")
    for row in rows:
        near, far = row["similar"], row["non-similar"]
        print(
            f"{row['arm']:<{width}}  {row['seed']:<6}  {row['stage']:<9}  {row['tau']:4.2f}  "
            f"{near['n']:7,}  {_percent(near['pass@1']):>6}  {far['n']:11,}  "
            f"{_percent(far['pass@1']):>6}"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _recipe_of(run_folder: Path) -> Any:
    from hornbook.files import read_json
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

    Of a run, the steps that have no result are named too.

    Examples:
        hornbook verify runs/demo
    """
    from hornbook.manifest import MANIFEST, Report
    from hornbook.manifest import verify as check

    def unreadable(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}")

    found = []
    unfinished: list[str] = []
    for folder in folders:
        walk = os.walk(folder, onerror=unreadable)
        inside = [Path(path) for path, _, files in walk if MANIFEST in files]
        if not inside:
            raise InputError(f"{folder}: no {MANIFEST} in it")
        found += sorted(inside)
        if (folder / "recipe.json").is_file():
            from hornbook.steps import plan

            names = [step.name for step in plan(_recipe_of(folder))]
            unfinished += [name for name in names if not (folder / name / MANIFEST).is_file()]
    reports = [check(folder) for folder in found]
    total: dict[str, Any] = {
        "stages": len(reports),
        "files": sum(r["checked"] for r in reports),
        "bytes": sum(r["bytes"] for r in reports),
        "ok": True,
    }
    if unfinished:
        total["not there"] = ", ".join(unfinished)
    show(Report(total), as_json)


@app.command(group=LOOK)
def trace(row_id: str, *, run_folder: Annotated[Path, Parameter(name="--run")]) -> None:
    """Print one document's way through a run: where it was kept or dropped, and why.

    Examples:
        hornbook trace 1f0c9d --run runs/demo
    """
    from hornbook.trace import trace as find

    for line in find(row_id, run_folder):
        print(printable(line))
