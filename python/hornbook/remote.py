"""Packed folders that lie somewhere else: copied into a cache, checked, once for a machine.

Any file system that fsspec knows (`s3://`, `gs://`, `hf://`, `https://`, ...). Only what reading
needs is copied. A copy is as good as the original: each file is compared with the manifest's hash
before it gets its name, and one that is whole is not fetched again.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hornbook import _core, progress
from hornbook.errors import ConfigError, InputError, StorageError, need
from hornbook.files import StrPath, hash_json, write_text
from hornbook.manifest import MANIFEST

_NOT_READ = (".idx",)
"""Files for other tools."""


def is_remote(place: StrPath) -> bool:
    """Whether this is a URL, not a path."""
    return "://" in os.fspath(place)


def local_copy(url: str, cache: StrPath | None = None) -> Path:
    """A local folder with the parts and the manifest of a remote one.

    Args:
        url: The folder.
        cache: Where copies are kept; by default `HORNBOOK_CACHE`, else `~/.cache/hornbook`.

    Raises:
        MissingExtraError: If fsspec is not installed.
        ConfigError: If what it needs for this kind of URL is not.
        InputError: If there is no manifest, or a file is not what the manifest says.
        StorageError: If fetching fails.
    """
    need("fsspec", "remote")
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {error}") from error
    try:
        text = files.cat_file(f"{root}/{MANIFEST}").decode()
        manifest = json.loads(text)
        parts = [part for part in manifest["parts"] if not part["name"].endswith(_NOT_READ)]
        identity = hash_json([url, manifest["key"], parts])
        wanted = [(str(part["name"]), str(part["xxh3"])) for part in parts]
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: has no {MANIFEST}, so it is not a finished packed stage"
        ) from error
    except OSError as error:
        raise StorageError(f"{url}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{url}/{MANIFEST}: not a manifest of packed tokens ({error!r})"
        ) from error
    base = Path(cache or os.environ.get("HORNBOOK_CACHE") or Path.home() / ".cache" / "hornbook")
    folder = base / "packed" / identity
    if (folder / MANIFEST).is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "lock"):
            for name, xxh3 in progress.track(wanted, f"fetching {url}", len(wanted)):
                _fetch(files, root, name, xxh3, folder)
            write_text(folder / MANIFEST, text)
    except OSError as error:
        raise StorageError(f"{url}: {error}") from error
    return folder


def _fetch(files: Any, root: str, name: str, xxh3: str, folder: Path) -> None:
    if Path(name).name != name:
        raise InputError(f"{root}/{MANIFEST}: part `{name}` lies outside the folder")
    target = folder / name
    if target.is_file():
        return
    temporary = target.with_name(f"{name}.tmp")
    try:
        files.get_file(f"{root}/{name}", str(temporary))
    except FileNotFoundError as error:
        raise InputError(f"{root}/{name}: missing, though the manifest names it") from error
    if _core.hash_file(temporary) != xxh3:
        temporary.unlink()
        raise InputError(f"{root}/{name}: not what the manifest says (hash differs)")
    temporary.replace(target)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, where the system has `flock`; elsewhere each fetches for itself."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
