"""The command line: one command for each function, with the same option names.

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 stopped early with resumable output.
"""

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hornbook.errors import HornbookError

if TYPE_CHECKING:
    from cyclopts import App

    app: App


def load() -> "App":
    """The command line with all its commands, each with its examples in the help.

    Not at the top of the module: a Ctrl-C while these load must end as any other does.
    """
    from hornbook.commands import (  # noqa: F401 (registers the commands)
        clean,
        evaluate,
        generate,
        label,
        results,
        runs,
        tokens,
    )
    from hornbook.commands.shared import app, show_examples

    show_examples(app)
    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; errors become one line on standard error and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A terminal that cannot show a character shows its number.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        load()(stdin_last(sys.argv[1:] if argv is None else argv))
    except HornbookError as error:
        _tell(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; what is done is kept, the same command goes on", file=sys.stderr)
        sys.exit(3)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(f"{where}{error.strerror or error}")
        sys.exit(1)


def stdin_last(argv: Sequence[str]) -> list[str]:
    """The arguments with each `-` (standard input) behind `--`: cyclopts takes it for an option.

    Examples:
        >>> stdin_last(["sample", "-", "--model", "m"])
        ['sample', '--model', 'm', '--', '-']
    """
    end = argv.index("--") if "--" in argv else len(argv)
    named = [argument for argument in argv[:end] if argument != "-"]
    if len(named) == end:
        return list(argv)
    return [*named, "--", *["-"] * (end - len(named)), *argv[end + 1 :]]


def _tell(message: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    from hornbook.commands.shared import printable

    errors = Console(stderr=True, soft_wrap=True)
    errors.print(f"[bold red]error:[/] {escape(printable(message))}", highlight=False)


if __name__ == "__main__":
    main()
