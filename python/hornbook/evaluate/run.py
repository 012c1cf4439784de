"""Scores a model on problems: completions, programs, verdicts, pass@k with intervals.

Writes into its folder `samples.jsonl` (the completions, as other graders read them),
`results.jsonl` (one line a sample, in order: `task_id`, `completion`, `passed`, `result`) and
`summary.json`. Completions are cut at the stop strings and after the function that was asked for;
samples from a file are graded as they stand, so they score as in the benchmark's own executor.
All that moves a score (protocol, stop strings, cuts, limits, the problems' hash, isolation) is in
the summary. Killed while grading, a second run goes on from the completions that are there.
Grading costs about 4 to 10 ms of CPU a sample.

    python -c "from hornbook.evaluate import evaluate_model as e; e('humaneval', 'model', 'out')"
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError, SandboxError
from hornbook.evaluate import humaneval, sandbox
from hornbook.evaluate.passk import mean_interval, pass_at_k
from hornbook.evaluate.problems import (
    Problem,
    ProblemSet,
    cut_at_stop,
    load_problems,
    read_rows,
    text_field,
)
from hornbook.manifest import (
    Outcome,
    Report,
    StrPath,
    file_part,
    hash_json,
    input_hash,
    read_json,
    run_stage,
    write_text,
)

Complete = Callable[[list[str]], Sequence[str]]
SAMPLES, RESULTS, SUMMARY = "samples.jsonl", "results.jsonl", "summary.json"


def evaluate(
    problems: ProblemSet | Sequence[Problem] | StrPath,
    complete: Complete | None,
    out: StrPath,
    *,
    samples: int | StrPath = 1,
    k: Sequence[int] = (1,),
    model_id: str | None = None,
    settings: Mapping[str, Any] | None = None,
    stop: Sequence[str] | None = None,
    truncate: bool = True,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    accept_unsafe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Completes problems, runs the programs in the sandbox and scores them.

    Args:
        problems: What `load_problems` takes or gives, or problems.
        complete: Prompts to completions, called once with every prompt, `samples` times each in a
            row; None with `samples` as a file.
        out: The folder to write.
        samples: Completions a problem; or a file of JSON lines with `task_id` and `completion`,
            which must hold every problem.
        k: For pass@k. The first is the one scored by group.
        model_id: What the completions come from, such as a model's hash: part of the result's
            identity, so needed with `complete`.
        settings: How they were drawn (temperature, seed); part of the identity too.
        stop: Strings that end a completion; the benchmark's own if None.
        truncate: Cut completions after the function that was asked for.
        timeout_s: CPU seconds a program.
        memory_mb: Address space a program.
        workers: Programs at a time; all cores if None. Changes no verdict.
        accept_unsafe: Run without the sandbox's missing layers; the summary says `isolation: none`.
        progress: Called with (graded, all).

    Returns:
        The summary: `n` problems, `pass@1` (one such key for each k), `stderr`, `low`, `high` (of
        the first k, 95%), `pass_at_k` with intervals for all, `statuses`, `groups`, and what the
        scores depend on.

    Raises:
        ConfigError: If options do not fit together, such as k above the samples of a problem.
        InputError: If a file of problems or samples is not usable.
        SandboxError: If programs cannot be run safely here; nothing was run.
    """
    chosen = _problem_set(problems)
    if not k or any(value < 1 for value in k):
        raise ConfigError(f"k is {list(k)}: at least one number from 1 is needed")
    if isinstance(samples, int):
        if complete is None or model_id is None:
            raise ConfigError("evaluate needs `complete` with `model_id`, or `samples` as a file")
        if samples < max(k):
            raise ConfigError(f"pass@{max(k)} needs {max(k)} samples a problem, not {samples}")
    elif complete is not None:
        raise ConfigError("`samples` is a file of completions: leave out `complete`")
    sandbox.require(accept_unsafe)
    given = None if isinstance(samples, int) else Path(samples)
    ends = list(chosen.stop if stop is None else stop) if given is None else []
    about: dict[str, Any] = {
        "problems": chosen.name,
        "problems_sha256": chosen.sha256,
        "protocol": chosen.protocol,
        "model_id": model_id,
        "settings": dict(settings or {}),
        "samples": samples if given is None else "from a file",
        "stop": ends,
        "cut": "after the function" if truncate and given is None else "none",
        "limits": {"cpu_s": timeout_s, "memory_mb": memory_mb},
        "python": platform.python_version(),
    }

    def work(folder: Path) -> Outcome:
        if given is not None:
            rows = _read_samples(chosen, given)
        elif (folder / SAMPLES).is_file():
            rows = _read_samples(chosen, folder / SAMPLES)
        else:
            assert complete is not None
            assert isinstance(samples, int)
            rows = _draw(chosen, complete, samples, ends, truncate)
        counts = Counter(problem.task_id for problem, _ in rows)
        if min(counts.values()) < max(k):
            task_id = min(counts, key=lambda name: counts[name])
            raise ConfigError(
                f"pass@{max(k)} needs {max(k)} samples a problem, but `{task_id}` has "
                f"{counts[task_id]}"
            )
        _write_lines(folder / SAMPLES, [row for _, row in rows])
        outcomes = sandbox.grade(
            [problem for problem, _ in rows],
            [row["completion"] for _, row in rows],
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            workers=workers,
            accept_unsafe=accept_unsafe,
            progress=progress,
        )
        for (_, row), outcome in zip(rows, outcomes, strict=True):
            if outcome.status == "harness":
                raise SandboxError(f"{row['task_id']} could not be run: {outcome.output.strip()}")
        results = [
            {
                **row,
                "passed": outcome.passed,
                "result": _result(outcome),
                "tamper_proof": outcome.tamper_proof,
            }
            for (_, row), outcome in zip(rows, outcomes, strict=True)
        ]
        _write_lines(folder / RESULTS, results)
        summary = {**_scores(chosen, results, k), **about, "isolation": outcomes[0].isolation}
        summary["tamper_proof"] = all(outcome.tamper_proof for outcome in outcomes)
        statuses = Counter(outcome.status for outcome in outcomes)
        summary["statuses"] = {name: statuses[name] for name in sorted(statuses)}
        write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        return Outcome(
            parts=[
                file_part(folder, SAMPLES, len(rows)),
                file_part(folder, RESULTS, len(rows)),
                file_part(folder, SUMMARY, 1),
            ],
            rows_in=len(chosen),
            kept=len(rows),
            details={"cpu_s": round(sum(outcome.cpu_s for outcome in outcomes), 3)},
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
    model_dir: StrPath,
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
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    accept_unsafe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Scores one of our checkpoints; see `evaluate`.

    Args:
        problems: What `load_problems` takes or gives, or problems.
        model_dir: A folder with the model and its `tokenizer.json`.
        out: The folder to write.
        samples: Completions a problem.
        k: For pass@k.
        max_new_tokens: Most tokens of a completion.
        temperature: 0 for greedy.
        top_p: The share of probability drawn from.
        seed: Of the draws.
        batch_size: Prompts at a time.
        stop: Strings that end a completion; the benchmark's own if None.
        timeout_s: CPU seconds a program.
        memory_mb: Address space a program.
        workers: Programs at a time.
        accept_unsafe: Run without the sandbox's missing layers.
        progress: Called with (graded, all).

    Raises:
        ConfigError: Also for several samples at temperature 0, which would all be the same.
        MissingExtraError: If torch is not installed.
    """
    if samples > 1 and temperature == 0:
        raise ConfigError(f"{samples} greedy samples are one sample: set temperature above 0")
    chosen = _problem_set(problems)
    folder = Path(model_dir)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; name a checkpoint's folder")
    ends = chosen.stop if stop is None else tuple(stop)

    def complete(prompts: list[str]) -> Sequence[str]:
        from hornbook.errors import need

        need("torch", "train")
        import torch

        from hornbook.model import Phi
        from hornbook.model.sample import generate
        from hornbook.tokenizer import Tokenizer

        # In training text the newline after a docstring is often one token with the indentation
        # that follows; a prompt that ends in it would end in the middle of that token.
        open_ended = [prompt.rstrip("\n") for prompt in prompts]
        texts: Sequence[str] = generate(
            Phi.from_pretrained(folder, device="cuda" if torch.cuda.is_available() else "cpu"),
            Tokenizer.from_file(folder / "tokenizer.json"),
            open_ended,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=ends,
            seed=seed,
            batch_size=batch_size,
        )
        ends_of = [prompt[len(bare) :] for prompt, bare in zip(prompts, open_ended, strict=True)]
        return [text.removeprefix(end) for text, end in zip(texts, ends_of, strict=True)]

    return evaluate(
        chosen,
        complete,
        out,
        samples=samples,
        k=k,
        model_id=input_hash(folder),
        settings={
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "batch_size": batch_size,
            "prompt": "without its last newlines, which the model writes",
        },
        stop=ends,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
        workers=workers,
        accept_unsafe=accept_unsafe,
        progress=progress,
    )


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
    problems: ProblemSet, complete: Complete, samples: int, stop: Sequence[str], truncate: bool
) -> list[tuple[Problem, dict[str, Any]]]:
    """Has completions made and cuts them; a row keeps the raw text where the cut took some."""
    asked = [problem for problem in problems for _ in range(samples)]
    texts = complete([problem.prompt for problem in asked])
    if len(texts) != len(asked):
        raise InputError(f"`complete` gave {len(texts)} completions for {len(asked)} prompts")
    rows = []
    for problem, raw in zip(asked, texts, strict=True):
        text = cut_at_stop(raw, stop)
        if truncate:
            text = problem.truncated(text)
        row = {"task_id": problem.task_id, "completion": text}
        rows.append((problem, row if text == raw else {**row, "raw": raw}))
    return rows


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
        kept = {"task_id": task_id, "completion": text_field(row, "completion", where)}
        if isinstance(row.get("raw"), str):
            kept["raw"] = row["raw"]
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
