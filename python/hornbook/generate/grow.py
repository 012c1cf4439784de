"""A curriculum of one's own, grown by a model from one topic: chapters, leaf topics, readers.

First the chapters, the readers and the concepts are asked for, then each chapter's topics; every
reply must be strict JSON, and what repeats or says nothing is left out. The result is a TOML file
for a person to read and change. Asking again with the same ledger is free.

    grow("statistics in Python", "stats.toml", model="m", ledger="l", budget_tokens=10**6)
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hornbook.errors import InputError
from hornbook.files import StrPath, write_text
from hornbook.generate import prompts
from hornbook.generate.answers import RejectedError, strict_json
from hornbook.generate.client import Request, Response, Session, TeacherOptions
from hornbook.generate.curriculum import load, parse, slug
from hornbook.generate.ledger import Ledger

_TRIES = 3
_PARAMS = {"temperature": 0.7, "max_tokens": 3000}

OUTLINE = prompts.Prompt(
    name="outline",
    version=1,
    system="You plan programming courses. You reply with one JSON object and nothing else.",
    user="""\
Plan a course on: $topic

Reply with one JSON object, its keys in this order:
{"chapters": [$chapters short chapter titles, from the first steps to the hardest parts],
 "audiences": [$audiences phrases such as "a biologist who wants to automate counting"],
 "concepts": [4 to 8 phrases such as "a loop that builds up its result", each something that code
 can show]}""",
)
CHAPTER = prompts.Prompt(
    name="chapter",
    version=1,
    system="You plan programming courses. You reply with one JSON object and nothing else.",
    user="""\
A course on "$topic" has the chapters: $chapters.

List the topics of the chapter "$chapter": each small enough for one page and one exercise, none
that belongs to another chapter, no two alike.

Reply with one JSON object: {"topics": [$topics short titles]}""",
)


def grow(
    topic: str,
    out: StrPath,
    *,
    model: str,
    ledger: StrPath,
    chapters: int = 12,
    topics: int = 12,
    audiences: int = 12,
    **teacher: Any,
) -> Path:
    """Asks a model for a curriculum and writes it as TOML.

    Args:
        topic: What the course is about.
        out: The TOML file.
        model: The teacher.
        ledger: The file of calls.
        chapters: How many chapters to ask for.
        topics: How many leaf topics of each.
        audiences: How many readers.
        teacher: The other fields of `TeacherOptions`.

    Returns:
        The file. Names, words, difficulties and libraries are those of the shipped `python`.

    Raises:
        InputError: If the model gives no usable reply in three tries.
        BudgetReachedError, TeacherError, ConfigError: As for `complete_all`.
    """
    options = TeacherOptions(model=model, **teacher)
    about = prompts.clean(" ".join(topic.split()))
    with Ledger(ledger) as book, Session(book, options) as session:
        values = {"topic": about, "chapters": str(chapters), "audiences": str(audiences)}
        keys = ("chapters", "audiences", "concepts")
        plan = _ask(session, "outline", OUTLINE.fill(**values), keys)
        titles = plan["chapters"]
        leaves: list[list[str]] = []
        known: set[str] = set()
        for title in titles:
            filled = CHAPTER.fill(
                topic=about, chapters=", ".join(titles), chapter=title, topics=str(topics)
            )
            made = _ask(session, f"chapter/{title}", filled, ("topics",))["topics"]
            leaves.append([leaf for leaf in made if leaf.lower() not in known])
            known |= {leaf.lower() for leaf in made}
    text = _toml(about, plan, leaves)
    parse(tomllib.loads(text), str(out))  # what is written can be read again
    write_text(Path(out), text)
    return Path(out)


def _ask(
    session: Session, slot: str, messages: list[dict[str, str]], keys: tuple[str, ...]
) -> dict[str, list[str]]:
    """Lists of distinct, clean texts under these keys."""
    why = ""
    for attempt in range(_TRIES):
        request = Request(slot=slot, messages=messages, params=_PARAMS, attempt=attempt)
        (response,) = session.complete([request])
        try:
            return _lists(response, keys)
        except RejectedError as error:
            why = str(error)
    raise InputError(f"{slot}: no usable reply in {_TRIES} tries; the last: {why}")


def _lists(response: Response, keys: tuple[str, ...]) -> dict[str, list[str]]:
    if response.verdict != "ok":
        raise RejectedError(response.verdict, response.error or "the answer is not whole")
    found = {}
    for key, values in strict_json(response.text, keys).items():
        texts = _distinct(values) if isinstance(values, list) else []
        if not texts:
            raise RejectedError("reply", f"`{key}` is no list of texts")
        found[key] = texts
    return found


def _distinct(values: Iterable[Any]) -> list[str]:
    """Texts on one line of at most 120 characters, without those that differ only in case."""
    texts: dict[str, str] = {}
    for value in values:
        if isinstance(value, str):
            line = " ".join(c for c in prompts.clean(value).split() if c.isprintable())[:120]
            if line and any(character.isalnum() for character in line):
                texts.setdefault(line.lower(), line)
    return list(texts.values())


def _toml(topic: str, plan: dict[str, list[str]], leaves: list[list[str]]) -> str:
    """The file. JSON's strings and lists of strings are TOML's."""
    base = load("python")
    assert base.names is not None
    lines = [
        f"# Grown from: {topic}. Read it and change what is wrong before it is paid for.",
        "",
        f"name = {_said(topic)}",
        'language = "python"',
        f"libraries = {_said(list(base.libraries))}",
        f"words = {_said(list(base.words))}",
        "",
        "[names]",
        f"pattern = {_said(base.names.pattern)}",
        *(f"{place} = {_said(list(words))}" for place, words in base.names.words.items()),
    ]
    for number, reader in enumerate(plan["audiences"], 1):
        lines += ["", "[[audiences]]", f'id = "reader-{number}"', f"reader = {_said(reader)}"]
    for number, say in enumerate(plan["concepts"], 1):
        lines += ["", "[[concepts]]", f'id = "concept-{number}"', f"say = {_said(say)}"]
    for level in base.difficulties:
        lines += ["", "[[difficulties]]", f"id = {_said(level.id)}", f"say = {_said(level.say)}"]
        lines.append(f"lines = {list(level.lines)}")
    for number, (title, topics) in enumerate(zip(plan["chapters"], leaves, strict=True), 1):
        # Two titles of a chapter must not make one id.
        distinct = list({slug(leaf): leaf for leaf in reversed(topics)}.values())[::-1]
        if distinct:
            lines += ["", "[[chapters]]", f'id = "chapter-{number}"', f"title = {_said(title)}"]
            lines.append(f"topics = {_said(distinct)}")
    return "\n".join(lines) + "\n"


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
