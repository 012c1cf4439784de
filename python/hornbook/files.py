"""Files written whole or not at all, JSON that is read strictly, hashes of values, and locks."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from hornbook import _core
from hornbook.errors import InputError, ResumeError, StorageError

StrPath = str | os.PathLike[str]


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, syncs it and renames it.

    What has no UTF-8 form, as in names of files, is escaped as in JSON.

    Raises:
        StorageError: If it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        remedy: What to do about a torn one, for the error.

    Raises:
        InputError: If the file is missing, torn, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        what = f"not readable JSON ({error})"
        raise InputError(f"{path}: {what}{remedy and f'; {remedy}'}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object")
    return data


def json_lines(text: str, *, torn: bool = False) -> Iterator[Any]:
    """The values of JSON lines, empty ones left out, and if they may be `torn` by a crash those too
    that are not JSON.

    JSON may hold U+2028 and other ends of lines by Unicode as they are, which `str.splitlines`
    takes for ends too.

    Raises:
        ValueError: At a line that is not JSON, unless they may be torn.
    """
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                if not torn:
                    raise


def hash_json(value: Any) -> str:
    """xxh3-128 of a value's canonical JSON."""
    # Names of files need not be UTF-8.
    return _core.hash_bytes(_CANONICAL.encode(value).encode(errors="surrogatepass"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def as_json(value: Any) -> Any:
    """What JSON makes of a value: tuples become lists, dataclasses objects."""
    return json.loads(json.dumps(value, default=_plain))


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=_plain)


@contextmanager
def locked(lock: Path, folder: Path) -> Iterator[None]:
    """Keeps other processes off a folder, where the system has `flock`; `lock` is there meanwhile.

    Raises:
        ResumeError: If another holds it.
        StorageError: If the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    while True:
        try:
            file = lock.open("a")
        except OSError as error:
            raise StorageError(f"{lock}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ResumeError(f"{folder}: another run is at work in this folder") from error
        except OSError:
            # Some network file systems have no locks.
            pass
        # Its last holder may have removed it since: then this one keeps nobody off.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()
