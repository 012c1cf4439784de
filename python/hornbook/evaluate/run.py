"""Scores a model on problems: completions, programs, verdicts, pass@k with intervals.

Writes into its folder, each a line a sample in order where it is of samples:

- `samples.jsonl`: `task_id`, `completion` (and `raw`, where cutting took something): the official
  graders' form, which they read as it is; theirs is read here in turn, EvalPlus's `solution` too;
- `results.jsonl`: that with `program` (what ran before the tests), `passed`, `result`;
- `problems.jsonl`: each problem's prompt and tests, once;
- `summary.json`: scores with intervals and all that moves them: the data's hash, prompt style, stop
  strings, extraction, batch size, limits, isolation, the model's hash.

Completions are cut at the stop strings and after the function that was asked for; samples from a
file are graded as they stand, so they score as in the benchmark's own executor. Samples of a
problem that are the same text run once and share the verdict. Killed anywhere, a second run goes on
from the completions and verdicts that are there, and its files are the same byte for byte.
Grading costs about 4 to 10 ms of CPU a sample.

    python -c "from hornbook.evaluate import evaluate_model as e; e('humaneval', 'model', 'out')"
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError, SandboxError
from hornbook.evaluate import humaneval, sandbox
from hornbook.evaluate.extract import cut_at_stop, fenced
from hornbook.evaluate.journal import append_lines, read_journal
from hornbook.evaluate.models import Backend, Model, Pair, open_model
from hornbook.evaluate.passk import mean_interval, pass_at_k
from hornbook.evaluate.problems import (
    Problem,
    ProblemSet,
    load_problems,
    read_rows,
    text_field,
)
from hornbook.files import StrPath, as_json, hash_json, read_json, write_text
from hornbook.manifest import Outcome, Report, file_part, run_stage
from hornbook.progress import advance

Complete = Callable[[list[str]], Sequence[str]]
NO_ROOM = "no_room"
"""Of a sample: its prompt left no room in the model's context, so there is none."""
SAMPLES, RESULTS, SUMMARY = "samples.jsonl", "results.jsonl", "summary.json"
PROBLEMS = "problems.jsonl"
BLOCK = 2048
"""Programs between two writes of verdicts: what a kill can cost, and how often workers start."""
_DRAWN, _GRADED = "drawn.partial.jsonl", "graded.partial.jsonl"


def evaluate(
    problems: ProblemSet | Sequence[Problem] | StrPath,
    complete: Complete | Model | None,
    out: StrPath,
    *,
    samples: int | StrPath = 1,
    k: Sequence[int] = (1,),
    model_id: str | None = None,
    settings: Mapping[str, Any] | None = None,
    stop: Sequence[str] | None = None,
    truncate: bool = True,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    workers: int | None = None,
    accept_unsafe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Completes problems, runs the programs in the sandbox and scores them.

    Args:
        problems: What `load_problems` takes or gives, or problems.
        complete: What `open_model` gives; or a function from a list of prompts to completions,
            asked for a part of them at a time, `samples` times each in a row; None with `samples`
            as a file.
        out: The folder to write.
        samples: Completions a problem; or a file of JSON lines with `task_id` and `completion`,
            which must hold every problem.
        k: For pass@k. The first is the one scored by group.
        model_id: What the completions come from, such as a model's hash: part of the result's
            identity, so needed with a function.
        settings: How they were drawn (temperature, seed); part of the identity too.
        stop: Strings that end a completion; the benchmark's own if None.
        truncate: Cut completions after the function that was asked for.
        timeout_s: CPU seconds a program; the problems' own limit if None.
        memory_mb: Address space a program; the problems' own limit if None.
        workers: Programs at a time; all cores if None. Changes no verdict.
        accept_unsafe: Run without the sandbox's missing layers; the summary says `isolation: none`.
        progress: Called with (graded, all).

    Returns:
        The summary: `n` problems, `pass@1` (one such key for each k), `stderr`, `low`, `high` (of
        the first k, 95%), `pass_at_k` with intervals for all, `statuses`, `groups`, `no_room`
        (samples whose prompt is longer than the model's context: failed), and what the scores
        depend on.

    Raises:
        ConfigError: If options do not fit together, such as k above the samples of a problem.
        InputError: If a file of problems or samples is not usable.
        SandboxError: If programs cannot be run safely here; nothing was run.
    """
    chosen = _problem_set(problems)
    if not k or any(value < 1 for value in k):
        raise ConfigError(f"k is {list(k)}: at least one number from 1 is needed")
    model = _model(complete, model_id, settings) if complete is not None else None
    if isinstance(samples, int):
        if model is None:
            raise ConfigError("evaluate needs `complete` with `model_id`, or `samples` as a file")
        if samples < max(k):
            raise ConfigError(f"pass@{max(k)} needs {max(k)} samples a problem, not {samples}")
    elif model is not None:
        raise ConfigError("`samples` is a file of completions: leave out `complete`")
    sandbox.require(accept_unsafe)
    given = None if isinstance(samples, int) else Path(samples)
    cutting = _Cutting(
        stop=tuple(chosen.stop if stop is None else stop) if given is None else (),
        truncate=truncate and given is None,
        fenced=model is not None and model.fenced,
    )
    limits = {
        "cpu_s": chosen.timeout_s if timeout_s is None else timeout_s,
        "memory_mb": chosen.memory_mb if memory_mb is None else memory_mb,
    }
    limits["wall_s"] = max(sandbox.WALL_FLOOR_S, sandbox.WALL_FACTOR * limits["cpu_s"])
    about: dict[str, Any] = {
        "problems": chosen.name,
        "problems_sha256": chosen.sha256,
        "protocol": chosen.protocol,
        "model_id": model_id if model is None else model.model_id,
        "settings": dict((settings or {}) if model is None else model.settings),
        "samples": samples if given is None else "from a file",
        "stop": list(cutting.stop),
        "cut": "after the function" if cutting.truncate else "none",
        "extraction": cutting.rule,
        "same_samples": "run once",
        "limits": limits,
        "python": platform.python_version(),
    }

    def work(folder: Path) -> Outcome:
        if given is not None:
            rows = _read_samples(chosen, given)
        elif (folder / SAMPLES).is_file():
            rows = _read_samples(chosen, folder / SAMPLES)
        else:
            assert model is not None
            assert isinstance(samples, int)
            rows = _draw(chosen, model, samples, cutting, folder / _DRAWN)
        counts = Counter(problem.task_id for problem, _ in rows)
        if min(counts.values()) < max(k):
            task_id = min(counts, key=lambda name: counts[name])
            raise ConfigError(
                f"pass@{max(k)} needs {max(k)} samples a problem, but `{task_id}` has "
                f"{counts[task_id]}"
            )
        _write_lines(folder / SAMPLES, [row for _, row in rows])
        (folder / _DRAWN).unlink(missing_ok=True)
        verdicts = _grade(
            rows,
            folder / _GRADED,
            progress,
            timeout_s=limits["cpu_s"],
            wall_s=limits["wall_s"],
            memory_mb=limits["memory_mb"],
            workers=workers,
            accept_unsafe=accept_unsafe,
        )
        results = [
            {
                **row,
                "program": f"{problem.preamble}{row['completion']}",
                "passed": verdict["status"] == "passed",
                "result": "no room for the prompt" if row.get(NO_ROOM) else verdict["result"],
                "tamper_proof": verdict["tamper_proof"],
            }
            for (problem, row), verdict in zip(rows, verdicts, strict=True)
        ]
        _write_lines(folder / RESULTS, results)
        _write_lines(
            folder / PROBLEMS,
            [{"task_id": one.task_id, "prompt": one.prompt, "test": one.test} for one in chosen],
        )
        summary = {**_scores(chosen, results, k), **about, "isolation": verdicts[0]["isolation"]}
        summary["tamper_proof"] = all(verdict["tamper_proof"] for verdict in verdicts)
        summary[NO_ROOM] = sum(NO_ROOM in row for _, row in rows)
        statuses = Counter(verdict["status"] for verdict in verdicts)
        summary["statuses"] = {name: statuses[name] for name in sorted(statuses)}
        write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        (folder / _GRADED).unlink(missing_ok=True)
        return Outcome(
            parts=[
                file_part(folder, SAMPLES, len(rows)),
                file_part(folder, RESULTS, len(rows)),
                file_part(folder, PROBLEMS, len(chosen)),
                file_part(folder, SUMMARY, 1),
            ],
            rows_in=len(chosen),
            kept=len(rows),
            details={"cpu_s": round(sum(verdict["cpu_s"] for verdict in verdicts), 3)},
        )

    manifest = run_stage(
        "evaluate",
        out,
        inputs=[path for path in (chosen.path, given) if path is not None],
        config={**about, "k": list(k), "accept_unsafe": accept_unsafe},
        work=work,
        resumable=True,
    )
    return Report(read_json(Path(out) / SUMMARY), reused=manifest.reused)


def evaluate_model(
    problems: ProblemSet | Sequence[Problem] | StrPath,
    model: StrPath,
    out: StrPath,
    *,
    samples: int = 1,
    k: Sequence[int] = (1,),
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str] | None = None,
    backend: Backend = "auto",
    device: str | None = None,
    endpoint: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """`evaluate` for a model by its name: a checkpoint, a causal model on the Hub, an endpoint.

    Args:
        problems: What `load_problems` takes or gives, or problems.
        model: What `open_model` takes.
        out: The folder to write.
        samples: Completions a problem.
        k: For pass@k.
        max_new_tokens: Most tokens of a completion.
        temperature: 0 for greedy.
        top_p: The share of probability drawn from.
        seed: Of the draws.
        batch_size: Prompts at a time.
        stop: Strings that end a completion; the benchmark's own if None.
        backend: As for `open_model`.
        device: As for `open_model`.
        endpoint: As for `open_model`.
        options: `timeout_s`, `memory_mb`, `workers`, `accept_unsafe`, `progress`.

    Raises:
        ConfigError: Also for several samples at temperature 0, which would all be the same.
        MissingExtraError: If torch, transformers or openai is needed and not installed.
    """
    if samples > 1 and temperature == 0:
        raise ConfigError(f"{samples} greedy samples are one sample: set temperature above 0")
    chosen = _problem_set(problems)
    ends = chosen.stop if stop is None else tuple(stop)
    opened = open_model(
        model,
        backend=backend,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        stop=ends,
        device=device,
        endpoint=endpoint,
    )
    # A chat model's prose is not cut at stop strings: its code is taken out first.
    ends = () if opened.fenced else ends
    return evaluate(chosen, opened, out, samples=samples, k=k, stop=ends, **options)


@dataclass(frozen=True, kw_only=True)
class _Cutting:
    """Where in what a model wrote its answer is."""

    stop: tuple[str, ...]
    truncate: bool
    fenced: bool

    @property
    def rule(self) -> str:
        """In words."""
        steps = ["the fenced block with the function"] if self.fenced else []
        steps += ["up to the first stop string"] if self.stop else []
        steps += ["up to the statement after the function"] if self.truncate else []
        return ", then ".join(steps) or "none"

    def apply(self, problem: Problem, raw: str) -> str:
        text = raw
        if self.fenced:
            text = fenced(text, problem.entry_point)
            # It writes the function out again, after the prompt's; or it goes on from the prompt.
            text = text if problem.preamble.endswith("\n") or not text else f"\n{text}"
        text = cut_at_stop(text, self.stop)
        return problem.truncated(text) if self.truncate else text


def _model(
    complete: Complete | Model, model_id: str | None, settings: Mapping[str, Any] | None
) -> Model:
    if isinstance(complete, Model):
        return complete
    if model_id is None:
        raise ConfigError("evaluate needs `complete` with `model_id`, or `samples` as a file")
    function = complete

    def draw(pairs: Sequence[Pair], places: Sequence[int]) -> Sequence[str]:
        return function([problem.prompt for problem, _ in pairs])

    return Model(draw=draw, model_id=model_id, settings=settings or {})


def _problem_set(problems: ProblemSet | Sequence[Problem] | StrPath) -> ProblemSet:
    if isinstance(problems, ProblemSet):
        return problems
    if isinstance(problems, Sequence) and not isinstance(problems, str):
        listed = tuple(problems)
        if not listed or len({problem.task_id for problem in listed}) < len(listed):
            raise ConfigError("evaluate needs at least one problem, each with its own task_id")
        return ProblemSet(
            name="problems",
            problems=listed,
            sha256=hash_json(listed),
            protocol="completion",
            stop=humaneval.STOP,
        )
    return load_problems(problems)


def _draw(
    problems: ProblemSet, model: Model, samples: int, cutting: _Cutting, journal: Path
) -> list[tuple[Problem, dict[str, Any]]]:
    """Has completions made and cuts them; a row keeps the raw text where the cut took some."""
    asked = [(problem, number) for problem in problems for number in range(samples)]
    texts: list[str | None] = [row["raw"] for row in read_journal(journal)]
    while len(texts) < len(asked):
        first = len(texts)
        part = asked[first : first + model.group]
        drawn = model.draw(part, range(first, first + len(part)))
        if len(drawn) != len(part):
            raise InputError(f"`complete` gave {len(drawn)} completions for {len(part)} prompts")
        append_lines(journal, [{"raw": text} for text in drawn])
        # As a later run reads them: JSON makes one character of a pair of surrogates.
        texts += as_json(drawn)
        advance("completions", len(texts), len(asked))
    rows = []
    for (problem, _), raw in zip(asked, texts, strict=True):
        if raw is None:
            none: dict[str, Any] = {"task_id": problem.task_id, "completion": "", NO_ROOM: True}
            rows.append((problem, none))
            continue
        text = cutting.apply(problem, raw)
        row: dict[str, Any] = {"task_id": problem.task_id, "completion": text}
        rows.append((problem, row if text == raw else {**row, "raw": raw}))
    return rows


def _grade(
    rows: Sequence[tuple[Problem, dict[str, Any]]],
    journal: Path,
    progress: Callable[[int, int], None] | None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Runs each different sample once, a block at a time; finished blocks outlive a kill."""
    places: dict[tuple[str, str], int] = {}
    which = [places.setdefault((row["task_id"], row["completion"]), len(places)) for _, row in rows]
    firsts = {place: index for index, place in reversed(list(enumerate(which)))}
    verdicts = read_journal(journal)
    while len(verdicts) < len(places):
        done = len(verdicts)
        part = [rows[firsts[place]] for place in range(done, min(done + BLOCK, len(places)))]

        def forward(graded: int, _: int, done: int = done) -> None:
            if progress is not None:
                progress(done + graded, len(places))

        outcomes = sandbox.grade(
            [problem for problem, _ in part],
            [row["completion"] for _, row in part],
            progress=forward,
            **options,
        )
        for (_, row), outcome in zip(part, outcomes, strict=True):
            if outcome.status == "harness":
                raise SandboxError(f"{row['task_id']} could not be run: {outcome.output.strip()}")
        found = [
            {
                "status": outcome.status,
                "result": _result(outcome),
                "tamper_proof": outcome.tamper_proof,
                "isolation": outcome.isolation,
                "cpu_s": outcome.cpu_s,
            }
            for outcome in outcomes
        ]
        append_lines(journal, found)
        verdicts += found
    return [verdicts[place] for place in which]


def _read_samples(problems: ProblemSet, path: Path) -> list[tuple[Problem, dict[str, Any]]]:
    """Reads completions, in the file's order.

    Raises:
        InputError: If one is of no problem, or a problem has none: its score would mislead.
    """
    by_name = {problem.task_id: problem for problem in problems}
    rows = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        task_id = text_field(row, "task_id", where)
        if task_id not in by_name:
            raise InputError(f"{where}: `{task_id}` is not one of {problems.name}'s problems")
        if "completion" not in row and isinstance(row.get("solution"), str):
            # EvalPlus's form: a whole program, which defines the function once more.
            row["completion"] = "\n" + row["solution"]
        kept: dict[str, Any] = {
            "task_id": task_id,
            "completion": text_field(row, "completion", where),
        }
        if isinstance(row.get("raw"), str):
            kept["raw"] = row["raw"]
        if row.get(NO_ROOM) is True and not kept["completion"]:
            kept[NO_ROOM] = True
        rows.append((by_name[task_id], kept))
    there = {problem.task_id for problem, _ in rows}
    missing = [name for name in by_name if name not in there]
    if missing:
        raise InputError(
            f"{path}: no sample for {len(missing)} of {len(by_name)} problems, "
            f"such as `{missing[0]}`"
        )
    return rows


def _result(outcome: sandbox.Outcome) -> str:
    """The status, with the exception's name where it is one."""
    if outcome.status != "exception":
        return outcome.status
    name = (outcome.output.strip().splitlines() or [""])[-1].split(":")[0]
    return f"exception: {name}" if name.isidentifier() else "exception"


def _scores(
    problems: ProblemSet, results: Sequence[Mapping[str, Any]], k: Sequence[int]
) -> dict[str, Any]:
    """pass@k over problems, with intervals, and by group for the first k."""
    passes: dict[str, list[bool]] = {problem.task_id: [] for problem in problems}
    for row in results:
        passes[row["task_id"]].append(row["passed"])

    def score(chosen: Sequence[Problem], value: int) -> dict[str, float]:
        each = [passes[problem.task_id] for problem in chosen]
        rates = [pass_at_k(len(one), sum(one), value) for one in each]
        return dict(mean_interval(rates)._asdict())

    scores = {value: score(problems, value) for value in k}
    first = scores[k[0]]
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.group is not None:
            groups.setdefault(problem.group, []).append(problem)
    return {
        "n": len(problems),
        **{f"pass@{value}": found["mean"] for value, found in scores.items()},
        **{name: first[name] for name in ("stderr", "low", "high")},
        "pass_at_k": {str(value): found for value, found in scores.items()},
        "groups": {
            name: {"n": len(members), **score(members, k[0])}
            for name, members in sorted(groups.items())
        },
    }


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # ASCII: lone surrogates survive, and no control byte reaches a terminal.
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
