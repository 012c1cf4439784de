import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook.diversity import METRICS, signature
from hornbook.errors import ConfigError, InputError

WORD = re.compile(r"[A-Za-z0-9_\x80-\U0010ffff]+")
SHAPES = [
    "def {n}(a):\n    return a + {k}\n",
    "def {n}(a):\n    return a * {k}\n",
    "def {n}(a, b):\n    for x in a:\n        b += x\n    return b\n",
    "class {n}:\n    def inner(self):\n        return {k}\n",
]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def reference_words(texts: list[str], n: int) -> float:
    grams = [
        tuple(words[i : i + n])
        for words in map(WORD.findall, texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


@settings(max_examples=30, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99)), min_size=1, max_size=60))
def test_structures_equal_a_plain_count(
    picks: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = [SHAPES[shape].format(n=f"name{k}", k=k) for shape, k in picks]
    path = write(tmp_path_factory.mktemp("d") / "d.jsonl", texts)
    found = hb.diversity([path], metrics=["structure"])["structure"]
    counts = Counter(shape for shape, _ in picks).values()
    shares = [count / len(picks) for count in counts]
    assert found["functions"] == len(picks)
    assert found["broken"] == 0
    assert found["richness"] == len(counts)
    assert found["exp_shannon"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert found["inverse_simpson"] == pytest.approx(1 / sum(p * p for p in shares))
    singletons = sum(count == 1 for count in counts)
    assert found["coverage"] == pytest.approx(1 - singletons / len(picks))
    assert [row["count"] for row in found["top"]] == sorted(counts, reverse=True)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text("ab_1é \n.,", max_size=40), min_size=1, max_size=20))
def test_words_and_duplicates_equal_a_plain_count(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("d") / "d.jsonl", texts)
    report = hb.diversity([path], metrics=["words", "duplicates"])
    words = report["words"]
    assert words["total"] == sum(len(WORD.findall(text)) for text in texts)
    for n in (1, 2, 4):
        assert words[f"distinct_{n}"] == pytest.approx(reference_words(texts, n))
    assert report["duplicates"]["distinct"] == len(set(texts))
    assert report["duplicates"]["rate"] == pytest.approx(1 - len(set(texts)) / len(texts))
    assert report["sample"] == {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "rejected": 0,
    }


def test_compression_sees_far_repetition(tmp_path: Path) -> None:
    import random

    rng = random.Random(0)
    # Longer than the window of an ordinary compressor at this level would need to be noticed.
    far = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1 << 20)) for _ in range(8)]
    once = hb.diversity([write(tmp_path / "1.jsonl", far)], metrics=["compression"])
    twice = hb.diversity([write(tmp_path / "2.jsonl", far * 2)], metrics=["compression"])
    assert twice["compression"]["ratio"] > 1.9 * once["compression"]["ratio"]
    assert once["compression"]["blocks"] == 1


def test_every_metric_by_default_and_only_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ["def f(x):\n    return x\n", "def f(:\n  = =\n", ""])
    report = hb.diversity([path])
    assert set(report) == {"sample", *METRICS}
    assert report["structure"]["functions"] >= 1
    with pytest.raises(ConfigError, match="wrods"):
        hb.diversity([path], metrics=["wrods"])
    with pytest.raises(InputError):
        hb.diversity([tmp_path / "none.jsonl"])


def test_an_empty_corpus_has_no_diversity(tmp_path: Path) -> None:
    report = hb.diversity([write(tmp_path / "d.jsonl", [])])
    assert report["sample"]["documents"] == 0
    assert report["structure"]["richness"] == 0
    assert report["words"]["distinct_1"] == 0


def test_signature_ignores_what_it_should() -> None:
    plain = signature("def f(a, b):\n    return [x + 1 for x in a if x > b]\n")
    same = (
        "# note\ndef keep(items: list[int], limit: int = None) -> list:\n    '''Doc.'''\n"
        "    return ([(item + 20) for item in items  # why\n        if item > limit])\n"
    )
    assert signature(same.replace(" = None", "")) == plain
    assert signature(same) != plain  # a default is structure
    assert signature("def f(a, b):\n    return [x - 1 for x in a if x > b]\n") != plain
    assert re.fullmatch("[0-9a-f]{32}", plain)
    assert signature("x = 1\n\n\n" + same.replace(" = None", "") + SHAPES[0]) == plain


@pytest.mark.parametrize("text", ["", "x = 1", "def f(:\n    return = =\n"])
def test_no_signature_without_a_function(text: str) -> None:
    with pytest.raises(ConfigError, match="signature"):
        signature(text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=100))
def test_any_text_is_measured(noise: str) -> None:
    text = f"def f(a):\n    b = {noise!r}\n    return a\n"
    assert signature(text) == signature("def g(x):\n    y = ''\n    return x\n")
