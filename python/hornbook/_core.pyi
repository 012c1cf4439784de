"""The Rust core. Every function releases the GIL; errors are those of `hornbook.errors`."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
import numpy.typing as npt
from numpy import float32, float64, int64
from numpy.typing import NDArray

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
    job: dict[str, Any],
    threads: int | None,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Any]: ...
def dedup_substring(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    out: PathLike[str],
    length: int,
    threads: int | None,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Any]: ...
def band_recall(jaccard: float, bands: int, rows: int) -> float: ...
def choose_bands(jaccard: float, recall: float, most: int) -> tuple[int, int] | None: ...
def signatures(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.uint32]: ...
def dedup_sign(
    batch: Any, ngram: int, bands: int, rows: int, seed: int, normalize: bool
) -> Any: ...
def dedup_candidate_pairs(
    keys: NDArray[np.uint64], documents: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...
def dedup_verify(
    grams: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    threshold: float,
) -> NDArray[np.float64]: ...
def dedup_choose(edges: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]: ...
def dedup_components(edges: list[tuple[int, int, float]]) -> list[list[int]]: ...
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

RATIO_NAMES: list[str]
DIVERSITY_METRICS: list[str]

def embed(texts: list[str], dimensions: int) -> NDArray[float32]: ...
def embedder_id(dimensions: int) -> str: ...

@final
class Forest:
    @staticmethod
    def from_trees(
        sizes: list[int],
        left: NDArray[int64],
        right: NDArray[int64],
        feature: NDArray[int64],
        threshold: NDArray[float64],
        value: NDArray[float64],
        embedder: str,
        dimensions: int,
        features: int,
        kind: str,
        cut: float,
        training: str,
    ) -> Forest: ...
    @staticmethod
    def load(path: PathLike[str]) -> Forest: ...
    def save(self, path: PathLike[str]) -> dict[str, Any]: ...
    def with_threshold(self, threshold: float) -> Forest: ...
    @property
    def header(self) -> dict[str, Any]: ...
    def score(self, features: NDArray[float32]) -> NDArray[float64]: ...

def score_corpus(
    paths: Sequence[PathLike[str]], extensions: list[str], forest: Forest
) -> tuple[NDArray[float64], NDArray[int64], NDArray[float32]]: ...
def write_scored(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    out: PathLike[str],
    scores: NDArray[float64],
    threshold: float,
) -> tuple[list[dict[str, Any]], int, int]: ...
def diversity_json(
    paths: Sequence[PathLike[str]], extensions: list[str], metrics: list[str], top: int
) -> str: ...
def signature(text: str) -> str: ...

# tokens

_Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

@final
class Tokenizer:
    @staticmethod
    def from_file(path: PathLike[str]) -> Tokenizer: ...
    @staticmethod
    def from_json(text: str) -> Tokenizer: ...
    @staticmethod
    def gpt2() -> Tokenizer: ...
    @staticmethod
    def codegen() -> Tokenizer: ...
    def to_json(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def instructions(self) -> str: ...
    @property
    def eot_id(self) -> int | None: ...
    @property
    def hash(self) -> str: ...
    @property
    def added_tokens(self) -> list[tuple[str, int, bool]]: ...
    def encode(self, text: str, tokens: bool) -> _Ids: ...
    def encode_batch(
        self, texts: list[str], tokens: bool, threads: int | None
    ) -> tuple[_Ids, npt.NDArray[np.int64]]: ...
    def encode_arrow(
        self, texts: Any, tokens: bool, threads: int | None
    ) -> tuple[_Ids, npt.NDArray[np.int64]]: ...
    def count(self, text: str, tokens: bool) -> int: ...
    def decode(self, ids: npt.NDArray[np.uint32]) -> bytes: ...

@final
class Trainer:
    def __new__(cls) -> Trainer: ...
    def feed(self, texts: list[str]) -> None: ...
    def finish(self, vocab_size: int, special_tokens: list[str]) -> Tokenizer: ...

@final
class DocumentPacker:
    def __new__(
        cls,
        inputs: Sequence[PathLike[str]],
        extensions: list[str],
        out: PathLike[str],
        tokenizer: Tokenizer,
        *,
        dtype: str,
        part_bytes: int,
        threads: int | None,
    ) -> DocumentPacker: ...
    def step(self) -> bool: ...
    @property
    def progress(self) -> tuple[int, int, int]: ...
    def finish(self) -> dict[str, Any]: ...

@final
class TokenPacker:
    def __new__(
        cls,
        out: PathLike[str],
        tokenizer: Tokenizer,
        *,
        dtype: str,
        part_bytes: int,
        prompts: bool,
    ) -> TokenPacker: ...
    @property
    def finished(self) -> tuple[int, int]: ...
    def write(
        self,
        ids: _Ids,
        offsets: npt.NDArray[np.int64],
        prompts: npt.NDArray[np.uint32] | None,
    ) -> None: ...
    def finish(self) -> dict[str, Any]: ...

_Part = tuple[PathLike[str], PathLike[str], PathLike[str] | None, PathLike[str], str, int, int, str]

@final
class PackedFiles:
    def __new__(
        cls,
        sources: list[tuple[list[_Part], str, PathLike[str], int]],
        *,
        length: int,
        best_fit: bool,
        seed: int,
        eot_id: int,
    ) -> PackedFiles: ...
    @property
    def samples_per_epoch(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    def counts(self, number: int) -> list[tuple[int, int]]: ...
    def fill(
        self,
        first: int,
        count: int,
        inputs: npt.NDArray[Any],
        labels: npt.NDArray[Any] | None,
        positions: npt.NDArray[Any] | None,
        prompts: npt.NDArray[np.bool_] | None,
        threads: int,
    ) -> npt.NDArray[np.int32]: ...

def sandbox_describe(argv: list[str]) -> bytes: ...
def sandbox_run(
    jobs: list[tuple[bytes, bytes | None]],
    argv: list[str],
    *,
    cpu_s: float,
    wall_s: float,
    workers: int,
    progress: Callable[[int, int], object] | None = None,
) -> list[tuple[str, bool, float, float, int, int | None, bytes]]: ...
