"""What textbooks are about and for whom: a tree of topics and a list of audiences, from TOML.

The paper gets diversity "by providing constraints on topics and target audience" (section 2.2);
a curriculum is those constraints. Every topic x audience is one cell, and generation fills the
cells evenly. `load()` reads the one that ships with the package.

    from hornbook.generate.curriculum import load; print(load().topics[0])
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError
from hornbook.manifest import StrPath

DEFAULT = "python_basics"


@dataclass(frozen=True, kw_only=True)
class Audience:
    """Who a section is written for."""

    id: str
    """Short name."""
    reader: str
    """The reader, as a phrase: "a teacher who prepares a lesson"."""
    openings: tuple[str, ...]
    """Sentences that may open a section."""
    closings: tuple[str, ...]
    """Sentences that may close one."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One subject, small enough for a section."""

    id: str
    """`chapter.topic`."""
    title: str
    """A heading."""
    chapter: str
    """The heading of its chapter."""
    level: int
    """Level of the procedural teacher."""
    operations: tuple[str, ...]
    """Operations of the procedural teacher that belong to it."""
    ideas: tuple[str, ...]
    """Sentences that explain it."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Topics and audiences."""

    name: str
    """Its name, for provenance."""
    language: str
    """Programming language of the snippets."""
    topics: tuple[Topic, ...]
    """Leaves of the tree, in order."""
    audiences: tuple[Audience, ...]
    """Readers, in order."""


def load(path: StrPath | None = None) -> Curriculum:
    """Reads a curriculum.

    Args:
        path: A TOML file; the one of this package if None.

    Raises:
        InputError: If the file is missing or not TOML.
        ConfigError: If a key is missing, unknown or of the wrong type, or an id occurs twice.
    """
    where = str(path) if path is not None else f"{DEFAULT}.toml"
    try:
        if path is None:
            text = (files("hornbook.generate") / where).read_text("utf-8")
        else:
            text = Path(path).read_text("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not readable TOML ({error})") from error
    return parse(data, where)


def parse(data: Mapping[str, Any], where: str) -> Curriculum:
    """Checks a curriculum's data; `where` names its file in errors.

    Raises:
        ConfigError: As for `load`.
    """
    _keys(data, {"name", "language", "audiences", "chapters"}, where)
    audiences = []
    for entry in _tables(data, "audiences", where):
        _keys(entry, {"id", "reader", "openings", "closings"}, where)
        audiences.append(
            Audience(
                id=_text(entry, "id", where),
                reader=_text(entry, "reader", where),
                openings=_texts(entry, "openings", where),
                closings=_texts(entry, "closings", where),
            )
        )
    topics = []
    for chapter in _tables(data, "chapters", where):
        _keys(chapter, {"id", "title", "level", "topics"}, where)
        place = f"{where}: chapter `{_text(chapter, 'id', where)}`"
        level = chapter["level"]
        if not isinstance(level, int) or isinstance(level, bool):
            raise ConfigError(f"{place}: `level` is {level!r}; it must be an integer")
        for entry in _tables(chapter, "topics", place):
            _keys(entry, {"id", "title", "operations", "ideas"}, place)
            topics.append(
                Topic(
                    id=_text(entry, "id", place),
                    title=_text(entry, "title", place),
                    chapter=_text(chapter, "title", place),
                    level=level,
                    operations=_texts(entry, "operations", place),
                    ideas=_texts(entry, "ideas", place),
                )
            )
    ids = [audience.id for audience in audiences] + [topic.id for topic in topics]
    for name in ids:
        if ids.count(name) > 1:
            raise ConfigError(f"{where}: the id `{name}` occurs twice; ids must differ")
    return Curriculum(
        name=_text(data, "name", where),
        language=_text(data, "language", where),
        topics=tuple(topics),
        audiences=tuple(audiences),
    )


def _keys(table: Mapping[str, Any], expected: set[str], where: str) -> None:
    missing, unknown = sorted(expected - set(table)), sorted(set(table) - expected)
    if missing:
        raise ConfigError(f"{where}: `{missing[0]}` is missing from {_short(table)}")
    if unknown:
        raise ConfigError(
            f"{where}: unknown key `{unknown[0]}` in {_short(table)}; "
            f"known are {', '.join(sorted(expected))}"
        )


def _short(table: Mapping[str, Any]) -> str:
    return f"`{table['id']}`" if "id" in table else "the table with keys " + ", ".join(table)


def _tables(table: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value = table[key]
    if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
        raise ConfigError(f"{where}: `{key}` must be a list of tables with at least one entry")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: `{key}` is {value!r}; it must be text")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table[key]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: `{key}` of {_short(table)} must be a list of texts")
    if not all(isinstance(text, str) and text.strip() for text in value):
        raise ConfigError(f"{where}: `{key}` of {_short(table)} holds something that is not text")
    return tuple(value)
