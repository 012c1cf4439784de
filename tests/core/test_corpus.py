"""Documents in and out: every format, bad rows, bad files."""

import contextlib
import datetime
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hornbook as hb
from hornbook import _core, corpus
from hornbook.errors import ConfigError, InputError, StorageError
from hornbook.manifest import verify
from hornbook.source import SourceConfig, gather

ROWS = [{"id": f"d{i}", "text": f"text {i}", "stars": i, "fork": i % 2 == 0} for i in range(5)]


def write_jsonl(path: Path, rows: list, opener=open) -> Path:
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_every_table_format_gives_the_same_rows(tmp_path):
    plain = write_jsonl(tmp_path / "a.jsonl", ROWS)
    zipped = write_jsonl(tmp_path / "b.jsonl.gz", ROWS, gzip.open)
    packed = tmp_path / "c.jsonl.zst"
    packed.write_bytes(pa.compress(plain.read_bytes(), codec="zstd", asbytes=True))
    columns = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), columns)
    for path in (plain, zipped, packed, columns):
        assert list(corpus.read([path])) == ROWS, path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_arrow_string_type_is_read(tmp_path, kind):
    table = pa.table({"text": pa.array(["a", "b"], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [row["text"] for row in corpus.read([tmp_path / "x.parquet"])] == ["a", "b"]


def test_source_folder_sorted_with_relative_paths(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "b.py").write_text("b = 1\n")
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    (tmp_path / ".hidden.py").write_text("no")
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    rows = list(corpus.read([tmp_path]))
    assert [(row["path"], row["text"]) for row in rows] == [
        ("a.py", "a = 1\r\n"),
        ("pkg/b.py", "b = 1\n"),
    ]
    assert rows[0]["id"] == _core.hash_bytes(b"a = 1\r\n")


def test_bad_rows_are_set_aside_with_their_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "good"}\nnot json\n[1]\n{"no": 1}\n{"text": 3}\n\n{"text": "\xff"}\n'
        b'{"text": "also good"}'
    )
    documents = corpus.read([path])
    assert [row["text"] for row in documents] == ["good", "also good"]
    assert [row for _, row, _ in documents.rejected] == [2, 3, 4, 5, 7]
    reasons = " | ".join(reason for *_, reason in documents.rejected)
    assert "not JSON" in reasons
    assert "not UTF-8 at byte 10" in reasons


def test_source_file_that_is_not_utf8_is_set_aside(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    documents = corpus.read([tmp_path])
    assert len(list(documents)) == 1
    assert documents.rejected == [(tmp_path / "bad.py", 1, "not UTF-8 at byte 5")]


def test_null_text_in_parquet_is_set_aside(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "x.parquet")
    documents = corpus.read([tmp_path / "x.parquet"])
    assert [row["text"] for row in documents] == ["a", "c"]
    assert [row for _, row, _ in documents.rejected] == [2]


def test_columns_of_several_inputs_are_joined(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "stars": 1}])
    b = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "stars": 1.5, "lang": "py"}])
    rows = list(corpus.read([a, b]))
    assert [(row["stars"], row["lang"]) for row in rows] == [(1.0, None), (1.5, "py")]


def test_columns_that_do_not_fit_name_the_file(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "stars": 1}])
    b = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "stars": "many"}])
    with pytest.raises(InputError, match=r"b\.jsonl.*`stars`"):
        corpus.read([a, b])


def test_missing_and_useless_inputs(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        corpus.read([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no \.parquet"):
        corpus.read([tmp_path])
    with pytest.raises(ConfigError, match="no input"):
        corpus.read([])
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no string column `text`; it has: content"):
        corpus.read([tmp_path / "x.parquet"])
    (tmp_path / "y.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        corpus.read([tmp_path / "y.parquet"])


def test_torn_gzip_is_an_error_not_an_end(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((InputError, StorageError), match=r"x\.jsonl\.gz"):
        list(corpus.read([tmp_path / "x.jsonl.gz"]))


def test_what_is_written_is_read_by_others_and_by_us(tmp_path):
    schema = {"stars": "int64", "fork": "bool"}
    parts = corpus.write(tmp_path / "out", ROWS, schema)
    assert [part["name"] for part in parts] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "out").to_pylist() == ROWS
    assert list(corpus.read([tmp_path / "out"])) == ROWS
    assert _core.hash_file(tmp_path / "out" / parts[0]["name"]) == parts[0]["xxh3"]


def test_same_rows_same_bytes_whatever_the_batches(tmp_path):
    one = corpus.write(tmp_path / "one", ROWS, {}, batch_rows=1)
    all_at_once = corpus.write(tmp_path / "all", ROWS, {}, batch_rows=100)
    assert one == all_at_once


def test_nothing_to_write_still_says_its_schema(tmp_path):
    corpus.write(tmp_path / "out", [], {"stars": "int64"})
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table.num_rows == 0
    assert table.column_names == ["id", "text", "stars"]


def test_rejected_folder_is_not_read_back(tmp_path):
    corpus.write(tmp_path, ROWS, {})
    corpus.write_rejected(tmp_path, [(Path("a"), 3, "why")])
    assert len(list(corpus.read([tmp_path]))) == len(ROWS)
    assert json.loads((tmp_path / "rejected" / "rows.jsonl").read_text())["row"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_is_named(tmp_path):
    (tmp_path / "part-00000.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="part-00000"):
        corpus.write(tmp_path, [{"text": "x" * 100_000}], {})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_any_text_survives_a_round_trip(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("round")
    corpus.write(folder / "parquet", [{"text": text} for text in texts], {})
    assert [row["text"] for row in corpus.read([folder / "parquet"])] == texts
    lines = write_jsonl(folder / "x.jsonl", [{"text": text} for text in texts])
    assert [row["text"] for row in corpus.read([lines])] == texts


def test_test_data_does_not_hide_a_folder_of_code(tmp_path):
    (tmp_path / "repo" / "tests").mkdir(parents=True)
    (tmp_path / "repo" / "a.py").write_text("a = 1\n")
    write_jsonl(tmp_path / "repo" / "tests" / "fixture.jsonl", [{"no": 1}])
    assert [row["path"] for row in corpus.read([tmp_path])] == ["repo/a.py"]
    write_jsonl(tmp_path / "data.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match="both tables"):
        corpus.read([tmp_path])


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "notes.txt", "rows.jsonl.xz"])
def test_named_files_of_other_kinds_are_no_document(tmp_path, name):
    (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(InputError, match=r"neither a table .* nor a source file ending in \.py"):
        corpus.read([tmp_path / name])


def test_a_byte_order_mark_loses_no_row(tmp_path):
    data = b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    for name in ("a.jsonl", "b.jsonl.gz"):
        documents = corpus.read([tmp_path / name])
        assert list(documents) == ROWS
        assert documents.rejected == []


def test_columns_that_no_json_has_stand_beside_rows_that_lack_them(tmp_path):
    kinds = {
        "list": pa.array([[1, 2]]),
        "when": pa.array([0], pa.timestamp("us")),
        "price": pa.array([None], pa.decimal128(9, 2)),
        "raw": pa.array([b"x"]),
    }
    pq.write_table(pa.table({"text": ["a"], **kinds}), tmp_path / "a.parquet")
    plain = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "list": None}, {"text": "c"}])
    (tmp_path / "c.py").write_text("d = 1\n")
    report = hb.dedup([plain, tmp_path / "a.parquet", tmp_path / "c.py"], tmp_path / "out")
    assert report["counts"]["kept"] == 4
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["list"].to_pylist() == [None, None, [1, 2], None]
    assert {name: table.schema.field(name).type for name in kinds} == {
        name: array.type for name, array in kinds.items()
    }


def test_names_of_files_need_not_be_utf8(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = folder / os.fsdecode(b"bad\xffname.py")
    odd.write_bytes(b"a = 1\n")
    report = hb.dedup([folder, odd], tmp_path / "out")
    assert report["counts"]["kept"] == 1
    assert hb.dedup([folder, odd], tmp_path / "out").reused
    assert verify(tmp_path / "out")["ok"]


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path, codec):
    data = "".join(json.dumps({"text": f"{i * 7919}"}) + "\n" for i in range(9000)).encode()
    packed = gzip.compress(data)
    if codec == "zst":
        packed = pa.compress(data, codec="zstd", asbytes=True)
    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=rf"a\.jsonl\.{codec}: damaged or cut off"):
        list(corpus.read([path]))


def test_zeros_behind_gzip_are_padding_and_members_follow_one_another(tmp_path):
    first, second = (gzip.compress(b'{"text": "%d"}\n' % i) for i in range(2))
    (tmp_path / "a.jsonl.gz").write_bytes(first + bytes(9000) + second + bytes(512))
    assert [row["text"] for row in corpus.read([tmp_path / "a.jsonl.gz"])] == ["0", "1"]
    (tmp_path / "a.jsonl.gz").write_bytes(first + bytes(9) + b"garbage")
    with pytest.raises(InputError, match="damaged or cut off"):
        list(corpus.read([tmp_path / "a.jsonl.gz"]))


def test_rows_hold_the_text_of_values_of_other_types(tmp_path):
    day = datetime.datetime(2026, 1, 31, 12)
    columns = {
        "list": pa.array([[1, 2], None]),
        "when": pa.array([day, None]),
        "raw": pa.array([b"\xff\x00", b"text"]),
        "large": pa.array([b"\xff", None], pa.large_binary()),
        "big": pa.array([2**64 - 1, None], pa.uint64()),
        "inner": pa.array([{"a": 1, "b": ["x"]}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "a.parquet")
    documents = corpus.read([tmp_path / "a.parquet"])
    assert dict(documents.schema) == dict.fromkeys(["id", "text", *columns], "string")
    first, second = documents
    assert {name: first[name] for name in columns} == {
        "list": "[1, 2]",
        "when": "2026-01-31T12:00:00",
        "raw": "ff00",
        "large": "ff",
        "big": str(2**64 - 1),
        "inner": "{a: 1, b: [x]}",
        "map": "{k: 1}",
    }
    assert {name: second[name] for name in columns} == dict.fromkeys(columns) | {"raw": "text"}


def test_integers_that_no_column_of_numbers_holds_keep_their_digits(tmp_path):
    rows = [{"text": str(i), "hash": value} for i, value in enumerate([7, 2**63, 2**64 - 1])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert [row["hash"] for row in corpus.read([path])] == ["7", str(2**63), str(2**64 - 1)]


def test_a_column_of_nulls_alone_is_one_of_strings(tmp_path):
    plain = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "note": None}])
    pq.write_table(pa.table({"text": ["a"], "note": pa.nulls(1)}), tmp_path / "a.parquet")
    for inputs in ([plain], [tmp_path / "a.parquet"], [plain, tmp_path / "a.parquet"]):
        documents = corpus.read(inputs)
        assert dict(documents.schema)["note"] == "string"
        assert [row["note"] for row in documents] == [None] * len(inputs)


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd", "none"])
def test_every_usual_compression_of_parquet_is_read(tmp_path, codec):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet", compression=codec)
    assert [row["text"] for row in corpus.read([tmp_path / "a.parquet"])] == ["a", "b"]


def test_a_compression_that_is_not_read_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet", compression="brotli")
    with pytest.raises(InputError, match=r"a\.parquet: compressed by brotli.* write it again"):
        list(corpus.read([tmp_path / "a.parquet"]))


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: two columns are called `text`"):
        corpus.read([tmp_path / "a.parquet"])


def test_tables_that_are_kept_elsewhere_are_read(tmp_path):
    """As in the cache of the Hugging Face Hub, where every file is a link."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_jsonl(tmp_path / "blobs" / "0123", ROWS)
    (tmp_path / "snapshot" / "a.jsonl").symlink_to(tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "b.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "snapshot" / "loop").symlink_to(tmp_path / "snapshot")
    assert list(corpus.read([tmp_path / "snapshot"])) == ROWS


def test_rows_of_files_whose_names_are_not_utf8_are_set_aside(tmp_path):
    odd = tmp_path / os.fsdecode(b"bad\xff.jsonl")
    odd.write_text('{"text": "a"}\nbroken\n')
    assert hb.dedup(odd, tmp_path / "out")["counts"]["rejected"] == 1
    (line,) = (tmp_path / "out" / "rejected" / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 2


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_damaged_parquet_is_an_error_at_worst(tmp_path, places):
    pq.write_table(pa.Table.from_pylist(ROWS * 20), tmp_path / "a.parquet", row_group_size=30)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    (tmp_path / "b.parquet").write_bytes(data)
    with contextlib.suppress(InputError, ConfigError):
        assert len(list(corpus.read([tmp_path / "b.parquet"]))) <= 100


def test_a_source_column_of_the_documents_own_stays(tmp_path):
    rows = [{"text": "x = 1", "source": "github"}, {"text": "y = 2"}, {"text": "z", "source": ""}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gather(tmp_path / "out", SourceConfig(raw=(str(path),)))
    found = [row["source"] for row in corpus.read([tmp_path / "out"])]
    assert found == ["github", "data.jsonl", "data.jsonl"]
    # One of its own for each document is no source.
    rows = [{"text": f"x = {i}", "source": f"https://host/{i}"} for i in range(1001)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gather(tmp_path / "many", SourceConfig(raw=(str(path),)))
    assert {row["source"] for row in corpus.read([tmp_path / "many"])} == {"data.jsonl"}
