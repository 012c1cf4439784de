"""A run's tokenizer: a built-in one, a file, or one learned from the run's own data, as a stage.

hornbook tokenizer train clean/ --vocab-size 8192 --out tokenizer/
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError
from hornbook.files import StrPath
from hornbook.manifest import Outcome, Report, file_part, run_stage
from hornbook.tokenizer import Tokenizer

BUILT_IN = ("codegen", "gpt2")


def named(name: StrPath) -> Tokenizer:
    """A tokenizer by name (`codegen`, `gpt2`) or by the path of its tokenizer.json.

    Raises:
        ConfigError: If it is neither.
        InputError: If the file is no byte-level BPE tokenizer.
    """
    if name == "codegen":
        return Tokenizer.codegen()
    if name == "gpt2":
        return Tokenizer.gpt2()
    path = Path(name)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"{name}: no tokenizer; name {', '.join(BUILT_IN)} or a tokenizer.json")
    return Tokenizer.from_file(path)


def build(
    out: StrPath,
    name: str,
    *,
    inputs: Sequence[StrPath] = (),
    vocab_size: int = 4096,
    characters: int = 50_000_000,
) -> Report:
    """Puts a run's tokenizer into a folder, as `tokenizer.json`.

    Args:
        out: The stage's folder.
        name: `train`, or what `named` takes.
        inputs: For `train`: what to learn from, in equal shares of `characters`.
        vocab_size: For `train`.
        characters: For `train`: about how much text to learn from.

    Raises:
        ConfigError: If `characters` is less than 1.
        InputError: If the inputs hold no text.
    """
    learn = name == "train"
    if characters < 1:
        raise ConfigError(f"characters: {characters} is less than 1")
    if learn:
        config = {"name": name, "vocab_size": vocab_size, "characters": characters}
    else:
        config = {"tokenizer": named(name).tokenizer_hash}

    def work(folder: Path) -> Outcome:
        if learn:
            texts = [t for path in inputs for t in sample(path, characters // len(inputs))]
            if not texts:
                raise InputError(f"{', '.join(map(str, inputs))}: no text to learn from")
            tokenizer = Tokenizer.train(texts, vocab_size=vocab_size)
        else:
            texts = []
            tokenizer = named(name)
        tokenizer.save(folder / "tokenizer.json")
        return Outcome(
            parts=[file_part(folder, "tokenizer.json")],
            rows_in=len(texts),
            kept=len(texts),
            details={"vocab_size": tokenizer.vocab_size, "hash": tokenizer.tokenizer_hash},
        )

    return run_stage("tokenizer", out, inputs=inputs if learn else [], config=config, work=work)


def sample(path: StrPath, characters: int) -> Iterator[str]:
    """About `characters` of a data set, spread over all of it by the hash of each document's id; at
    least one document where there is any."""
    total = sum(len(text) for batch in corpus.read([path]).batches() for text in batch["text"])
    share = min(1.0, characters / max(total, 1))
    first, none = "", True
    for row in corpus.read([path]):
        if int(_core.hash_bytes(row["id"].encode())[:8], 16) < share * 2**32:
            none = False
            yield row["text"]
        first = first or row["text"]
    if none and first:
        yield first
