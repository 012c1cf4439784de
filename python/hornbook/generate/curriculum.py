"""What is asked for, of whom and how: topics, audiences, concepts, difficulties, names, from TOML.

The paper gets diversity "by providing constraints on topics and target audience" (section 2.2);
a curriculum is those constraints, and topic x audience x concept x difficulty is one cell. Three
ship with the package: `python_basics` (the procedural teacher's), `python` and `sql` (for a model;
each over 12 audiences). Another language, or another form of exercise, is another file: `[format]`
says what to ask, which fenced blocks an answer has, how to run it and how to break it.

    from hornbook.generate.curriculum import load; print(len(load("python").topics))
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath

DEFAULT = "python_basics"
SHIPPED = (DEFAULT, "python", "sql")
"""Curricula of this package, by name."""

KINDS = ("textbooks", "exercises")


@dataclass(frozen=True, kw_only=True)
class Audience:
    """Who a section is written for."""

    id: str
    """Short name."""
    reader: str
    """The reader, as a phrase: "a teacher who prepares a lesson"."""
    openings: tuple[str, ...] = ()
    """Procedural teacher: sentences that may open a section."""
    closings: tuple[str, ...] = ()
    """Procedural teacher: sentences that may close one."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One subject, small enough for a section: a leaf of the tree."""

    id: str
    """`chapter.topic`."""
    title: str
    """A heading."""
    chapter: str
    """The headings above it, joined by " / "."""
    level: int = 0
    """Level of the procedural teacher; 0 for topics that are a model's."""
    operations: tuple[str, ...] = ()
    """Operations of the procedural teacher that belong to it."""
    ideas: tuple[str, ...] = ()
    """Sentences that explain it."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something that code can show."""

    id: str
    say: str
    """How a prompt asks for it."""
    shows: str = ""
    """A regular expression that code with it matches; empty: it cannot be seen in code."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard an exercise is."""

    id: str
    say: str
    """How a prompt asks for it."""
    lines: tuple[int, int] = (1, 1_000)
    """Least and most lines of code in a solution of it."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What function names are made from."""

    pattern: str
    """Such as `{verb}_{noun}`; each place is one of the word lists."""
    words: dict[str, tuple[str, ...]]
    """Place -> its words."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one kind of text is asked for and taken apart, in a language that is not Python.

    Places in `user`: $topic $audience $concept $difficulty, for exercises $name and $tests, for
    textbooks $words. `program` is a Python program that ends without an error if the answer is
    right; its places are filled with Python string literals: $name, one for each block, and $code
    (a list: a section's blocks).
    """

    system: str
    user: str
    program: str
    blocks: tuple[str, ...] = ()
    """Exercises: names of the fenced blocks, in order. One must be `solution`."""
    fences: tuple[str, ...] = ()
    """The language tag of each block; for textbooks, the tags of what is run."""
    prompt: str = ""
    """Exercises: what stands before the solution, from the blocks."""
    tests: str = ""
    """Exercises: what checks it, from the blocks."""
    mutations: tuple[tuple[str, str], ...] = ()
    """Exercises: `(regular expression, replacement)`; a broken solution must fail."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Topics and audiences, and what else a slot is made from."""

    name: str
    """Its name, for provenance."""
    language: str
    """Language of the code."""
    topics: tuple[Topic, ...]
    """Leaves of the tree, in order."""
    audiences: tuple[Audience, ...]
    """Readers, in order."""
    concepts: tuple[Concept, ...] = ()
    difficulties: tuple[Difficulty, ...] = ()
    words: tuple[str, ...] = ()
    """Words injected into textbook prompts, so that no two sections tell the same story."""
    names: Names | None = None
    libraries: tuple[str, ...] = ()
    """What an exercise may import."""
    keywords: tuple[str, ...] = ()
    """Words that are structure; other words are names (for languages other than Python)."""
    forms: dict[str, Form] = field(default_factory=dict)
    """Kind -> form; none for Python, whose forms are built in."""


def load(path: StrPath | None = None) -> Curriculum:
    """Reads a curriculum.

    Args:
        path: A TOML file, or one of `SHIPPED`; the procedural teacher's if None.

    Raises:
        InputError: If the file is missing or not TOML.
        ConfigError: If a key is missing, unknown or of the wrong type, or an id occurs twice.
    """
    name = DEFAULT if path is None else str(path)
    where = f"{name}.toml" if name in SHIPPED else name
    try:
        if name in SHIPPED:
            text = (files("hornbook.generate") / "curricula" / where).read_text("utf-8")
        else:
            text = Path(name).read_text("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError as error:
        raise InputError(
            f"{where}: no such file (shipped curricula: {', '.join(SHIPPED)})"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not readable TOML ({error})") from error
    return parse(data, where)


def parse(data: Mapping[str, Any], where: str) -> Curriculum:
    """Checks a curriculum's data; `where` names its file in errors.

    Raises:
        ConfigError: As for `load`.
    """
    optional = {"concepts", "difficulties", "words", "names", "libraries", "keywords", "format"}
    _keys(data, {"name", "language", "audiences", "chapters"}, where, optional)
    audiences = []
    for entry in _tables(data, "audiences", where):
        _keys(entry, {"id", "reader"}, where, {"openings", "closings"})
        audiences.append(
            Audience(
                id=_text(entry, "id", where),
                reader=_text(entry, "reader", where),
                openings=_texts(entry, "openings", where),
                closings=_texts(entry, "closings", where),
            )
        )
    topics: list[Topic] = []
    for chapter in _tables(data, "chapters", where):
        topics += _chapter(chapter, where)
    concepts = [_concept(entry, where) for entry in _tables(data, "concepts", where, True)]
    difficulties = [_difficulty(e, where) for e in _tables(data, "difficulties", where, True)]
    for what in (audiences + topics, concepts, difficulties):
        seen: set[str] = set()
        for item in what:
            if item.id in seen:
                raise ConfigError(f"{where}: the id `{item.id}` occurs twice; ids must differ")
            seen.add(item.id)
    forms = data.get("format", {})
    return Curriculum(
        name=_text(data, "name", where),
        language=_text(data, "language", where),
        topics=tuple(topics),
        audiences=tuple(audiences),
        concepts=tuple(concepts),
        difficulties=tuple(difficulties),
        words=_listed(data, "words", where),
        names=_names(data["names"], where) if "names" in data else None,
        libraries=_listed(data, "libraries", where),
        keywords=_listed(data, "keywords", where),
        forms={kind: _form(forms[kind], kind, where) for kind in KINDS if kind in forms},
    )


def _chapter(chapter: Mapping[str, Any], where: str) -> list[Topic]:
    _keys(chapter, {"id", "title"}, where, {"level", "topics", "sections"})
    place = f"{where}: chapter `{_text(chapter, 'id', where)}`"
    title = _text(chapter, "title", place)
    level = chapter.get("level", 0)
    if not isinstance(level, int) or isinstance(level, bool):
        raise ConfigError(f"{place}: `level` is {level!r}; it must be an integer")
    if ("topics" in chapter) == ("sections" in chapter):
        raise ConfigError(f"{place}: give either `topics` or `sections`")
    if "sections" in chapter:
        made = []
        for entry in _tables(chapter, "sections", place):
            _keys(entry, {"title", "topics"}, place)
            above = f"{title} / {_text(entry, 'title', place)}"
            made += _titles(entry, chapter["id"], above, place)
        return made
    topics = chapter["topics"]
    if isinstance(topics, list) and topics and not isinstance(topics[0], dict):
        return _titles(chapter, chapter["id"], title, place)
    made = []
    for entry in _tables(chapter, "topics", place):
        _keys(entry, {"id", "title", "operations", "ideas"}, place)
        made.append(
            Topic(
                id=_text(entry, "id", place),
                title=_text(entry, "title", place),
                chapter=title,
                level=level,
                operations=_texts(entry, "operations", place),
                ideas=_texts(entry, "ideas", place),
            )
        )
    return made


def _titles(table: Mapping[str, Any], chapter: str, above: str, place: str) -> list[Topic]:
    """Topics that are titles alone; ids are made from them."""
    return [
        Topic(id=f"{chapter}.{slug(title)}", title=title, chapter=above)
        for title in _texts(table, "topics", place)
    ]


def slug(title: str) -> str:
    """The part of a topic's id that is made from its title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "topic"


def _concept(entry: Mapping[str, Any], where: str) -> Concept:
    _keys(entry, {"id", "say"}, where, {"shows"})
    shows = entry.get("shows", "")
    _pattern(shows, where)
    return Concept(id=_text(entry, "id", where), say=_text(entry, "say", where), shows=shows)


def _difficulty(entry: Mapping[str, Any], where: str) -> Difficulty:
    _keys(entry, {"id", "say"}, where, {"lines"})
    lines = entry.get("lines", [1, 1_000])
    whole = isinstance(lines, list) and all(type(line) is int for line in lines)
    if not whole or len(lines) != 2 or not 1 <= lines[0] <= lines[1]:
        raise ConfigError(f"{where}: `lines` of {_short(entry)} must be [least, most]")
    return Difficulty(
        id=_text(entry, "id", where), say=_text(entry, "say", where), lines=(lines[0], lines[1])
    )


def _names(table: Any, where: str) -> Names:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: `names` must be a table")
    place = f"{where}: names"
    pattern = _text(table, "pattern", place)
    needed = set(re.findall(r"\{(\w+)\}", pattern))
    _keys(table, needed | {"pattern"}, place)
    words = {name: _listed(table, name, place) for name in sorted(needed)}
    example = pattern.format(**{name: values[0] for name, values in words.items()})
    if not needed or not example.isidentifier():
        raise ConfigError(f"{place}: `{pattern}` makes `{example}`, which is no name")
    return Names(pattern=pattern, words=words)


def _form(table: Any, kind: str, where: str) -> Form:
    place = f"{where}: format.{kind}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place}: must be a table")
    needed = {"system", "user", "program", "fences"}
    if kind == "exercises":
        needed |= {"blocks", "prompt", "tests", "mutations"}
    _keys(table, needed, place)
    form = Form(
        **{name: _text(table, name, place) for name in ("system", "user", "program")},
        **{name: table.get(name, "") for name in ("prompt", "tests")},
        blocks=_texts(table, "blocks", place),
        fences=_texts(table, "fences", place),
        mutations=tuple((str(old), str(new)) for old, new in table.get("mutations", [])),
    )
    for pattern, _ in form.mutations:
        _pattern(pattern, place)
    if kind == "exercises" and (
        "solution" not in form.blocks or len(form.blocks) != len(form.fences)
    ):
        raise ConfigError(f"{place}: `blocks` needs `solution`, and one of `fences` for each")
    return form


def _pattern(text: Any, where: str) -> None:
    try:
        re.compile(text)
    except (re.error, TypeError) as error:
        raise ConfigError(f"{where}: {text!r} is no regular expression ({error})") from error


def _keys(
    table: Mapping[str, Any],
    expected: set[str],
    where: str,
    optional: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    missing = sorted(expected - set(table))
    unknown = sorted(set(table) - expected - optional)
    if missing:
        raise ConfigError(f"{where}: `{missing[0]}` is missing from {_short(table)}")
    if unknown:
        raise ConfigError(
            f"{where}: unknown key `{unknown[0]}` in {_short(table)}; "
            f"known are {', '.join(sorted(expected | optional))}"
        )


def _short(table: Mapping[str, Any]) -> str:
    return f"`{table['id']}`" if "id" in table else "the table with keys " + ", ".join(table)


def _tables(
    table: Mapping[str, Any], key: str, where: str, optional: bool = False
) -> list[Mapping[str, Any]]:
    value = table.get(key, []) if optional else table[key]
    empty = not value and not optional
    if not isinstance(value, list) or empty or not all(isinstance(x, dict) for x in value):
        raise ConfigError(f"{where}: `{key}` must be a list of tables with at least one entry")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: `{key}` is {value!r}; it must be text")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of texts; empty if the (optional) key is not there."""
    if key not in table:
        return ()
    value = table[key]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: `{key}` of {_short(table)} must be a list of texts")
    if not all(isinstance(text, str) and text.strip() for text in value):
        raise ConfigError(f"{where}: `{key}` of {_short(table)} holds something that is not text")
    return tuple(value)


def _listed(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of texts, or one text of words; without repeats."""
    value = table.get(key)
    words = tuple(value.split()) if isinstance(value, str) else _texts(table, key, where)
    for word in words:
        if words.count(word) > 1:
            raise ConfigError(f"{where}: `{key}` holds `{word}` twice")
    return words
