"""The tokenizer against HF's: same ids, same merges, same files."""

import hashlib
import json
import os
import pickle
import sysconfig
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from hornbook import _core, vocabulary
from hornbook.errors import ConfigError, InputError
from hornbook.tokenizer import Tokenizer

PAIRS = ("gpt2", "codegen")
SPECIAL = "<|endoftext|>"

texts = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x00"]),
        st.integers(2, 70).map(lambda n: " " * n),
        st.integers(2, 22).map(lambda n: "\t" * n),
        st.sampled_from(["'s", "'re", "'ll", "'S", "''d", " 've", "don't", "I'm", "'"]),
        st.sampled_from([SPECIAL, "<|endoftext", "|>", "<", SPECIAL[:-1] + SPECIAL]),
        st.sampled_from(
            ["def f(x):", "    return", "x1_2", "0x1f", "été", "漢字", "𝒜", "🙂", "e\u0301"]
        ),
        st.text(alphabet="ab '\n1.\t", max_size=12),
    ),
    max_size=14,
).map("".join)


@cache
def ours(name: str) -> Tokenizer:
    return Tokenizer.codegen() if name == "codegen" else Tokenizer.gpt2()


@cache
def reference(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(ours(name).to_json())


@cache
def reference_without_special(name: str) -> tokenizers.Tokenizer:
    hf = tokenizers.Tokenizer.from_str(ours(name).to_json())
    hf.encode_special_tokens = True
    return hf


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    return Tokenizer(_core.Tokenizer.from_json(json.dumps(spec)))


def hf_ids(hf: tokenizers.Tokenizer, text: str) -> list[int]:
    return hf.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=400, deadline=None)
@given(text=texts)
@example("\n'd don't\n\n  x\n\nx" + " " * 63 + "'ll")
def test_ids_equal_those_of_hf(name: str, text: str) -> None:
    tokenizer = ours(name)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == hf_ids(reference(name), text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.count(text) == len(ids)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_special_tokens_as_text_equal_those_of_hf(name: str, text: str) -> None:
    hf = reference_without_special(name)
    ids = ours(name).encode(text, allowed_special="none")
    assert ids.tolist() == hf_ids(hf, text)
    assert ours(name).eot_id not in ids
    assert ours(name).decode(ids) == text


@pytest.mark.parametrize("name", PAIRS)
def test_every_run_length_before_every_kind_of_character(name: str) -> None:
    for run in (" ", "\t", "\n", " \t", "\n ", "\u00a0"):
        for after in ("", "x", "1", ".", "'s", "\n", "é", SPECIAL):
            for before in ("", "x", "\n"):
                text = "|".join(before + run * k + after for k in range(1, 71))
                assert ours(name).encode(text).tolist() == hf_ids(reference(name), text)


@pytest.mark.parametrize("name", PAIRS)
def test_known_indentations_of_more_ids_than_the_output_has_room_for(name: str) -> None:
    for lengths in (range(300), range(299, -1, -1), [250] * 300, [7, 8, 9, 200] * 50):
        text = "".join("\n" + " " * k + "x" for k in lengths)
        wanted = hf_ids(reference(name), text)
        for _ in range(2):  # new, then known
            assert ours(name).encode(text).tolist() == wanted


def test_every_character_has_the_class_hf_gives_it() -> None:
    """With merges of the last byte of any character and `a`, `1` or `.`, ids tell its class."""
    spec = json.loads(Tokenizer.train([], vocab_size=257).to_json())
    alphabet = [letter for letter in spec["model"]["vocab"] if len(letter) == 1]
    for letter in filter(lambda letter: letter > "~", alphabet):
        for after in "a1.":
            spec["model"]["merges"].append([letter, after])
            spec["model"]["vocab"][letter + after] = len(spec["model"]["vocab"])
    tokenizer = from_spec(spec)
    hf = tokenizers.Tokenizer.from_str(json.dumps(spec))
    codes = [*range(0x80, 0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 97)]
    for start in range(0, len(codes), 4096):
        text = "".join(f"{chr(c)}a{chr(c)}1{chr(c)}.\n" for c in codes[start : start + 4096])
        assert tokenizer.encode(text).tolist() == hf_ids(hf, text), hex(codes[start])


@pytest.mark.parametrize("name", PAIRS)
def test_long_pieces_take_no_shortcut(name: str) -> None:
    rng = np.random.default_rng(0)
    for alphabet in (
        "abcdefghijklmnopqrstuvwxyz",
        "0123456789",
        "\n",
        "a",
        "^",
        "的一是不了人我在有他",
    ):
        text = "".join(rng.choice(list(alphabet), 20_000))
        assert ours(name).encode(text).tolist() == hf_ids(reference(name), text)


@pytest.mark.parametrize("name", PAIRS)
def test_the_standard_library_as_the_published_file_has_it(name: str, tmp_path: Path) -> None:
    data = os.environ.get("HORNBOOK_DATA")
    if not data:
        pytest.skip("HORNBOOK_DATA is not set")
    path = Path(data) / f"{name}_tokenizer.json"
    hf = tokenizers.Tokenizer.from_file(str(path))
    ours_from_file = Tokenizer.from_file(path)
    assert ours_from_file.tokenizer_hash == ours(name).tokenizer_hash
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))[:40]
    sources = [file.read_text(encoding="utf-8") for file in files]
    batch = ours(name).encode_batch(sources)
    for i, encoding in enumerate(hf.encode_batch_fast(sources, add_special_tokens=False)):
        assert batch[i].tolist() == encoding.ids, files[i]


def test_the_built_in_merges_are_the_published_ones() -> None:
    model = json.loads(ours("gpt2").to_json())["model"]
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
    # The sum that tiktoken states for `vocab.bpe`.
    assert hashlib.sha256(merges.encode()).hexdigest() == (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    )
    assert (ours("gpt2").vocab_size, ours("gpt2").eot_id) == (50_257, 50_256)
    assert (ours("codegen").vocab_size, ours("codegen").eot_id) == (50_295, 50_256)


@settings(max_examples=50, deadline=None)
@given(items=st.lists(texts, max_size=12), threads=st.sampled_from([None, 1, 2, 3]))
def test_a_batch_is_its_texts_one_by_one(items: list[str], threads: int | None) -> None:
    tokenizer = ours("codegen")
    batch = tokenizer.encode_batch(items, threads=threads)
    assert len(batch) == len(items)
    assert batch.offsets.dtype == np.int64
    assert [ids.tolist() for ids in map(batch.__getitem__, range(len(batch)))] == [
        tokenizer.encode(text).tolist() for text in items
    ]


def test_batches_over_many_threads_and_from_arrow() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    items = [source[i:] + "é漢" for i in range(0, 4000, 10)]
    tokenizer = ours("codegen")
    whole = tokenizer.encode_batch(items, threads=1)
    for other in (
        tokenizer.encode_batch(items, threads=4),
        tokenizer.encode_batch(pa.array(items)),
        tokenizer.encode_batch(pa.chunked_array([items[:7], items[7:]], type=pa.large_string())),
    ):
        assert (other.ids == whole.ids).all()
        assert (other.offsets == whole.offsets).all()
    with pytest.raises(InputError, match="nulls"):
        tokenizer.encode_batch(pa.array(["a", None]))
    with pytest.raises(InputError, match="text 1 of the batch is null"):
        tokenizer.encode_batch(["a", None])
    with pytest.raises(TypeError):
        tokenizer.encode_batch(["a", 1])
    with pytest.raises(ConfigError, match="threads"):
        tokenizer.encode_batch(items, threads=0)


def test_one_tokenizer_in_several_threads() -> None:
    tokenizer, failures = ours("codegen"), []
    source = Path(__file__).read_text(encoding="utf-8")
    expected = tokenizer.encode(source).tolist()

    def work() -> None:
        if any(tokenizer.encode(source).tolist() != expected for _ in range(5)):
            failures.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 51_199), max_size=20))
def test_any_ids_decode_as_hf_does(name: str, ids: list[int]) -> None:
    assert ours(name).decode(ids) == reference(name).decode(ids, skip_special_tokens=False)
    assert ours(name).decode(np.array(ids, dtype=np.int64)) == ours(name).decode(ids)
    assert ours(name).decode([2**70, *ids]) == ours(name).decode(ids)


def test_what_cannot_be_encoded_or_decoded_says_why() -> None:
    tokenizer = ours("gpt2")
    with pytest.raises(InputError, match="surrogate pair at character 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode_batch(["a", "\udfff"])
    with pytest.raises(InputError, match="-100 is negative"):
        tokenizer.decode([5, -100])
    with pytest.raises(ConfigError, match="allowed_special"):
        tokenizer.encode("a", allowed_special="some")  # type: ignore[arg-type]


def test_what_is_not_utf8_is_refused_or_replaced_as_asked(tmp_path: Path) -> None:
    tokenizer = ours("codegen")
    good = tokenizer.encode("é漢").tolist()
    assert tokenizer.encode("é漢".encode()).tolist() == good
    assert tokenizer.encode_batch(["é漢", "é漢".encode()])[1].tolist() == good
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        tokenizer.encode(b"a\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        tokenizer.encode_batch(["a", b"\xc3"])
    replaced = tokenizer.encode("a\ufffdb").tolist()
    assert tokenizer.encode(b"a\xffb", errors="replace").tolist() == replaced
    assert tokenizer.encode("a\ud800b", errors="replace").tolist() == replaced
    mixed = tokenizer.encode_batch(["a\udfffb", b"a\xffb", "x"], errors="replace")
    assert [mixed[i].tolist() for i in range(3)] == [replaced, replaced, [87]]
    assert tokenizer.count(b"a\xffb", errors="replace") == len(replaced)
    with pytest.raises(ConfigError, match="errors"):
        tokenizer.encode("a", errors="ignore")  # type: ignore[arg-type]


def test_arrow_holds_texts_or_their_bytes() -> None:
    tokenizer = Tokenizer.codegen()
    texts = ["a b", "\u00e9", ""]
    plain = tokenizer.encode_batch(texts)
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()):
        values = [text.encode() for text in texts] if "binary" in str(kind) else texts
        for column in (pa.array(values, kind), pa.chunked_array([pa.array(values, kind)])):
            found = tokenizer.encode_batch(column)
            assert found.ids.tolist() == plain.ids.tolist()
            assert found.offsets.tolist() == plain.offsets.tolist()
    torn = pa.chunked_array([pa.array([b"a"]), pa.array([b"b", b"c\xff"])])
    with pytest.raises(InputError, match="text 2 is not UTF-8 at byte 1"):
        tokenizer.encode_batch(torn)
    replaced = tokenizer.encode_batch(torn, errors="replace")
    assert tokenizer.decode(replaced.ids) == "abc\ufffd"
    with pytest.raises(ConfigError, match="errors"):
        tokenizer.encode_batch(torn, errors="nonsense")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Int64, not of strings"):
        tokenizer.encode_batch(pa.array([1, 2]))


def test_files_are_encoded_as_their_texts_are(tmp_path: Path) -> None:
    tokenizer = ours("codegen")
    items = ["def f(x):\n    return x\n", "", f"a {SPECIAL} b", "é漢 " * 50]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in items)
    (tmp_path / "docs.jsonl").write_text(lines, encoding="utf-8")
    report = tokenizer.encode_files(tmp_path / "docs.jsonl", tmp_path / "packed", threads=1)
    ids = np.fromfile(tmp_path / "packed" / "part-00000.bin", dtype=np.uint16)
    batch = tokenizer.encode_batch(items, allowed_special="none")
    expected = [i for text in range(4) for i in [*batch[text].tolist(), tokenizer.eot_id]]
    assert ids.tolist() == expected
    assert report["details"]["tokens"] == len(expected)


def test_a_forked_child_encodes_while_threads_of_the_parent_do() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    tokenizer = ours("codegen")
    items = [Path(__file__).read_text(encoding="utf-8")] * 60
    expected = tokenizer.encode_batch(items, threads=2).ids.tobytes()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            tokenizer.encode_batch(items, threads=2)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            with warnings.catch_warnings():
                # The warning is the point: this fork happens while threads run.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                same = tokenizer.encode_batch(items, threads=2).ids.tobytes() == expected
                os._exit(0 if same else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        worker.join()


def byte_level_trainer(vocab_size: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def hf_trained(corpus: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.train_from_iterator(corpus, byte_level_trainer(vocab_size))
    return hf


@settings(max_examples=60, deadline=None)
@given(
    corpus=st.lists(
        st.one_of(
            texts, st.text(alphabet="aab ", max_size=40), st.text(alphabet="abc", max_size=30)
        ),
        max_size=8,
    ),
    vocab_size=st.integers(257, 330),
)
def test_training_learns_what_hf_learns(corpus: list[str], vocab_size: int) -> None:
    hf = json.loads(hf_trained(corpus, vocab_size).to_str())
    trained = json.loads(Tokenizer.train(corpus, vocab_size=vocab_size).to_json())
    assert trained["model"]["merges"] == hf["model"]["merges"]
    assert trained["model"]["vocab"] == hf["model"]["vocab"]
    assert trained["added_tokens"] == hf["added_tokens"]


def test_training_on_source_files_learns_what_hf_learns(tmp_path: Path) -> None:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-c]*.py"))[:25]
    corpus = [file.read_text(encoding="utf-8") for file in files]
    hf = hf_trained(corpus, 2000)
    tokenizer = Tokenizer.train(iter(corpus), vocab_size=2000)
    assert json.loads(tokenizer.to_json())["model"] == json.loads(hf.to_str())["model"]
    assert tokenizer.tokenizer_hash == Tokenizer.train(corpus, vocab_size=2000).tokenizer_hash
    hf.save(str(tmp_path / "hf.json"))
    assert Tokenizer.from_file(tmp_path / "hf.json").tokenizer_hash == tokenizer.tokenizer_hash
    for text in corpus:
        assert tokenizer.encode(text).tolist() == hf_ids(hf, text)


def test_a_large_vocabulary_has_wide_ids() -> None:
    spec = json.loads(ours("gpt2").to_json())
    spec["added_tokens"] += [
        {"id": 50_257 + i, "content": f"<{i}>", "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for i in range(20_000)
    ]  # fmt: skip
    wide = from_spec(spec)
    ids = wide.encode("a<19999>")
    assert (ids.dtype, ids.tolist()) == (np.uint32, [64, 70_256])
    assert wide.encode_batch(["a<19999>"]).ids.tolist() == [64, 70_256]


def test_saving_and_pickling_keep_the_tokenizer(tmp_path: Path) -> None:
    text = "def f():\n        return '''don't'''" + SPECIAL
    for tokenizer in (ours("codegen"), Tokenizer.train(["some text"], vocab_size=260)):
        path = tmp_path / "tokenizer.json"
        tokenizer.save(path)
        again = Tokenizer.from_file(path)
        pickled = pickle.loads(pickle.dumps(tokenizer))
        hf = tokenizers.Tokenizer.from_file(str(path))
        assert again.tokenizer_hash == pickled.tokenizer_hash == tokenizer.tokenizer_hash
        ids = tokenizer.encode(text).tolist()
        assert again.encode(text).tolist() == pickled.encode(text).tolist() == ids
        assert hf_ids(hf, text) == ids


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, r"normalizer \(NFC\)"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre-tokenizer is Whitespace"),
        ("pre_tokenizer", None, "pre-tokenizer is none"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "add_prefix_space"),
        (
            "pre_tokenizer",
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            "use_regex",
        ),
        ("post_processor", {"type": "TemplateProcessing"}, "post-processor"),
        ("decoder", {"type": "WordPiece"}, "decoder is WordPiece"),
        ("model", {"type": "Unigram", "vocab": []}, "model is Unigram"),
        ("model", {"vocab": {SPECIAL: 50_256}, "merges": []}, "no token for byte"),
        ("added_tokens", [{"id": 9, "content": "<x>"}], "HF would give it 50257"),
        ("added_tokens", [{"id": 50257, "content": "<x>", "lstrip": True}], "lstrip"),
    ],
)
def test_other_tokenizers_are_refused_by_name(
    tmp_path: Path, part: str, value: object, message: str
) -> None:
    spec = json.loads(ours("gpt2").to_json())
    spec[part] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.from_file(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text(ours("gpt2").to_json()[:1000], encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        Tokenizer.from_file(tmp_path / "torn.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        Tokenizer.from_file(tmp_path / "binary.json")
    with pytest.raises(ConfigError, match="vocab_size = 100"):
        Tokenizer.train(["a"], vocab_size=100)
    with pytest.raises(ConfigError, match="no added token"):
        Tokenizer.train(["a"], vocab_size=300, special_tokens=[]).eot_id  # noqa: B018


def test_one_string_is_no_list_of_special_tokens() -> None:
    with pytest.raises(ConfigError, match="special_tokens"):
        Tokenizer.train(["a"], vocab_size=300, special_tokens="<|endoftext|>")


def test_few_characters_are_still_a_document(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text {i} " * 150}) + "\n" for i in range(20)))
    done = vocabulary.build(
        tmp_path / "out", name="train", inputs=[rows], vocab_size=260, characters=1
    )
    assert done["counts"]["in"] == 1
    with pytest.raises(ConfigError, match="characters"):
        vocabulary.build(tmp_path / "out", name="train", inputs=[rows], characters=0)
