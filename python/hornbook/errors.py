"""The one exception family. Every message says what was wrong, where, and what to do about it."""


class HornbookError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(HornbookError):
    """A file or row that cannot be used: missing, torn, empty, or not what it should be."""

    exit_code = 2


class ConfigError(HornbookError):
    """An option, recipe key or argument that makes no sense."""

    exit_code = 2


class StorageError(HornbookError):
    """The disk said no: full, read-only, or failing."""


class ResumeError(HornbookError):
    """Output that belongs to something else, or does not fit what would be resumed."""


class BudgetError(HornbookError):
    """A stated limit of money, tokens or time was reached; what was made so far is kept."""

    exit_code = 3


class SandboxError(HornbookError):
    """Model-written code cannot be run safely here."""


class MissingExtraError(HornbookError):
    """An optional dependency is not installed."""

    exit_code = 2


def need(module: str, extra: str) -> None:
    """Checks that an optional dependency is installed.

    Args:
        module: The module about to be imported.
        extra: The extra of this package that brings it.

    Raises:
        MissingExtraError: If it is not there; the message holds the pip command.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingExtraError(
            f"this needs the package `{module}`: pip install 'hornbook[{extra}]'"
        )
