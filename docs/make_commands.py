"""Writes docs/commands.md from the command line's own help: `make docs`."""

import re
from pathlib import Path

from hornbook.cli import load
from hornbook.commands.shared import commands_of, examples_of

TARGET = Path(__file__).parent / "commands.md"


def page() -> str:
    """The page: what cyclopts says of each command, and then its examples, which it leaves out."""
    app = load()
    examples = {
        " ".join(("hornbook", *path)): found
        for path, command in commands_of(app)
        if (found := examples_of(command.default_command))
    }
    sections = re.split(r"^(?=#+ )", app.generate_docs(), flags=re.MULTILINE)
    for number, section in enumerate(sections):
        title = section.partition("\n")[0].lstrip("# ")
        if title in examples:
            told = examples.pop(title)
            sections[number] = f"{section.rstrip()}\n\n**Examples**:\n\n```sh\n{told}\n```\n\n"
    assert not examples, f"no section for {', '.join(examples)}"
    return "".join(sections).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")
