"""Writes docs/commands.md from the command line's own help: `make docs`."""

from pathlib import Path

from hornbook.cli import app

TARGET = Path(__file__).parent / "commands.md"

if __name__ == "__main__":
    TARGET.write_text(app.generate_docs() + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")
