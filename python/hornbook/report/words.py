"""The report's sentences, made from what the run holds, so that they are true of any recipe."""

from collections.abc import Sequence
from typing import Any

PAPER_PARAMETERS, PAPER_TOKENS = 1_300_000_000, 50_000_000_000
"""phi-1's, as the paper gives them (section 2.3: a little over 50B tokens in all passes)."""


def listed(names: Sequence[str]) -> str:
    """Names in a row: `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def amount(number: float | None) -> str:
    """A count of tokens or parameters to three figures: `76.8 k`."""
    if number is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # What rounds to 1,000 of a unit is one of the next.
        if number >= 0.9995 * size:
            digits = max(0, 2 - len(f"{number / size:.0f}".lstrip("0")) + 1)
            return f"{number / size:,.{digits}f} {unit}"
    return f"{number:,.0f}"


def percents(score: dict[str, Any] | None) -> str:
    """A score with its 95% interval: `5.0 [0.9, 23.6]`."""
    if not score:
        return "–"
    value, low, high = (100 * score[key] for key in ("pass@1", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def passes(data: dict[str, Any], arm: str) -> dict[str, float]:
    """How often an arm's pretraining goes through each of its data sets."""
    weights: dict[str, float] = data["training"]["arms"][arm]
    total = sum(weights.values())
    sizes = {name: counts["tokens"] for name, counts in data["tokens"].items()}
    seen = data["training"]["pretrain_tokens"] or 0
    return {
        name: seen * weight / total / sizes[name]
        for name, weight in weights.items()
        if sizes.get(name)
    }


def mixture(data: dict[str, Any], arm: str) -> str:
    """What an arm is pretrained on, and how often it sees it: `filtered (3.2 times)`."""
    often = passes(data, arm)
    return ", ".join(
        f"{name} ({often[name]:.3g} times)" if name in often else name
        for name in data["training"]["arms"][arm]
    )


def compared(data: dict[str, Any]) -> str:
    """What the arms have in common, and what they do not."""
    training = data["training"]
    arms: dict[str, dict[str, float]] = training["arms"]
    trained = [arm for arm, mix in arms.items() if mix]
    bare = [arm for arm, mix in arms.items() if not mix]
    tuned = training["finetuned_arms"]
    sentences = ["Every arm has the same model."]
    if trained:
        who = "Each that is pretrained" if bare else "Each"
        again = any(count > 1 for arm in trained for count in passes(data, arm).values())
        often = ", small data sets several times (the table says how often)" if again else ""
        sentences.append(
            f"{who} sees {amount(training['pretrain_tokens'])} tokens in pretraining{often}; only "
            "the data differs."
        )
    if bare:
        sentences.append(f"{listed(bare)}: no pretraining.")
    if tuned:
        who = "all" if len(tuned) == len(arms) else listed(tuned)
        size = data["tokens"].get("exercises", {}).get("tokens")
        seen = training["finetune_tokens"] or 0
        often = f", {seen / size:.3g} times all of them" if size else ""
        sentences.append(
            f"Finetuned: {who}, on {amount(training['finetune_tokens'])} tokens of the same "
            f"exercises{often}."
        )
    sentences.append(
        "The held-out problems are compositions of operations that no procedural source of "
        "training data was ever given."
    )
    return " ".join(sentences)


def provenance(data: dict[str, Any]) -> str:
    """Where the data came from, and what that means for the scores."""
    sources: list[str] = data["sources"]
    teacher = data["teacher"]
    made = [name for name in ("textbooks", "exercises") if name in data["tokens"]]
    own = [f"the {name}" for name in made] if teacher["kind"] == "procedural" else []
    if "pool" in sources:
        own.insert(0, "the useful files of the pool")
    sentences = []
    if data["training"]["pretrain_tokens"] is not None:
        sentences.append(
            f"The paper's phi-1 has {amount(PAPER_PARAMETERS)} parameters and saw "
            f"{amount(PAPER_TOKENS)} tokens; these models have "
            f"{amount(data['training']['parameters'])} and saw "
            f"{amount(data['training']['pretrain_tokens'])}."
        )
    if own:
        sentences.append(
            f"{listed([*own, 'the held-out problems'])} come from one grammar of small functions, "
            "so the effect is cleaner than on real code."
        )
    else:
        sentences.append("The held-out problems come from a grammar of small functions.")
    if made and teacher["kind"] != "procedural":
        sentences.append(f"The {listed(made)} were written by {teacher['model'] or 'a model'}.")
    levels = data["levels"]
    trained = ", ".join(map(str, levels["trained"])) or "none"
    tested = ", ".join(map(str, levels["tested"])) or "none"
    sentences.append(f"Levels of the grammar trained on: {trained}; tested: {tested}.")
    real = ["the standard library"] if "stdlib" in sources else []
    real += [name for name in sources if name not in ("stdlib", "pool")]
    if real:
        sentences.append(f"Code as it was found: {listed(real)}.")
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def spending(spent: dict[str, Any]) -> str:
    """What an LLM's calls came to."""
    money = "" if spent["unpriced"] else f", {spent['usd']:,.2f} US dollars"
    told = f"LLM calls: {spent['answered']:,} answers, {spent['tokens']:,} tokens{money}."
    if spent["lost"]:
        money = "" if spent["unpriced"] else f", {spent['lost_usd']:,.2f} US dollars"
        told += (
            f" {spent['lost']:,} more may have been billed without an answer: at most "
            f"{spent['lost_tokens']:,} tokens{money}."
        )
    return told


def judged(name: str, report: dict[str, Any]) -> list[str]:
    """A row of the filter's table: how well a set of labels was met, and how many they are."""
    useful = round(sum(bin_["n"] * (bin_["share_useful"] or 0) for bin_ in report["calibration"]))
    shares = [report.get(key) for key in ("precision", "recall", "f1", "accuracy")]
    return [
        name,
        f"{report['n']:,}",
        f"{useful:,}",
        *("–" if share is None else f"{100 * share:.1f}" for share in shares),
    ]
