"""Which checkpoint becomes the final model, by a criterion that is written down.

The paper saves every 1,000 steps of finetuning and takes the best, and does not say by what. Here:
`last`; the lowest mean `loss` on packed data that was not trained on; or the highest `pass@1` of
greedy answers to problems that should not be those one reports (the preset phi-1: the validation
part of MBPP). Ties go to the earlier step. Candidates are the whole checkpoints of every
`save_every` steps and the last: what a signal saved in between would make the choice depend on it.
`selection.json` has every candidate's score, and which were torn.

    hornbook train phi-1 --stage finetune --data packed/ --out model/ --set finetune.select=loss \\
        --set finetune.validation=held-out/
"""

import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import torch

from hornbook import progress
from hornbook.errors import ConfigError, InputError
from hornbook.files import read_json, write_text
from hornbook.model.phi import Phi
from hornbook.train import checkpoint
from hornbook.train.guards import Interrupted
from hornbook.train.schedule import TrainConfig

SELECTION = "selection.json"
SCORES = "scores.json"
VALIDATION_ROWS = 512
"""Most rows that a validation loss is the mean of."""


def choose(
    config: TrainConfig, out: Path, final: Path, *, stop: threading.Event | None = None
) -> int:
    """Writes the final model of a run whose checkpoints are written; in one process.

    Args:
        config: The run's.
        out: The run's folder.
        final: The model folder to write.
        stop: Looked at before every candidate.

    Returns:
        The step whose weights it has.

    Raises:
        InputError: If validation data or problems cannot be used, or no checkpoint is whole.
        Interrupted: If `stop` is set; scores made by then are kept for the next call.
    """
    root = out / "checkpoints"
    if config.select == "last":
        checkpoint.export(root / f"step-{config.last_step:08d}", final)
        return config.last_step
    work = out / "selection"
    folders = {
        step: folder
        for folder in checkpoint.found(root)
        for step in [checkpoint.step_of(folder)]
        if step % config.save_every == 0 or step == config.last_step
    }
    before = read_json(work / SCORES) if (work / SCORES).is_file() else {}
    scores: dict[int, float] = {step: before[str(step)] for step in folders if str(step) in before}
    refused: list[str] = []
    for place, (step, folder) in enumerate(folders.items()):
        if stop is not None and stop.is_set():
            raise Interrupted(
                f"{out}: stopped by a signal while the final model was chosen, after "
                f"{len(scores)} of {len(folders)} checkpoints; run it again to go on"
            )
        if step in scores:
            continue
        candidate = work / folder.name
        try:
            checkpoint.export(folder, candidate)
        except InputError as error:
            refused.append(str(error))
            continue
        scores[step] = score(config, candidate, work / f"{folder.name}-score")
        write_text(work / SCORES, json.dumps(scores) + "\n")
        shutil.rmtree(candidate)
        progress.advance(f"choosing by {config.select}", place + 1, len(folders))
    if not scores:
        raise InputError(f"{root}: no checkpoint to choose from is whole: {'; '.join(refused)}")
    best = best_step(scores, lowest=config.select == "loss")
    shutil.rmtree(final, ignore_errors=True)
    checkpoint.export(folders[best], final)
    said = {
        "criterion": _criterion(config),
        "scores": {str(step): value for step, value in scores.items()},
        "selected": best,
        "refused": refused,
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


def check(config: TrainConfig, *, tokenizer: Any = None) -> None:
    """Opens what the criterion needs, so that a run of days does not end for want of it.

    Raises:
        InputError, ConfigError: If it cannot be used.
        SandboxError: If programs cannot be run safely here, for "pass@1".
    """
    if config.select == "loss":
        _rows(config)
    elif config.select == "pass@1":
        from hornbook.evaluate import sandbox

        if tokenizer is None:
            raise ConfigError('select = "pass@1" needs a tokenizer')
        _problems(config)
        sandbox.require()


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
            positions=torch.from_numpy(batch["position_ids"]).to(device)
            if config.reset_positions
            else None,
            labels=labels,
            weights=weights,
            reduction="sum",
        )
        total += float(loss)
        count += float(weights.sum())
    return total / count if count else math.nan
