"""What decides what comes of a training run. Loads no torch: a finished run is known without it."""

from dataclasses import asdict
from os import fspath
from pathlib import Path
from typing import Any

from hornbook.files import StrPath
from hornbook.manifest import input_hash
from hornbook.train.schedule import TrainConfig

ADJUSTABLE = {
    *("micro_batch_size", "stop_step", "save_every", "keep", "keep_every", "async_save"),
    *("threads", "device", "parallel", "shards", "recompute", "compile", "memory_gb"),
    *("max_skipped", "spike", "log_to", "sample_every", "sample_prompts", "sample_tokens"),
}
"""Options that may change between a run and its continuation."""


def deciding(config: TrainConfig, *, resumed: bool = False) -> dict[str, Any]:
    """The options that decide what comes of a run; files and folders by what they hold.

    How often to save and what to keep decide if the best checkpoint is wanted, and
    `micro_batch_size` if there is dropout; but a run that is `resumed` may change them on the way,
    as where memory or the disk was too small.
    """
    free = set(ADJUSTABLE)
    if config.select != "last" and not resumed:
        free -= {"save_every", "keep", "keep_every"}
    if config.dropout > 0 and not resumed:
        free -= {"micro_batch_size"}
    fixed = {name: value for name, value in asdict(config).items() if name not in free}
    for name in ("validation", "select_on", "init_from"):
        fixed[name] = None if fixed[name] is None else contents(fixed[name])
    return fixed


def contents(source: StrPath) -> str:
    """What a file or folder holds, as a hash; the name of anything else.

    A file of problems may be followed by `:` and the part that is meant.
    """
    name = fspath(source)
    file, colon, part = name.partition(":")
    for path, rest in ((name, ""), (file, colon + part)):
        if Path(path).exists():
            return input_hash(path) + rest
    return name
