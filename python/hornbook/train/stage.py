"""Training as a stage: skipped when its result is there, resumed when it was cut short.

Under torchrun the first process keeps the stage's folder and makes room in it before any trains.

    hornbook train demo --data packed/ --out model/
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook import progress
from hornbook.errors import HornbookError
from hornbook.files import StrPath, read_json
from hornbook.manifest import Outcome, Report, file_part, run_stage
from hornbook.model.config import PhiConfig
from hornbook.tokenizer import Tokenizer
from hornbook.train.key import deciding
from hornbook.train.plan import parameter_count
from hornbook.train.schedule import TrainConfig

if TYPE_CHECKING:
    from hornbook.train.loop import TrainResult
    from hornbook.train.parallel import World

STAGE = "train"


def train_stage(
    config: TrainConfig,
    start: PhiConfig | StrPath,
    data: Mapping[str, float],
    out: StrPath,
    *,
    seed: int = 0,
) -> Report:
    """Trains one model on packed data.

    Args:
        config: The training section of a recipe.
        start: A shape for a fresh model, or the folder of one to go on from.
        data: Folder of packed data -> weight in tokens.
        out: The stage's folder; the model is in `final/`.
        seed: Replaces the config's.

    Returns:
        The manifest, in every process; `details` has parameters, tokens, steps, loss,
        tokens_per_second, skipped_steps, selected_step.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM; the same call goes on.
        ResumeError: If `out` holds a model of other settings or data. Options that do not change
            the result (threads, device, processes; micro-batches unless there is dropout, how often
            to save unless the best checkpoint is wanted) may differ.
    """
    config = replace(config, seed=seed)
    shape = start if isinstance(start, PhiConfig) else None
    source = start if isinstance(start, PhiConfig) else Path(start)
    inputs: list[StrPath] = [*data, *([source] if isinstance(source, Path) else [])]
    named = (config.init_from, config.validation, config.select_on)
    inputs += [Path(name) for name in named if name and Path(name).exists()]
    tokenizer = Tokenizer.from_file(Path(next(iter(data))) / "tokenizer.json")
    label = "pretrain" if shape else "finetune"

    def on_step(record: Mapping[str, Any]) -> None:
        progress.advance(label, int(record["step"]), config.last_step, _note(record))

    # Torch is imported where it is used: it is seconds and hundreds of MB, for a finished run too.
    def share(folder: Path) -> "TrainResult":
        from hornbook.train.loop import train

        return train(
            config,
            data=dict(data),
            out=folder,
            model=source,
            tokenizer=tokenizer,
            on_step=on_step,
        )

    def work(folder: Path) -> Outcome:
        from hornbook.model.hf import config_from_json

        result = share(folder)
        trained = config_from_json(read_json(result.final / "config.json"), result.final)
        names = sorted(f"final/{path.name}" for path in result.final.iterdir() if path.is_file())
        return Outcome(
            parts=[file_part(folder, name) for name in [*names, "metrics.jsonl"]],
            details={
                "parameters": parameter_count(trained),
                "steps": result.step,
                "tokens": result.tokens,
                "loss": result.loss,
                "tokens_per_second": result.tokens_per_second,
                "skipped_steps": result.skipped,
                "selected_step": result.selected,
            },
        )

    def stage(begin: Callable[[], None]) -> Report:
        def begun(folder: Path) -> Outcome:
            begin()
            return work(folder)

        identity = {
            "train": {**deciding(config), "stop_step": config.stop_step},
            "model": asdict(shape) if shape else "given",
            "weights": list(data.values()),
        }
        return run_stage(
            STAGE,
            out,
            inputs=inputs,
            config=identity,
            work=begun,
            seed=seed,
            resumable=True,
            precious=True,
        )

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return stage(lambda: None)
    from hornbook.train.parallel import world

    with world(config.device) as here:
        return _together(here, stage, lambda: share(Path(out)))


def _together(
    here: "World", stage: Callable[[Callable[[], None]], Report], share: Callable[[], Any]
) -> Report:
    """A stage on several processes: the first says when there is room, and the others train too."""
    if here.rank > 0:
        word = here.agree(None)
        if word is None:
            share()
            word = here.agree(None)
        if isinstance(word, HornbookError):
            raise word
        return word  # type: ignore[no-any-return]
    begun = False

    def begin() -> None:
        nonlocal begun
        begun = True
        here.agree(None)

    try:
        report = stage(begin)
    except HornbookError as error:
        if not begun:
            here.agree(error)
        raise
    here.agree(report)
    return report


def _note(record: Mapping[str, Any]) -> str:
    """A step in a few words, beside its bar and the time left."""
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.3f}"
    parts = [
        f"loss {loss}",
        f"lr {record['lr']:.2g}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if "mfu" in record:
        parts.append(f"{record['mfu']:.0%} MFU")
    parts.append(f"{record['peak_memory_bytes'] / 2**30:.3g} GiB")
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    return ", ".join(parts)
