"""Which checkpoint becomes the final model, by a criterion that is written down.

The paper saves every 1,000 steps of finetuning and takes the best, and does not say by what. Here:
`last`; the lowest mean `loss` on packed data that was not trained on; or the highest `pass@1` of
greedy answers to problems that should not be those one reports (the preset phi-1: the validation
part of MBPP). Ties go to the earlier step. `selection.json` has every checkpoint's score.

    hornbook train phi-1 --stage finetune --data packed/ --out model/ --set finetune.select=loss \\
        --set finetune.validation=held-out/
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from hornbook import progress
from hornbook.errors import InputError
from hornbook.manifest import write_text
from hornbook.model.phi import Phi
from hornbook.train import checkpoint
from hornbook.train.schedule import TrainConfig

SELECTION = "selection.json"
VALIDATION_ROWS = 512
"""Most rows that a validation loss is the mean of."""


def choose(config: TrainConfig, out: Path, final: Path) -> int:
    """Writes the final model of a run whose checkpoints are written; in one process.

    Args:
        config: The run's.
        out: The run's folder.
        final: The model folder to write.

    Returns:
        The step whose weights it has.

    Raises:
        InputError: If validation data or problems cannot be used.
    """
    folders = checkpoint.found(out / "checkpoints")
    if config.select == "last":
        checkpoint.export(folders[-1], final)
        return checkpoint.step_of(folders[-1])
    work = out / "selection"
    scores: dict[int, float] = {}
    for place, folder in enumerate(folders):
        candidate = work / folder.name
        checkpoint.export(folder, candidate)
        scores[checkpoint.step_of(folder)] = score(config, candidate, work / f"{folder.name}-score")
        progress.advance(f"choosing by {config.select}", place + 1, len(folders))
    best = best_step(scores, lowest=config.select == "loss")
    shutil.rmtree(final, ignore_errors=True)
    (work / f"step-{best:08d}").rename(final)
    said = {
        "criterion": _criterion(config),
        "scores": {str(step): value for step, value in scores.items()},
        "selected": best,
    }
    write_text(out / SELECTION, json.dumps(said, indent=1) + "\n")
    shutil.rmtree(work)
    return best


def best_step(scores: dict[int, float], *, lowest: bool) -> int:
    """The step with the best score; a tie goes to the earlier, and NaN is worst."""
    worst = math.inf

    def order(step: int) -> tuple[float, int]:
        value = scores[step] if lowest else -scores[step]
        return (worst if math.isnan(value) else value, step)

    return min(scores, key=order)


def _criterion(config: TrainConfig) -> str:
    if config.select == "loss":
        return f"lowest mean loss on the first {VALIDATION_ROWS} rows of {config.validation}"
    return f"highest greedy pass@1 on {config.select_on}"


def score(config: TrainConfig, model: Path, work: Path) -> float:
    """A model folder's score by the config's criterion.

    Args:
        config: The run's.
        model: The model folder.
        work: A folder for what comes up on the way.
    """
    if config.select == "loss":
        return validation_loss(config, model)
    from hornbook.evaluate import evaluate_model

    report = evaluate_model(_problems(config), model, work)
    return float(report["pass@1"])


def check(config: TrainConfig) -> None:
    """Opens what the criterion needs, so that a run of days does not end for want of it.

    Raises:
        InputError, ConfigError: If it cannot be used.
    """
    if config.select == "loss":
        _rows(config)
    elif config.select == "pass@1":
        _problems(config)


def _problems(config: TrainConfig) -> Any:
    from hornbook.evaluate import load_problems

    assert config.select_on is not None
    name, _, split = config.select_on.partition(":")
    return load_problems(name, split=split) if split else load_problems(config.select_on)


def _rows(config: TrainConfig) -> Any:
    from hornbook.packed import PackedDataset

    assert config.validation is not None
    return PackedDataset(
        config.validation,
        sequence_length=config.sequence_length,
        method=config.method,
        seed=0,
    )


@torch.no_grad()
def validation_loss(config: TrainConfig, model: Path) -> float:
    """Mean loss over the tokens of validation rows, cut and weighted as in training."""
    rows = _rows(config)
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    opened = Phi.from_pretrained(model, device=device)
    if rows.vocab_size > opened.config.vocab_size:
        raise InputError(
            f"{config.validation}: has ids up to {rows.vocab_size - 1}, the model's vocabulary is "
            f"{opened.config.vocab_size}"
        )
    total = count = 0.0
    number, size = min(VALIDATION_ROWS, rows.samples_per_epoch), config.micro_batch_size or 8
    for first in range(0, number, size):
        batch = rows.batch(first, min(size, number - first))
        labels = torch.from_numpy(batch["labels"]).to(device)
        weights = (labels != -100).float()
        prompt = torch.from_numpy(batch["prompt_mask"]).to(device)
        weights = torch.where(prompt, weights * config.prompt_loss_weight, weights)
        loss = opened(
            torch.from_numpy(batch["input_ids"]).to(device),
            cu_seqlens=batch["cu_seqlens"] if config.document_mask else None,
            labels=labels,
            weights=weights,
            reduction="sum",
        )
        total += float(loss)
        count += float(weights.sum())
    return total / count if count else math.nan
