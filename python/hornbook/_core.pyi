"""The Rust core. Every function releases the GIL; errors are those of `hornbook.errors`."""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any, final

__version__: str

# corpus

@final
class Reader:
    def __new__(cls, paths: list[PathLike[str]], extensions: list[str]) -> Reader: ...
    @property
    def schema(self) -> list[tuple[str, str]]: ...
    @property
    def rejected(self) -> list[tuple[str, int, str]]: ...
    def __iter__(self) -> Iterator[dict[str, list[Any]]]: ...
    def __next__(self) -> dict[str, list[Any]]: ...

@final
class Writer:
    def __new__(cls, folder: PathLike[str], schema: list[tuple[str, str]]) -> Writer: ...
    def write(self, columns: dict[str, list[Any]]) -> None: ...
    def finish(self) -> list[dict[str, Any]]: ...

def hash_file(path: PathLike[str]) -> str: ...
def hash_bytes(data: bytes) -> str: ...

# dedup, decontaminate

def dedup_corpus(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    out: PathLike[str],
    near: tuple[float, int, bool, int, int, int] | None,
    threads: int | None,
) -> dict[str, Any]: ...
def decontaminate_corpus(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    out: PathLike[str],
    items: list[tuple[str, list[str], str, str | None]],
    rules: tuple[int, float | None, int, list[str]],
    threads: int | None,
) -> dict[str, Any]: ...
def benchmark_similarity(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    items: list[tuple[str, list[str], str, str | None]],
    threads: int | None,
) -> list[tuple[str, float, str | None, int]]: ...
def ast_match(a: str, b: str) -> float: ...

# quality, diversity

# tokens
