"""What a recipe will take, before anything runs: tokens, steps, memory, GPU-hours.

hornbook run phi-1 --dry-run
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.manifest import MANIFEST
from hornbook.pipeline import select_steps
from hornbook.recipe import Recipe
from hornbook.steps import Step, missing, plan, rounds
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
    if step.name == "textbooks" and _is_asked(recipe):
        textbooks = recipe.generate.textbooks
        return f"{textbooks.rows or textbooks.sections:,} sections"
    if step.name == "exercises":
        exercises = recipe.generate.exercises
        return f"{(_is_asked(recipe) and exercises.rows) or exercises.count:,} exercises"
    if step.name == "annotate":
        return f"{recipe.annotate.samples:,} labels"
    return ""


def _is_asked(recipe: Recipe) -> bool:
    """Whether an LLM makes textbooks and exercises."""
    return recipe.generate.teacher not in ("procedural", "replay")


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # What rounds to a unit is one of it.
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _training_notes(training: dict[str, Any], runs: dict[str, int]) -> list[str]:
    first = training["pretrain"]
    lines = [f"model: {first['parameters']:,} parameters"]
    for kind, cost in training.items():
        if not runs[kind]:
            continue
        hours = ", ".join(
            f"{_hours(cost['gpu_hours'][card] * runs[kind])} {card}-hours at "
            f"{cost['mfu'][card]:.0%} MFU"
            for card in PEAK_TFLOPS
        )
        memory = cost["memory_bytes"]["total"] / 2**30
        lines.append(
            f"{kind}: {runs[kind]} x {_short(cost['tokens'])} tokens, {cost['flops']:.2g} FLOP "
            f"each; about {memory:.3g} GiB a process without sharding, beside torch itself; in all "
            f"{hours} (estimates)"
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What an LLM is asked for."""

    what: str
    count: int
    tokens: tuple[int, int]
    """Of one prompt and its answer."""
    section: str
    """Of the recipe, that has the prices."""
    prices: tuple[float | None, float | None]
    """US dollars per million of each."""

    @property
    def prompts(self) -> int:
        return self.count * self.tokens[0]

    @property
    def answers(self) -> int:
        return self.count * self.tokens[1]

    @property
    def usd(self) -> float | None:
        price_in, price_out = self.prices
        if price_in is None or price_out is None:
            return None
        return (self.prompts * price_in + self.answers * price_out) / 1e6


def _asked(recipe: Recipe) -> list[_Asked]:
    config, labels = recipe.generate, recipe.annotate
    section, prices = "generate", (config.price_in, config.price_out)
    asked = []
    if _is_asked(recipe):
        for what, count, tokens in (
            ("textbooks", config.textbooks.rows or config.textbooks.sections, TOKENS_PER_SECTION),
            ("exercises", config.exercises.rows or config.exercises.count, TOKENS_PER_EXERCISE),
        ):
            asked.append(
                _Asked(what=what, count=count, tokens=tokens, section=section, prices=prices)
            )
    if labels.annotator == "openai":
        if labels.model and labels.model != config.model:
            section, prices = "annotate", (labels.price_in, labels.price_out)
        # Some are asked for twice, for the kappa.
        count = labels.samples + math.ceil(labels.repeats * labels.samples)
        asked.append(
            _Asked(
                what="labels",
                count=count,
                tokens=TOKENS_PER_LABEL,
                section=section,
                prices=prices,
            )
        )
    return asked


def _hours(hours: float) -> str:
    return f"{hours:,.3g}" if hours >= 0.01 else "below 0.01"


def _teacher_notes(recipe: Recipe) -> list[str]:
    """What asking an LLM comes to, in tokens and, where prices are given, in money."""
    config = recipe.generate
    asked = _asked(recipe)
    if not asked:
        return []
    parts = ", ".join(f"{_short(one.prompts + one.answers)} for {one.what}" for one in asked)
    prompts, answers = sum(one.prompts for one in asked), sum(one.answers for one in asked)
    costs = [one.usd for one in asked]
    usd = sum(cost for cost in costs if cost is not None) if None not in costs else None
    price = f"about {usd or 0:,.{0 if (usd or 0) >= 100 else 2}f} US dollars"
    if usd is None:
        lacking = dict.fromkeys(one.section for one in asked if one.usd is None)
        names = ", ".join(f"{section}.price_in, {section}.price_out" for section in lacking)
        price = f"no prices in the recipe ({names}), so no cost"
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
    lines = [f"decontaminated against: {', '.join(found) or 'nothing'}"]
    lacking = missing(recipe)
    if lacking:
        lines.append(f"not found (set HORNBOOK_DATA): {', '.join(lacking)}")
    if not recipe.source.raw:
        lines.append("source.raw is empty: --set source.raw=/path/to/code")
    return lines
