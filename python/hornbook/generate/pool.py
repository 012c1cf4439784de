"""A procedural raw pool: repository-like files with the faults the paper found in raw code.

Most files teach nothing: they lean on the rest of their repository (`dependent`), hold settings and
tables (`constants`), wire objects together (`glue`), or repeat one tired subject (`skewed`); see
section 2 of the paper. A minority (`useful`) holds small functions of the procedural teacher, most
of them documented. Junk carries docstrings and comments too, and some useful files carry imports,
no docstrings, or boilerplate, so that no single feature tells them apart. The column `kind` is the
truth for a report to score a filter by; no stage may train on it. About 5 MB a second.

    from hornbook.generate import pool; pool("runs/pool", characters=4_000_000, seed=0)
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random

from hornbook.files import StrPath
from hornbook.generate.procedural import LEVELS, Sample, check_levels, check_share, sample
from hornbook.generate.stage import Row, run
from hornbook.manifest import Report

FAULTS = ("dependent", "constants", "glue", "skewed")
"""Kinds of file that teach nothing; the other kind is `useful`."""
_SALT = 0x706F6F6C

NOUNS = (
    "account", "asset", "batch", "booking", "cart", "channel", "client", "device", "event",
    "gateway", "invoice", "job", "ledger", "message", "node", "order", "packet", "payment",
    "profile", "queue", "record", "report", "session", "shipment", "sensor", "ticket", "token",
)  # fmt: skip
VERBS = (
    "apply", "attach", "cancel", "close", "create", "delete", "dispatch", "export", "fetch",
    "open", "process", "publish", "refresh", "register", "remove", "resolve", "send", "update",
)  # fmt: skip
ADJECTIVES = (
    "active", "archived", "cached", "closed", "dirty", "enabled", "expired", "hidden", "locked",
    "pending", "primary", "public", "ready", "remote", "shared", "stale", "valid", "visible",
)  # fmt: skip
AREAS = (
    "api", "backend", "billing", "common", "core", "dashboard", "gui", "internal", "network",
    "portal", "runtime", "server", "shop", "storage", "tools", "views", "web", "workers",
)  # fmt: skip
FIELDS = (
    "address", "color", "count", "created", "description", "enabled", "height", "host", "label",
    "limit", "name", "owner", "parent", "port", "priority", "size", "status", "title", "width",
)  # fmt: skip
LIBRARIES = (
    "import json", "import logging", "import os", "import requests", "import yaml",
    "from django.conf import settings", "from flask import request", "import tkinter as tk",
    "from sqlalchemy import Column, Integer, String", "import boto3", "from PyQt5 import QtWidgets",
)  # fmt: skip
PLAIN_LIBRARIES = (
    "import math", "import random", "import itertools", "import sys", "import os",
    "from collections import Counter", "from typing import List", "import re",
)  # fmt: skip


def _title(word: str) -> str:
    return word.capitalize()


def _pick(rng: Random, words: Sequence[str], count: int) -> list[str]:
    return rng.sample(words, count)


def _header(rng: Random, what: str) -> list[str]:
    style = rng.randrange(4)
    if style == 0:
        return [f'"""{what}."""', ""]
    if style == 1:
        return [f"# {what}", ""]
    if style == 2:
        return ["#!/usr/bin/env python", "# -*- coding: utf-8 -*-", f"# {what}", ""]
    return []


def _dependent(rng: Random) -> list[str]:
    noun, other, area = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(AREAS)
    verbs, helper = _pick(rng, VERBS, rng.randint(2, 5)), f"{rng.choice(VERBS)}_{other}"
    base = rng.choice(("Base", "Abstract", "Default", "Remote"))
    lines = _header(rng, f"{_title(noun)} service of the {area} module")
    lines += _pick(rng, LIBRARIES, rng.randint(0, 2))
    lines += [
        f"from .{noun}s import {_title(noun)}, {_title(noun)}Error",
        f"from ..{area}.{other} import {helper}",
        f"from {area}.base import {base}Service",
        "",
        "",
        f"class {_title(noun)}Service({base}Service):",
        f'    """Serves {noun}s to the {area}."""',
    ]
    for verb in verbs:
        field, state = rng.choice(FIELDS), rng.choice(ADJECTIVES)
        lines += ["", f"    def {verb}_{noun}(self, {noun}_id, **options):"]
        if rng.random() < 0.5:
            lines.append(f'        """{_title(verb)} the {noun} and return its {field}."""')
        lines.append(f"        {noun} = self.repository.get({noun}_id)")
        if rng.random() < 0.6:
            lines += [
                f"        if not {noun}.is_{state}():",
                f'            raise {_title(noun)}Error("{noun} is not {state}")',
            ]
        if rng.random() < 0.5:
            lines.append(f'        self.logger.info("{verb} %s", {noun}.{field})')
        lines.append(
            rng.choice(
                (
                    f"        return {helper}({noun}, **options)",
                    f"        return self.client.{verb}({noun}.{field}, options)",
                    f"        {helper}({noun}.{field})\n        return {noun}.{field}",
                )
            )
        )
    return lines


def _literal(rng: Random) -> str:
    return rng.choice(
        (
            str(rng.randint(0, 9999)),
            f"{rng.random() * 10:.2f}",
            f'"{rng.choice(NOUNS)}-{rng.choice(FIELDS)}"',
            f'"/{rng.choice(AREAS)}/{rng.choice(NOUNS)}s"',
            rng.choice(("True", "False", "None")),
            f'"#{rng.randrange(16**6):06x}"',
        )
    )


def _constants(rng: Random) -> list[str]:
    area = rng.choice(AREAS)
    lines = _header(rng, f"Settings and defaults of the {area}")
    lines += _pick(rng, LIBRARIES, rng.randint(0, 1))
    for _ in range(rng.randint(6, 16)):
        name = f"{rng.choice(NOUNS)}_{rng.choice(FIELDS)}".upper()
        style = rng.randrange(4)
        if style == 0:
            lines += ["", f"{name}_MAP = {{"]
            lines += [
                f'    "{field}": {_literal(rng)},'
                for field in _pick(rng, FIELDS, rng.randint(3, 9))
            ]
            lines.append("}")
        elif style == 1:
            values = ", ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(4, 14)))
            lines.append(f"{name}_CODES = [{values}]")
        else:
            lines.append(f"{name} = {_literal(rng)}")
    return lines


def _window(rng: Random) -> list[str]:
    noun = rng.choice(NOUNS)
    lines = [*_header(rng, f"{_title(noun)} window"), "import tkinter as tk", "", ""]
    lines += [
        f"class {_title(noun)}Window(tk.Frame):",
        "    def __init__(self, master=None):",
        "        super().__init__(master)",
        f'        self.master.title("{_title(noun)}")',
    ]
    for field in _pick(rng, FIELDS, rng.randint(3, 8)):
        row, column = rng.randint(0, 12), rng.randint(0, 3)
        lines += [
            f"        self.{field} = tk.Entry(self, width={rng.randint(8, 60)}, "
            f'bg="#{rng.randrange(16**6):06x}")',
            f"        self.{field}.grid(row={row}, column={column}, padx={rng.randint(0, 9)})",
        ]
    return lines


def _getters(rng: Random) -> list[str]:
    noun = rng.choice(NOUNS)
    fields = _pick(rng, FIELDS, rng.randint(3, 8))
    lines = [*_header(rng, f"{_title(noun)} model"), f"class {_title(noun)}:"]
    lines += [f'    """A {noun} with its {fields[0]} and {fields[1]}."""', ""]
    lines.append(f"    def __init__(self, {', '.join(fields)}):")
    lines += [f"        self._{field} = {field}" for field in fields]
    for field in fields:
        lines += ["", f"    def get_{field}(self):"]
        if rng.random() < 0.4:
            lines.append(f'        """Return the {field} of the {noun}."""')
        lines.append(f"        return self._{field}")
        if rng.random() < 0.5:
            lines += ["", f"    def set_{field}(self, value):", f"        self._{field} = value"]
    return lines


def _buried(rng: Random, make: Callable[[], Sample]) -> list[str]:
    """A computation of the grammar inside a method that does three other things."""
    noun, area, state = rng.choice(NOUNS), rng.choice(AREAS), rng.choice(ADJECTIVES)
    made = make()
    lines = [
        *_header(rng, f"{_title(noun)} handler"),
        *_pick(rng, LIBRARIES, 2),
        "",
        "",
        f"class {_title(noun)}Handler:",
        f"    def {rng.choice(VERBS)}(self, context, flags=None):",
        f"        self.context = context.{rng.choice(AREAS)}",
        f'        logger.debug("{noun} %s", flags)',
    ]
    lines += [
        f"        {parameter} = self.{rng.choice(NOUNS)}.{rng.choice(FIELDS)}"
        for parameter, _ in made.draft.parameters
    ]
    lines += [f"        if self.{area}.is_{state}:", "            self.reset()"]
    for line in made.draft.body:
        text = line.replace("{name}", f"self.{rng.choice(VERBS)}")
        text = text.replace("return ", f"self.{rng.choice(FIELDS)} = ") if line[0] != " " else text
        lines.append("        " + text)
    lines.append(f"        self.notify(context, {_literal(rng)})")
    return lines


def _skewed(rng: Random) -> list[str]:
    noun = rng.choice(NOUNS)
    style = rng.randrange(3)
    if style == 0:
        lines = ["import argparse", "", "", "def main():"]
        lines += [f'    """Command line of {noun}."""'] if rng.random() < 0.6 else []
        lines.append("    parser = argparse.ArgumentParser()")
        for field in _pick(rng, FIELDS, rng.randint(3, 9)):
            lines.append(
                f'    parser.add_argument("--{field}", default={_literal(rng)}, '
                f'help="{field} of the {noun}")'
            )
        return [*lines, "    return parser.parse_args()", "", "", "main()"]
    if style == 1:
        lines = ["import unittest", f"from {rng.choice(AREAS)} import {noun}", "", ""]
        lines.append(f"class Test{_title(noun)}(unittest.TestCase):")
        for verb in _pick(rng, VERBS, rng.randint(3, 8)):
            lines += [
                f"    def test_{verb}(self):",
                f'        """{_title(verb)} works."""',
                f"        result = {noun}.{verb}({_literal(rng)})",
                f"        self.assertEqual(result.{rng.choice(FIELDS)}, {_literal(rng)})",
                "",
            ]
        return lines
    lines = [
        "from django.db import migrations, models",
        "",
        "",
        "class Migration(migrations.Migration):",
    ]
    lines.append(f'    dependencies = [("{rng.choice(AREAS)}", "{rng.randint(1, 99):04d}_auto")]')
    lines.append("    operations = [")
    for field in _pick(rng, FIELDS, rng.randint(3, 8)):
        lines += [
            "        migrations.AddField(",
            f'            model_name="{noun}",',
            f'            name="{field}",',
            f"            field=models.CharField(max_length={rng.randint(8, 255)}),",
            "        ),",
        ]
    return [*lines, "    ]"]


def _useful(rng: Random, make: Callable[[], Sample]) -> tuple[list[str], list[str]]:
    samples: list[Sample] = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        made = make()
        if made.name not in {other.name for other in samples}:
            samples.append(made)
    bare = rng.random() < 0.15
    lines = _header(rng, f"Helpers for {rng.choice(NOUNS)}s") if rng.random() < 0.4 else []
    lines += _pick(rng, PLAIN_LIBRARIES, rng.choice((0, 0, 1, 2)))
    lines += ["", ""] if lines else []
    for made in samples:
        lines += [made.prompt.split("\n", 1)[0]] if bare else [made.prompt.rstrip("\n")]
        lines += [made.solution.rstrip("\n"), "", ""]
    if rng.random() < 0.2:
        first = samples[0]
        call = f"{first.name}({', '.join(map(repr, first.calls[3]))})"
        lines += ['if __name__ == "__main__":', f"    print({call})"]
    return lines, [made.signature for made in samples]


def _copied(rng: Random, text: str) -> str:
    """A file as another repository holds it: a notice on top, perhaps a line at the end."""
    team = f"{rng.choice(AREAS)} {rng.choice(NOUNS)}"
    text = f"# Copyright {rng.randint(2001, 2023)} the {team} team\n{text}"
    if rng.random() < 0.5:
        text += f"\n__version__ = {_literal(rng)}\n"
    return text


def _rows(seed: int, levels: tuple[int, ...], useful: float, copies: float) -> Iterator[Row]:
    recent: deque[Row] = deque(maxlen=1_000)
    for slot in itertools.count():
        rng = Random(f"pool/{seed}/{slot}")
        path = f"{rng.choice(AREAS)}/{rng.choice(NOUNS)}_{rng.choice(FIELDS)}_{slot}.py"
        if recent and rng.random() < copies:
            original = rng.choice(recent)
            text = _copied(rng, original["text"])
            yield {
                **original,
                "text": text,
                "path": path,
                "copy_of": original["path"],
                "slot": slot,
            }
            continue
        places = itertools.count(slot * 64)

        def make(rng: Random = rng, places: Iterator[int] = places) -> Sample:
            return sample(seed=seed ^ _SALT, index=next(places), level=rng.choice(levels))

        signatures: list[str] = []
        kind = "useful" if rng.random() < useful else rng.choice(FAULTS)
        if kind == "useful":
            lines, signatures = _useful(rng, make)
        elif kind == "dependent":
            lines = _dependent(rng)
        elif kind == "constants":
            lines = rng.choice((_constants, _window))(rng)
        elif kind == "glue":
            lines = _buried(rng, make) if rng.random() < 0.3 else _getters(rng)
        else:
            lines = _skewed(rng)
        row: Row = {
            "text": "\n".join(lines).rstrip("\n") + "\n",
            "path": path,
            "copy_of": None,
            "kind": kind,
            "signatures": "\n".join(signatures),
            "source": "procedural pool",
            "slot": slot,
            "seed": seed,
        }
        recent.append(row)
        yield row


def pool(
    out: StrPath,
    *,
    count: int | None = None,
    characters: int | None = None,
    levels: Sequence[int] = LEVELS,
    useful: float = 0.08,
    copies: float = 0.05,
    seed: int = 0,
) -> Report:
    """Writes a raw pool of repository-like Python files.

    Args:
        out: The stage's folder.
        count: How many files to write; or
        characters: how many characters at least.
        levels: Levels of the useful functions.
        useful: Share of files that hold useful functions.
        copies: Share of files that repeat an earlier one with a few lines added, for deduplication
            to find; `copy_of` names the original.
        seed: Decides every byte.

    Returns:
        The manifest; `details.kinds` counts files by kind, `details.kinds_characters` their sizes.

    Raises:
        ConfigError: If not exactly one of `count` and `characters` is given, or it is not
            positive, or `useful` or `copies` is not a share.
    """
    chosen = check_levels(levels)
    check_share("useful", useful)
    check_share("copies", copies)
    return run(
        "pool",
        out,
        rows=lambda: _rows(seed, chosen, useful, copies),
        schema={
            "path": "string",
            "copy_of": "string",
            "kind": "string",
            "signatures": "string",
            "source": "string",
            "slot": "int64",
            "seed": "int64",
        },
        config={
            "count": count,
            "characters": characters,
            "levels": chosen,
            "useful": useful,
            "copies": copies,
            "seed": seed,
        },
        group=lambda row: str(row["kind"]),
        groups="kinds",
    )
