"""Optional trackers beside the log: each gets every step's numbers, and none is needed.

hornbook train demo --data packed/ --out model/ --set 'pretrain.log_to=["tensorboard"]'
"""

import os
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from hornbook.errors import MissingExtraError
from hornbook.files import write_text

KEYS = (
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "mfu",
    "data_wait_s",
    "peak_memory_bytes",
    "skipped",
)
"""What is passed on, where it is a number."""


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Takes a step's numbers."""

    def close(self) -> None:
        """Passes on what is left."""


class TensorBoard:
    """Event files in `<out>/tensorboard`; what a killed run wrote past `step` is not shown."""

    def __init__(self, out: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        lines = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self.writer.add_text("config", lines)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Takes a step's numbers."""
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Passes on what is left."""
        self.writer.close()


class WandbLike:
    """Weights & Biases, or trackio, which has its interface.

    The project is `WANDB_PROJECT` or `TRACKIO_PROJECT` of the environment, else `hornbook`. A run
    that goes on is the same run there: `<out>/tracker-id` says which.
    """

    def __init__(self, module: Any, out: Path, config: dict[str, Any]) -> None:
        project = os.environ.get(f"{module.__name__.upper()}_PROJECT", "hornbook")
        file = out / "tracker-id"
        if not file.is_file():
            write_text(file, uuid.uuid4().hex[:12] + "\n")
        same = file.read_text(encoding="utf-8").strip()
        # trackio knows a run by its name alone.
        which = {"name": out.name, "id": same}
        if module.__name__ == "trackio":
            which = {"name": f"{out.name}-{same}"}
        self.run = module.init(project=project, config=config, resume="allow", **which)
        self.module = module

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Takes a step's numbers."""
        self.module.log(numbers, step=step)

    def close(self) -> None:
        """Passes on what is left."""
        self.module.finish()


class Trackers:
    """All trackers of a run.

    Args:
        names: Any of "tensorboard", "wandb", "trackio".
        out: The run's folder.
        config: What to show of the run.
        step: Steps done: training goes on after this one.

    Raises:
        MissingExtraError: If one is not installed.
    """

    def __init__(
        self, names: tuple[str, ...], out: Path, config: dict[str, Any], *, step: int
    ) -> None:
        self.all: list[Tracker] = []
        for name in names:
            try:
                if name == "tensorboard":
                    self.all.append(TensorBoard(out, config, step))
                    continue
                self.all.append(WandbLike(import_module(name), out, config))
            except ImportError as error:
                self.close()
                raise MissingExtraError(
                    f'log_to: "{name}" is not installed: pip install {name}'
                ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Passes a step's record on."""
        numbers = {
            key: float(record[key])
            for key in KEYS
            if isinstance(record.get(key), int | float) and abs(record[key]) < float("inf")
        }
        for tracker in self.all:
            tracker.log(int(record["step"]), numbers)

    def close(self) -> None:
        """Ends all of them."""
        for tracker in self.all:
            tracker.close()
        self.all = []
