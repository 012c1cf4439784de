"""Commands that turn documents into tokens, and look at them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from hornbook import progress
from hornbook.commands.shared import DATA, Json, Out, app, printable, read_stdin, show, summary

tokenizer_app = App(name="tokenizer", group=DATA, help="Train and use byte-level BPE tokenizers.")
pack_app = App(name="pack", group=DATA, help="Tokenize documents; look into packed files.")
app.command(tokenizer_app)
app.command(pack_app)


@tokenizer_app.command(name="train")
def tokenizer_train(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    vocab_size: int = 4096,
    characters: int = 50_000_000,
    as_json: Json = False,
) -> None:
    """Learn a byte-level BPE vocabulary; writes tokenizer.json.

    Examples:
        hornbook tokenizer train clean/ --vocab-size 8192 --out tokenizer/
    """
    from hornbook.vocabulary import build

    with progress.shown():
        report = build(out, "train", inputs=inputs, vocab_size=vocab_size, characters=characters)
    summary(report, as_json)


def _tokenizer(name: str) -> Any:
    from hornbook.vocabulary import named

    return named(name)


@tokenizer_app.command(name="encode")
def tokenizer_encode(text: str = "-", *, tokenizer: str = "codegen", as_json: Json = False) -> None:
    """Print the token ids of a text (`-`: standard input).

    Examples:
        hornbook tokenizer encode "def f(x):" --tokenizer codegen
    """
    ids = _tokenizer(tokenizer).encode(read_stdin() if text == "-" else text).tolist()
    print(json.dumps(ids) if as_json else " ".join(map(str, ids)))


@tokenizer_app.command(name="decode")
def tokenizer_decode(
    ids: Annotated[list[int], Parameter(negative="")], *, tokenizer: str = "codegen"
) -> None:
    """Print the text of token ids.

    Examples:
        hornbook tokenizer decode 4299 277 7 --tokenizer codegen
    """
    tok = _tokenizer(tokenizer)
    print(tok.decode(ids))
    outside = sorted({number for number in ids if not 0 <= number < tok.vocab_size})
    if outside:
        print(
            f"warning: {', '.join(map(str, outside))}: outside the vocabulary of "
            f"{tok.vocab_size:,}, and no text",
            file=sys.stderr,
        )


@tokenizer_app.command(name="info")
def tokenizer_info(tokenizer: str = "codegen", *, as_json: Json = False) -> None:
    """Say what a tokenizer is: codegen, gpt2, or a tokenizer.json.

    Examples:
        hornbook tokenizer info runs/demo/tokenizer/tokenizer.json
    """
    from hornbook.manifest import Report

    tok = _tokenizer(tokenizer)
    info = {"vocab_size": tok.vocab_size, "eot_id": tok._core.eot_id, "hash": tok.tokenizer_hash}
    show(Report(info), as_json)


@pack_app.default
def pack(
    inputs: Annotated[list[Path], Parameter(negative="")],
    *,
    out: Out,
    tokenizer: str = "codegen",
    dtype: Literal["uint16", "uint32"] | None = None,
    threads: int | None = None,
    as_json: Json = False,
) -> None:
    """Tokenize documents into packed files that Megatron-LM, nanotron and memmaps read too.

    Interrupted, it goes on after the last finished part when it is run again.

    Parameters
    ----------
    tokenizer
        codegen, gpt2, or a tokenizer.json.
    dtype
        How ids are stored; by default the smaller one that holds the vocabulary.
    threads
        How many encode; by default one a core. Has no effect on the output.

    Examples:
        hornbook pack clean/ --tokenizer codegen --out packed/
    """
    from hornbook.packing import pack as run_pack

    with progress.shown():
        report = run_pack(
            inputs, out, tokenizer=_tokenizer(tokenizer), dtype=dtype, threads=threads
        )
    summary(report, as_json)


@pack_app.command(name="info")
def pack_info(folder: str, *, as_json: Json = False) -> None:
    """Say what a packed folder (or its URL) holds: counts, tokenizer, types, sources.

    Examples:
        hornbook pack info packed/
    """
    from hornbook.packed_stats import info

    show(info(folder), as_json)


@pack_app.command(name="stats")
def pack_stats(
    folders: Annotated[list[str], Parameter(negative="")],
    *,
    sequence_length: int = 2048,
    as_json: Json = False,
) -> None:
    """Measure packed folders: lengths, tokens by source, padding and torn documents.

    Examples:
        hornbook pack stats packed/ --sequence-length 2048
    """
    from hornbook.packed_stats import stats

    with progress.shown():
        report = stats(folders, sequence_length=sequence_length)
    show(report, as_json)


@pack_app.command(name="peek")
def pack_peek(
    folders: Annotated[list[str], Parameter(negative="")],
    *,
    samples: int = 3,
    first: int = 0,
    sequence_length: int = 2048,
    method: Literal["concat", "best_fit"] = "concat",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Print samples as training sees them, decoded, one document's stretch after another.

    Parameters
    ----------
    first
        The first sample's number in the order that the seed makes.

    Examples:
        hornbook pack peek packed/ --samples 2 --method best_fit
    """
    from hornbook.packed_stats import peek

    texts = peek(
        folders,
        samples=samples,
        first=first,
        sequence_length=sequence_length,
        method=method,
        seed=seed,
    )
    if as_json:
        print(json.dumps(texts, ensure_ascii=False))
        return
    for number, stretches in enumerate(texts, first):
        for place, text in enumerate(stretches, 1):
            print(f"--- sample {number}, stretch {place} of {len(stretches)}")
            print(printable(text))
