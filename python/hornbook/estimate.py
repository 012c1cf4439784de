"""What a recipe will take, before anything runs: tokens, steps, memory, GPU-hours.

hornbook run phi-1 --dry-run
"""

from pathlib import Path
from typing import Any

from hornbook.manifest import MANIFEST
from hornbook.pipeline import select_steps
from hornbook.recipe import Recipe
from hornbook.steps import Step, plan, rounds
from hornbook.train.plan import PEAK_TFLOPS, estimate

TOKENS_PER_SECTION = (250, 850)
"""Of one LLM textbook section's prompt and of its answer, roughly."""
TOKENS_PER_EXERCISE = (300, 200)
"""Of one LLM exercise's prompt and of its answer, roughly."""
TOKENS_PER_LABEL = (1150, 50)
"""Of one LLM label's prompt, which holds the document, and of its answer, roughly."""

THERE = "what is there is skipped, unless its settings or inputs have changed since"


def describe(recipe: Recipe, out: Path, *, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The resolved plan.

    Args:
        recipe: The recipe.
        out: The run's folder; a step with a manifest there is "there". Whether it is done is seen
            only when it runs: its key holds the hashes of what the steps before it will make.
        only: Names or prefixes of steps, as for `pipeline.run`; empty means all.

    Returns:
        `name`, `out`, `steps` (name, needs, state, estimate), `notes` (lines), and `training`
        (the estimates of pretraining and finetuning).

    Raises:
        ConfigError: If `only` names no step.
    """
    root = Path(out)
    training = {
        "pretrain": estimate(recipe.model, recipe.pretrain),
        "finetune": estimate(recipe.model, recipe.finetune),
    }
    steps = select_steps(plan(recipe), only)
    there = [step for step in steps if (root / step.name / MANIFEST).is_file()]
    runs = {
        "pretrain": sum(step.name.endswith("/base") and _trains(step) for step in steps),
        "finetune": sum(step.name.endswith("/finetuned") and _trains(step) for step in steps),
    }
    return {
        "name": recipe.name,
        "out": str(root),
        "steps": [
            {
                "name": step.name,
                "needs": list(step.needs),
                "state": "there" if step in there else "to do",
                "estimate": _estimate(recipe, step, training),
            }
            for step in steps
        ],
        "training": training,
        "notes": [
            *_training_notes(training, runs),
            *_teacher_notes(recipe),
            *_notes(recipe),
            *([THERE] if there else []),
        ],
    }


def _trains(step: Step) -> bool:
    return step.name.startswith("train/")


def _estimate(recipe: Recipe, step: Step, training: dict[str, Any]) -> str:
    if _trains(step):
        kind = "pretrain" if step.name.endswith("/base") else "finetune"
        section = recipe.pretrain if kind == "pretrain" else recipe.finetune
        return f"{section.last_step:,} steps, {_short(training[kind]['tokens'])} tokens"
    if step.name == "textbooks" and recipe.generate.teacher not in ("procedural", "replay"):
        return f"{recipe.generate.textbooks.sections:,} sections"
    if step.name == "exercises":
        return f"{recipe.generate.exercises.count:,} exercises"
    if step.name == "annotate":
        return f"{recipe.annotate.samples:,} labels"
    return ""


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _training_notes(training: dict[str, Any], runs: dict[str, int]) -> list[str]:
    first = training["pretrain"]
    lines = [f"model: {first['parameters']:,} parameters"]
    for kind, cost in training.items():
        if not runs[kind]:
            continue
        hours = ", ".join(
            f"{cost['gpu_hours'][card] * runs[kind]:,.3g} {card}-hours at "
            f"{cost['mfu'][card]:.0%} MFU"
            for card in PEAK_TFLOPS
        )
        memory = cost["memory_bytes"]["total"] / 2**30
        lines.append(
            f"{kind}: {runs[kind]} x {_short(cost['tokens'])} tokens, {cost['flops']:.2g} FLOP "
            f"each; about {memory:.3g} GiB a process without sharding; in all {hours} (estimates)"
        )
    return lines


def _teacher_notes(recipe: Recipe) -> list[str]:
    """What asking an LLM comes to, in tokens and, where prices are given, in money."""
    config = recipe.generate
    asked: dict[str, tuple[int, int]] = {}

    def ask(what: str, count: int, tokens: tuple[int, int]) -> None:
        asked[what] = (count * tokens[0], count * tokens[1])

    if config.teacher not in ("procedural", "replay"):
        ask("textbooks", config.textbooks.sections, TOKENS_PER_SECTION)
        ask("exercises", config.exercises.count, TOKENS_PER_EXERCISE)
    if recipe.annotate.annotator == "openai":
        ask("labels", recipe.annotate.samples, TOKENS_PER_LABEL)
    if not asked:
        return []
    parts = ", ".join(f"{_short(sum(tokens))} for {what}" for what, tokens in asked.items())
    prompts, answers = (sum(tokens[i] for tokens in asked.values()) for i in (0, 1))
    usd = None
    price = "no prices in the recipe (generate.price_in, generate.price_out), so no cost"
    if config.price_in is not None and config.price_out is not None:
        usd = (prompts * config.price_in + answers * config.price_out) / 1e6
        price = f"about {usd:,.0f} US dollars"
    lines = [
        f"teacher {config.model or '(no generate.model)'}: about {parts} tokens ({_short(prompts)} "
        f"of prompts, {_short(answers)} of answers); {price}"
    ]
    if config.budget_usd is not None and usd is not None:
        lines.append(_budget(f"{config.budget_usd:,.2f} US dollars", config.budget_usd, usd))
    if config.budget_tokens is not None:
        amount = f"{_short(config.budget_tokens)} tokens"
        lines.append(_budget(amount, config.budget_tokens, prompts + answers))
    return lines


def _budget(amount: str, budget: float, cost: float) -> str:
    """Whether a budget would end the asking."""
    if budget >= cost:
        return f"the budget of {amount} should hold it all"
    return (
        f"the budget of {amount} would stop it after about {budget / cost:.0%}; what is there stays"
    )


def _notes(recipe: Recipe) -> list[str]:
    found = [name for against in rounds(recipe).values() for name in against]
    missing = [name for name in recipe.decontaminate.if_present if name not in found]
    lines = [f"decontaminated against: {', '.join(found) or 'nothing'}"]
    if missing:
        lines.append(f"not found (set HORNBOOK_DATA): {', '.join(missing)}")
    if not recipe.source.raw:
        lines.append("source.raw is empty: --set source.raw=/path/to/code")
    return lines
