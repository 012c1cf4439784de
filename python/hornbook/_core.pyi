"""The Rust core. Every function releases the GIL; errors are those of `hornbook.errors`."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from numpy import float32, float64, int64, uint64
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

def parquet_rows(path: PathLike[str]) -> int: ...
def hash_file(path: PathLike[str]) -> str: ...
def hash_bytes(data: bytes) -> str: ...

# dedup, decontaminate

def dedup_corpus(
    job: dict[str, Any],
    threads: int | None,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Any]: ...
def dedup_index_lists(folder: PathLike[str], segment: str) -> bool: ...
def dedup_substring(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    out: PathLike[str],
    length: int,
    threads: int | None,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Any]: ...

NGRAM_TOKEN_RULE: str

_Reading = tuple[bool, bool, bool, bool, bool]

@final
class NgramSet:
    def __new__(
        cls,
        n: int,
        texts: list[tuple[int, int, str]],
        hashed: list[tuple[str, str, int, list[tuple[int, int]]]],
        short: bool,
        trivial: bool,
        ignore: list[str],
    ) -> NgramSet: ...
    def __len__(self) -> int: ...
    def grams(self) -> list[tuple[str, str, int, list[tuple[int, int]]]]: ...
    def of_items(self, count: int) -> list[int]: ...
    def scan(self, texts: list[str], threads: int | None) -> list[list[dict[str, Any]]]: ...
    def scan_files(
        self,
        paths: Sequence[PathLike[str]],
        extensions: list[str],
        names: list[str],
        most: int,
        threads: int | None,
        tick: Callable[[int, int], None] | None,
    ) -> dict[str, Any]: ...

@final
class PreparedFunctions:
    def __len__(self) -> int: ...

@final
class SyntaxIndex:
    def __new__(
        cls, items: list[tuple[str, str, str | None]], reading: _Reading, min_nodes: int
    ) -> SyntaxIndex: ...
    def nodes(self) -> list[int]: ...
    def functions(self, texts: list[str], threads: int | None) -> PreparedFunctions: ...
    def matches(
        self, functions: PreparedFunctions, floor: float, threads: int | None
    ) -> list[tuple[int, int, float, str, int]]: ...

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
    out: PathLike[str] | None,
    items: list[tuple[str, str, str | None]],
    grams: NgramSet,
    syntax: tuple[float | None, _Reading, int, list[float], int] | None,
    embedding: tuple[float, int] | None,
    both: bool,
    embed: Callable[[list[str]], NDArray[float32]] | None,
    tick: Callable[[int, int], None] | None,
    threads: int | None,
) -> dict[str, Any]: ...
def ast_match(a: str, b: str, reading: _Reading) -> float: ...
def syntax_symbols(
    source: str, reading: _Reading
) -> tuple[list[int], list[tuple[str, int, int, int]]]: ...

# quality, diversity

RATIO_NAMES: list[str]
DIVERSITY_METRICS: list[str]

def embed(texts: list[str], dimensions: int) -> NDArray[float32]: ...
def hashed(texts: list[str], dimensions: int) -> NDArray[float32]: ...
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
        settings: str,
    ) -> Forest: ...
    @staticmethod
    def load(path: PathLike[str]) -> Forest: ...
    def save(self, path: PathLike[str]) -> dict[str, Any]: ...
    def with_threshold(self, threshold: float) -> Forest: ...
    @property
    def header(self) -> dict[str, Any]: ...
    def asked(self, row: NDArray[float32]) -> list[int]: ...
    def score(self, features: NDArray[float32], parallel: bool = True) -> NDArray[float64]: ...

SCORE_BINS: Final[int]

def token_slots(text: str, dimensions: int) -> list[tuple[str, int]]: ...

@final
class Units:
    def __new__(
        cls, paths: Sequence[PathLike[str]], extensions: list[str], bytes: int
    ) -> Units: ...
    def __len__(self) -> int: ...
    def read(self, unit: int) -> Reader: ...
    def excerpts(self, unit: int, rows: list[int], longest: int) -> list[tuple[int, str]]: ...
    def filter(
        self,
        unit: int,
        out: PathLike[str],
        forest: Forest | None,
        scores: NDArray[float64] | None,
        rule: tuple[float, dict[str, float]] | None,
        parallel: bool,
    ) -> tuple[int, int, list[dict[str, Any]]]: ...

_Examples = list[tuple[float, int, int, str]]

def tally(
    paths: Sequence[PathLike[str]], examples: int
) -> tuple[
    dict[str, tuple[NDArray[uint64], NDArray[uint64], NDArray[float64]]],
    dict[str, dict[str, list[int]]],
    _Examples,
    _Examples,
    tuple[NDArray[float64], NDArray[float64], NDArray[float32]],
]: ...
def diversity_json(
    paths: Sequence[PathLike[str]],
    extensions: list[str],
    metrics: list[str],
    top: int,
    progress: Callable[[str, int, int | None], None],
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
        self, texts: Any, tokens: bool, threads: int | None, replace: bool
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

@final
class SandboxPool:
    def __new__(cls) -> SandboxPool: ...
    def run(
        self,
        jobs: list[tuple[bytes, bytes | None, bool]],
        argv: list[str],
        *,
        cpu_s: float,
        wall_s: float,
        workers: int,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[tuple[str, bool, float, float, int, int | None, bytes]]: ...
