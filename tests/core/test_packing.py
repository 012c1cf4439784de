"""Packing: what is written, by readers of other formats; what is read, by counting every token."""

import itertools
import json
import struct
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import verify
from hornbook.packed import PackedDataset
from hornbook.packed_stats import stats
from hornbook.packing import pack, pack_tokens
from hornbook.tokenizer import Tokenizer

IGNORED = -100


@cache
def codegen() -> Tokenizer:
    return Tokenizer.codegen()


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def letters() -> Tokenizer:
    """One token a byte: small, so that property tests are quick. Its end token is 0."""
    return Tokenizer.train([], vocab_size=257)


def packed(
    folder: Path,
    texts: Sequence[str],
    name: str = "packed",
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Path:
    rows = write_rows(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    pack(rows, folder / name, tokenizer=tokenizer or codegen(), **options)
    return folder / name


def documents_of(folder: Path, end: int = 50_256) -> list[list[int]]:
    """Every document, by the plainest reader there is: split the ids at the end token."""
    documents: list[list[int]] = [[]]
    for part in sorted(folder.glob("*.bin")):
        for token in np.fromfile(part, dtype="<u2").tolist():
            documents[-1].append(token)
            if token == end:
                documents.append([])
    assert documents.pop() == []
    return documents


def read_megatron(stem: Path) -> list[np.ndarray]:
    """Megatron-LM's index, version 1, as its format is documented."""
    raw = stem.with_suffix(".idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, documents = struct.unpack_from("<QBQQ", raw, 9)
    assert version == 1
    dtype = {4: np.int32, 8: np.uint16}[code]
    at = 9 + 8 + 1 + 8 + 8
    lengths = np.frombuffer(raw, np.int32, sequences, at)
    at += lengths.nbytes
    pointers = np.frombuffer(raw, np.int64, sequences, at)
    at += pointers.nbytes
    bounds = np.frombuffer(raw, np.int64, documents, at)
    assert at + bounds.nbytes == len(raw)
    assert bounds.tolist() == list(range(sequences + 1))
    data = stem.with_suffix(".bin").read_bytes()
    return [
        np.frombuffer(data, dtype, length, pointer)
        for length, pointer in zip(lengths, pointers, strict=True)
    ]


TEXTS = ["def f(x):\n    return x\n", "", "été 漢字", "a<|endoftext|>b", "x = 1\n" * 50]


@pytest.mark.parametrize(("dtype", "part_bytes"), [(None, 2 << 30), ("uint32", 1), ("uint16", 300)])
def test_files_say_the_same_to_every_reader(
    tmp_path: Path, dtype: str | None, part_bytes: int
) -> None:
    folder = packed(tmp_path, TEXTS, dtype=dtype, part_bytes=part_bytes)
    stems = [path.with_suffix("") for path in sorted(folder.glob("*.bin"))]
    assert len(stems) == {2 << 30: 1, 1: 5, 300: 2}[part_bytes]
    documents = [document for stem in stems for document in read_megatron(stem)]
    assert len(documents) == len(TEXTS)
    for text, document in zip(TEXTS, documents, strict=True):
        assert document[-1] == 50_256
        assert 50_256 not in document[:-1]
        assert codegen().decode(document[:-1]) == text
        assert document[:-1].tolist() == codegen().encode(text, "none").tolist()
    for stem in stems:
        ends = np.fromfile(f"{stem}.bin.index", dtype="<u8")
        assert np.diff(ends, prepend=np.uint64(0)).tolist() == list(map(len, read_megatron(stem)))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["details"] == {
        "tokenizer_hash": codegen().tokenizer_hash,
        "dtype": dtype or "uint16",
        "eot_id": 50_256,
        "vocab_size": 50_295,
        "documents": 5,
        "tokens": sum(map(len, documents)),
        "prompts": False,
        "sources": [
            {
                "name": str(tmp_path / "packed.jsonl"),
                "documents": 5,
                "tokens": sum(map(len, documents)),
            }
        ],
    }
    assert verify(folder)["ok"]
    assert Tokenizer.from_file(folder / "tokenizer.json").tokenizer_hash == codegen().tokenizer_hash
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob("*.prompt"))


def test_packing_again_is_skipped_and_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text * 200} for text in TEXTS * 30])
    one = pack([rows], tmp_path / "one", tokenizer=codegen(), threads=1)
    many = pack([rows], tmp_path / "many", tokenizer=codegen(), threads=4)
    assert one["parts"] == many["parts"]
    assert pack([rows], tmp_path / "one", tokenizer=codegen())["started"] == one["started"]


def test_bad_rows_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 5}\n{"te\n{"text": "b"}\n', encoding="utf-8")
    report = hb.pack(path, tmp_path / "out", tokenizer=codegen())
    assert report["counts"]["kept"] == 2
    assert report["counts"]["rejected"] == 2
    assert len((tmp_path / "out/rejected/rows.jsonl").read_text().splitlines()) == 2
    assert documents_of(tmp_path / "out") == [[64, 50_256], [65, 50_256]]


def test_what_cannot_be_packed_says_why(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "abc", "prompt_chars": 4}])
    with pytest.raises(ConfigError, match=r"prompt_chars = 4, but its text has 3"):
        pack(rows, tmp_path / "a", tokenizer=codegen())
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "abc", "prompt_chars": "x"}])
    with pytest.raises(ConfigError, match="prompt_chars"):
        pack(rows, tmp_path / "b", tokenizer=codegen())
    with pytest.raises(ConfigError, match="dtype"):
        pack(rows, tmp_path / "c", tokenizer=codegen(), dtype="int16")
    bare = Tokenizer.train(["abc"], vocab_size=258, special_tokens=[])
    with pytest.raises(ConfigError, match=r"has no <\|endoftext"):
        pack(rows, tmp_path / "d", tokenizer=bare)


# Reading


def samples(data: PackedDataset, first: int, count: int) -> list[dict[str, np.ndarray]]:
    return [data[number] for number in range(first, first + count)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    length=st.integers(1, 40),
    seed=st.integers(0, (1 << 64) - 1),
    part_bytes=st.sampled_from([1, 40, 1 << 20]),
    epoch=st.integers(0, 3),
    method=st.sampled_from(["concat", "best_fit"]),
)
def test_an_epoch_holds_every_token_once(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    seed: int,
    part_bytes: int,
    epoch: int,
    method: Any,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    # A different letter each time, so that every pair of neighbours tells its place.
    alphabet = itertools.cycle(map(chr, range(33, 126)))
    texts = ["".join(itertools.islice(alphabet, count)) for count in lengths]
    path = packed(folder, texts, tokenizer=letters(), part_bytes=part_bytes)
    documents = documents_of(path, letters().eot_id)
    stream = [token for document in documents for token in document]
    if len(stream) < 2 and method == "concat":
        with pytest.raises(ConfigError, match="no sample"):
            PackedDataset(path, sequence_length=length, seed=seed)
        return
    data = PackedDataset(path, sequence_length=length, method=method, seed=seed)
    assert data.tokens == len(stream)
    count = data.samples_per_epoch
    found = samples(data, epoch * count, count)
    pairs: Counter[tuple[int, int]] = Counter()
    inputs: Counter[int] = Counter()
    for sample in found:
        ids, labels, bounds = sample["input_ids"], sample["labels"], sample["cu_seqlens"]
        assert (ids.dtype, labels.dtype, bounds.dtype) == (np.int64, np.int64, np.int32)
        assert ids.shape == labels.shape == sample["prompt_mask"].shape == (length,)
        assert not sample["prompt_mask"].any()
        assert bounds[0] == 0
        assert bounds[-1] == length
        assert (np.diff(bounds) > 0).all()
        learned = labels != IGNORED
        pairs.update(zip(ids[learned].tolist(), labels[learned].tolist(), strict=True))
        # Within a segment each label is the next token.
        for begin, end in itertools.pairwise(bounds.tolist()):
            within = learned[begin : end - 1]
            assert (labels[begin : end - 1][within] == ids[begin + 1 : end][within]).all()
            if method == "best_fit":
                assert letters().eot_id not in ids[begin : end - 1][within]
            elif end < length and learned[end]:
                assert ids[end - 1] == letters().eot_id
        inputs.update(ids.tolist())
    if method == "concat":
        assert pairs == Counter(itertools.pairwise(stream))
        assert count == -(-(len(stream) - 1) // length)
    else:
        expected = Counter(pair for d in documents for pair in itertools.pairwise(d))
        assert pairs == expected
        inputs[letters().eot_id] -= count * length - len(stream)
        assert inputs == Counter(stream)


@pytest.mark.parametrize("method", ["concat", "best_fit"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 40),
    world=st.integers(1, 5),
    later=st.integers(1, 7),
    steps=st.integers(0, 12),
)
def test_going_on_anywhere_equals_never_having_stopped(
    tmp_path_factory: pytest.TempPathFactory,
    method: Any,
    seed: int,
    world: int,
    later: int,
    steps: int,
) -> None:
    folder = shared_folder(tmp_path_factory)
    options: dict[str, Any] = {"sequence_length": 16, "method": method, "seed": seed}
    whole = PackedDataset(folder, **options)
    start = steps * world
    for ranks, begin in ((world, 0), (later, start)):
        for rank in range(ranks):
            data = PackedDataset(folder, rank=rank, world_size=ranks, start=begin, **options)
            for step, sample in enumerate(itertools.islice(data, 4)):
                expected = whole[begin + step * ranks + rank]
                assert all((sample[name] == expected[name]).all() for name in expected)
    batch = whole.batch(start, 3)
    assert batch["input_ids"].shape == (3, 16)
    for i in range(3):
        for name, values in whole[start + i].items():
            assert (batch[name][i] == values).all()


FOLDERS: list[Path] = []


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    if not FOLDERS:
        FOLDERS.append(
            packed(factory.mktemp("shared"), [f"x = {i}\n" * (i % 9) for i in range(60)])
        )
    return FOLDERS[0]


def test_epochs_and_seeds_are_different_orders(tmp_path: Path) -> None:
    folder = packed(tmp_path, [f"number {i} is {i * i}" for i in range(200)])
    data = PackedDataset(folder, sequence_length=8, seed=1)
    count = data.samples_per_epoch

    def order(data: PackedDataset, first: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in data.batch(first, count)["input_ids"].tolist()]

    first, second = order(data, 0), order(data, count)
    other = order(PackedDataset(folder, sequence_length=8, seed=2), 0)
    assert first != second
    assert first != other
    assert sorted(first) == sorted(second) == sorted(other)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < count / 10


@pytest.mark.parametrize(
    ("offsets", "prompts", "message"),
    [
        ([0, 5], [-1], r"prompts\[0\] is -1: give 0 to the 5 tokens"),
        ([0, 2, 5], [2, 4], r"prompts\[1\] is 4: give 0 to the 3 tokens"),
        ([0, 5], [2**32 + 1], r"prompts\[0\] is 4294967297"),
        ([0, 5], [1.9], "prompts are float64"),
        ([0, 1.9, 5.0], [0, 0], "offsets are float64"),
        ([0, 5], [1, 1], "2 prompts for 1 documents"),
    ],
)
def test_prompt_marks_that_cannot_be_are_refused(
    tmp_path: Path, offsets: list[Any], prompts: list[Any], message: str
) -> None:
    batch = (np.arange(1, 6), np.array(offsets), np.array(prompts))
    with pytest.raises(ConfigError, match=message):
        pack_tokens(
            [batch], tmp_path / "out", tokenizer=Tokenizer.codegen(), identity="x", prompts=True
        )


def test_tokens_with_prompts_are_another_result(tmp_path: Path) -> None:
    batch = (np.arange(1, 6), [0, 2, 5])
    how: dict[str, Any] = {"tokenizer": letters(), "identity": "x", "part_bytes": 4}

    def interrupted() -> Any:
        yield batch
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_tokens(interrupted(), tmp_path / "a", **how)
    # What was begun without prompts is not gone on with.
    for out in ("a", "b"):
        pack_tokens([batch], tmp_path / "b", **how)
        done = pack_tokens([(*batch, [1, 0])], tmp_path / out, prompts=True, **how)
        assert done["details"]["prompts"]
        assert PackedDataset(tmp_path / out, sequence_length=4, seed=0).batch(0, 1)


def test_tokens_may_be_no_documents_or_empty_ones(tmp_path: Path) -> None:
    empty = [([], [0]), ([], [0, 0])]
    done = pack_tokens(empty, tmp_path / "out", tokenizer=letters(), identity="x")
    assert done["details"]["tokens"] == 1
    found = stats([tmp_path / "out"], sequence_length=4)
    assert [found[method]["samples"] for method in ("concat", "best_fit")] == [0, 1]


def test_only_contiguous_arrays_are_filled(tmp_path: Path) -> None:
    data = PackedDataset(packed(tmp_path, ["some text"] * 9), sequence_length=8, seed=0)
    room = np.full((2, 16), -7)
    with pytest.raises(ConfigError, match="input_ids: not contiguous"):
        data.fill(0, 2, {"input_ids": room[:, :8]})
    data.fill(0, 2, {"input_ids": room.reshape(4, 8)[:2]})
    assert (room[0] != -7).all()
    assert (room[1] == -7).all()


def test_prompts_are_marked_on_labels(tmp_path: Path) -> None:
    rows = [
        {"text": "def f(x):\n    return x + 1\n", "prompt_chars": 10},
        {"text": "no prompt here", "prompt_chars": None},
        {"text": "été is all prompt", "prompt_chars": 17},
        # The cut falls inside a token, which then is not prompt.
        {"text": "hello world", "prompt_chars": 8},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    pack(tmp_path / "rows.jsonl", tmp_path / "out", tokenizer=codegen())
    prompts = np.fromfile(tmp_path / "out/part-00000.prompt", dtype="<u4").tolist()
    expected = []
    for row in rows:
        cut = len(row["text"][: row["prompt_chars"] or 0].encode())
        ends = np.cumsum(
            [len(codegen().decode_bytes([token])) for token in codegen().encode(row["text"])]
        )
        expected.append(int((ends <= cut).sum()))
    assert prompts == expected
    assert prompts[1] == 0
    assert prompts[3] == 1
    marked = [
        index < prompt
        for document, prompt in zip(documents_of(tmp_path / "out"), prompts, strict=True)
        for index in range(len(document))
    ]
    stream = [token for document in documents_of(tmp_path / "out") for token in document]
    data = PackedDataset(tmp_path / "out", sequence_length=5, seed=0)
    seen: Counter[tuple[int, int, bool]] = Counter()
    for sample in samples(data, 0, data.samples_per_epoch):
        learned = sample["labels"] != IGNORED
        assert not sample["prompt_mask"][~learned].any()
        columns = (sample["input_ids"], sample["labels"], sample["prompt_mask"])
        seen.update(zip(*(column[learned].tolist() for column in columns), strict=True))
    assert seen == Counter(zip(stream, stream[1:], marked[1:], strict=False))
    whole = PackedDataset(tmp_path / "out", sequence_length=64, method="best_fit", seed=0)
    assert whole.samples_per_epoch == 1
    # In its own row the first token of a document is nobody's label.
    assert whole[0]["prompt_mask"].sum() == sum(max(prompt - 1, 0) for prompt in prompts)


def test_folders_in_a_list_are_one_stream_and_in_a_dict_a_mixture(tmp_path: Path) -> None:
    one = packed(tmp_path, ["one " * 200], "one")
    two = packed(tmp_path, ["two " * 100, "dos " * 20], "two")
    together = PackedDataset([one, two], sequence_length=16, seed=3)
    tokens = [PackedDataset(path, sequence_length=16, seed=3).tokens for path in (one, two)]
    assert together.tokens == sum(tokens)
    assert together.samples_per_epoch == -(-(sum(tokens) - 1) // 16)
    mixture = PackedDataset({one: 0.7, two: 0.3}, sequence_length=16, seed=3)
    one_id = int(codegen().encode("one")[0])
    one_space = int(codegen().encode(" one")[0])
    for first in (0, 10, 500):
        ids = mixture.batch(first, 10)["input_ids"]
        from_one = [bool(np.isin(row, [one_id, one_space]).any()) for row in ids]
        assert sum(from_one) == 7
    # Each folder goes through its own epochs.
    count = PackedDataset(two, sequence_length=16, seed=3).samples_per_epoch
    rows = [
        tuple(row)
        for row in mixture.batch(0, 10 * count)["input_ids"].tolist()
        if one_space not in row
    ]
    assert Counter(rows[:count]) == Counter(rows[count : 2 * count])


def test_weights_must_make_sense(tmp_path: Path) -> None:
    one, two = packed(tmp_path, ["a b c"], "one"), packed(tmp_path, ["d e f"], "two")
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="above 0"):
            PackedDataset({one: 1.0, two: bad}, seed=0)
    with pytest.raises(ConfigError, match="1/65536"):
        PackedDataset({one: 1.0, two: 1e-9}, seed=0)
    uneven = PackedDataset({one: 2**0.5, two: 1.0}, sequence_length=2, seed=0)
    assert uneven[10**15]["input_ids"].shape == (2,)


def other_stage(folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "stage": "dedup"}))


def flip(folder: Path) -> None:
    raw = bytearray((folder / "part-00000.bin").read_bytes())
    raw[1] = 0xFF
    (folder / "part-00000.bin").write_bytes(raw)


def disorder(folder: Path) -> None:
    ends = np.fromfile(folder / "part-00000.bin.index", dtype="<u8")
    ends[:2] = ends[:2][::-1]
    ends.tofile(folder / "part-00000.bin.index")


def without(block: str, key: str) -> Any:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest[block][key]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def cut(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("part-00000.bin"), "part-00000.bin: .* bytes, but the manifest"),
        (cut("part-00000.bin.index"), "part-00000.bin.index: .* bytes, but the manifest"),
        (lambda folder: (folder / "part-00000.bin").unlink(), "part-00000.bin: No such file"),
        (lambda folder: (folder / "manifest.json").unlink(), "not a finished packed stage"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"stage": "pack"}'), "pack again"),
        (other_stage, "holds the output of `dedup`"),
        (without("details", "sources"), "pack again"),
        (without("counts", "rejected"), "pack again"),
        (disorder, "part-00000.bin.index: bytes .* changed since"),
        (flip, "part-00000.bin: bytes .* changed since"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    folder = packed(tmp_path, ["some text", "more", "and more text"])
    damage(folder)
    with pytest.raises(InputError, match=message):
        PackedDataset(folder, sequence_length=64, seed=0)[0]


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path, ["some text"])
    for options in (
        {"sequence_length": 0},
        {"seed": -1},
        {"rank": 1},
        {"world_size": 0},
        {"start": -1},
        {"method": "worst_fit"},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            PackedDataset(folder, **{"seed": 0, **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one"):
        PackedDataset([], seed=0)
    with pytest.raises(InputError, match="no such folder"):
        PackedDataset(tmp_path / "absent", seed=0)
    empty = write_rows(tmp_path / "empty.jsonl", [])
    pack(empty, tmp_path / "empty", tokenizer=codegen())
    with pytest.raises(InputError, match="no documents"):
        PackedDataset(tmp_path / "empty", seed=0)
    trained = Tokenizer.train(["some text"], vocab_size=260)
    pack(tmp_path / "packed.jsonl", tmp_path / "other", tokenizer=trained)
    with pytest.raises(ConfigError, match="another tokenizer"):
        PackedDataset([folder, tmp_path / "other"], seed=0)
