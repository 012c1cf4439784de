"""The command line: one command for each function, with the same option names.

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 stopped early with resumable output.
"""

import io
import sys

from rich.console import Console
from rich.markup import escape

from hornbook.commands import clean, evaluate, generate, label, results, runs, tokens
from hornbook.commands.shared import app, printable
from hornbook.errors import HornbookError

__all__ = ["app", "clean", "evaluate", "generate", "label", "main", "results", "runs", "tokens"]


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; errors become one line on standard error and an exit code."""
    errors = Console(stderr=True, soft_wrap=True)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A terminal that cannot show a character shows its number.
        sys.stdout.reconfigure(errors="backslashreplace")

    def tell(message: str) -> None:
        errors.print(f"[bold red]error:[/] {escape(printable(message))}", highlight=False)

    try:
        app(argv)
    except HornbookError as error:
        tell(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped; what is done is kept, the same command goes on", highlight=False)
        sys.exit(3)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{where}{error.strerror or error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
