"""What the generating stages share: take new rows from an endless source until there are enough."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hornbook import corpus
from hornbook.errors import ConfigError
from hornbook.files import StrPath
from hornbook.manifest import Outcome, Report, run_stage

Row = dict[str, Any]
REPEATS = 1_000
"""So many rows in a row that were there before mean that a source has run dry."""


def run(
    stage: str,
    out: StrPath,
    *,
    rows: Callable[[], Iterable[Row]],
    schema: Mapping[str, str],
    config: Mapping[str, Any],
    group: Callable[[Row], str],
    groups: str,
) -> Report:
    """Runs a stage that writes `config["count"]` rows, or `config["characters"]` of text.

    Args:
        stage: The stage's name.
        out: Its folder.
        rows: Gives an endless source of rows; one with a text that was there before is dropped.
        schema: Their columns, as `corpus.write` takes them.
        config: What decides the bytes; holds `count`, `characters` (one of them None) and `seed`.
        group: The group that a row counts towards.
        groups: What the groups are called in the manifest's details.

    Raises:
        ConfigError: If not exactly one size is given, it is not positive, or the source runs dry.
    """
    count, characters = config["count"], config["characters"]
    if (count is None) == (characters is None):
        raise ConfigError(f"{stage}: give either `count` or `characters`, and only one of them")
    for name in ("count", "characters"):
        if config[name] is not None and config[name] <= 0:
            raise ConfigError(f"{stage}: `{name}` is {config[name]}; it must be positive")

    def work(folder: Path) -> Outcome:
        kept: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        repeats = 0

        def new() -> Iterator[Row]:
            nonlocal repeats
            seen: set[str] = set()
            stale = 0
            for row in rows():
                if row["text"] in seen:
                    repeats, stale = repeats + 1, stale + 1
                    if stale == REPEATS:
                        raise ConfigError(
                            f"{stage}: only {len(seen):,} different texts found; "
                            "ask for fewer or add levels"
                        )
                    continue
                stale = 0
                seen.add(row["text"])
                kept[group(row)] += 1
                sizes[group(row)] += len(row["text"])
                yield row
                if (count is not None and kept.total() >= count) or (
                    characters is not None and sizes.total() >= characters
                ):
                    return

        return Outcome(
            parts=corpus.write(folder, new(), schema),
            rows_in=kept.total() + repeats,
            kept=kept.total(),
            dropped={"repeated": repeats} if repeats else {},
            details={
                "characters": sizes.total(),
                groups: dict(sorted(kept.items())),
                f"{groups}_characters": dict(sorted(sizes.items())),
            },
        )

    return run_stage(stage, out, inputs=[], config=dict(config), work=work, seed=config["seed"])
