"""Stages on disk: skipping, refusing, resuming, verifying."""

import json

import pytest

import hornbook as hb
from hornbook import corpus, manifest
from hornbook.errors import ConfigError, InputError, ResumeError, StorageError
from hornbook.manifest import (
    MANIFEST,
    STARTED,
    Outcome,
    Report,
    input_hash,
    run_stage,
    stage_key,
    verify,
)


def make(out, source, config=1, stage="copy", **options):
    calls = []

    def work(folder):
        calls.append(folder)
        rows = [{"text": source.read_text()}]
        return Outcome(parts=corpus.write(folder, rows, {}), rows_in=1, kept=1)

    report = run_stage(stage, out, inputs=[source], config=config, work=work, **options)
    return report, len(calls)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("hello")
    return path


def test_same_key_is_skipped_and_a_changed_one_is_not(tmp_path, source):
    first, made = make(tmp_path / "out", source)
    assert (made, first.reused) == (1, False)
    again, made = make(tmp_path / "out", source)
    assert (made, again.reused) == (0, True)
    assert dict(again) == dict(first)
    assert make(tmp_path / "out", source, config=2)[1] == 1
    source.write_text("changed")
    assert make(tmp_path / "out", source, config=2)[1] == 1


def test_nothing_of_others_is_touched(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ResumeError, match="was not made by `copy`"):
        make(out, source)
    assert (out / "thesis.tex").read_text() == "years of work"
    make(tmp_path / "other", source, stage="other")
    with pytest.raises(ResumeError, match="holds the output of `other`"):
        make(tmp_path / "other", source)
    with pytest.raises(ResumeError, match="is a file"):
        make(source.with_name("in.txt2").parent / "in.txt", tmp_path / "out" / "thesis.tex")


def test_stage_cannot_write_into_its_input(tmp_path):
    corpus.write(tmp_path, [{"text": "a"}], {})
    with pytest.raises(ConfigError, match="holds the input"):
        run_stage("x", tmp_path, inputs=[tmp_path], config=0, work=lambda f: Outcome())


def test_crash_leaves_no_manifest_and_is_made_again(tmp_path, source):
    out = tmp_path / "out"

    def crash(folder):
        (folder / "half").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage("copy", out, inputs=[source], config=1, work=crash)
    assert not (out / MANIFEST).exists()
    assert (out / STARTED).exists()
    report, made = make(out, source)
    assert made == 1
    assert not (out / "half").exists()
    assert report["counts"]["kept"] == 1
    assert not (out / STARTED).exists()


def test_output_of_an_unfinished_run_is_not_read(tmp_path, source):
    out = tmp_path / "all" / "out"

    def crash(folder):
        (folder / "part.jsonl").write_text('{"text": "half"}')
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage("copy", out, inputs=[source], config=1, work=crash)
    for folder in (out, out.parent):
        with pytest.raises(InputError, match=r"out: the run of `copy` .* has not ended"):
            corpus.read([folder])
    assert [row["text"] for row in corpus.read([out / "part.jsonl"])] == ["half"]
    # Others have files of this name too.
    (out / STARTED).write_text('{"when": "yesterday"}')
    assert [row["text"] for row in corpus.read([out])] == ["half"]


def test_kill_while_the_marker_is_written_leaves_room(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "started.json.tmp").write_text('{"stage": "co')
    assert make(tmp_path / "out", source)[1] == 1
    assert not (tmp_path / "out" / "started.json.tmp").exists()


def test_resumable_work_keeps_what_the_same_key_left(tmp_path, source):
    out = tmp_path / "out"

    def work(folder):
        if (folder / "half").exists():
            return Outcome(details={"resumed": True})
        (folder / "half").write_text("half")
        raise RuntimeError

    options = {"inputs": [source], "work": work, "resumable": True}
    with pytest.raises(RuntimeError):
        run_stage("copy", out, config=1, **options)
    with pytest.raises(RuntimeError):
        run_stage("copy", out, config=2, **options)
    assert run_stage("copy", out, config=2, **options)["details"] == {"resumed": True}


def test_verify_finds_every_kind_of_damage(tmp_path, source):
    out = tmp_path / "out"
    make(out, source)
    part = out / "part-00000.parquet"
    whole = part.read_bytes()
    assert verify(out)["checked"] == 1
    for at in range(0, len(whole), max(1, len(whole) // 50)):
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="contents changed"):
            verify(out)
    part.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="bytes, but the manifest says"):
        verify(out)
    part.unlink()
    with pytest.raises(InputError, match="missing"):
        verify(out)


def test_manifest_cannot_name_files_outside(tmp_path, source):
    out = tmp_path / "out"
    make(out, source)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["parts"][0]["name"] = "../in.txt"
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="outside the folder"):
        verify(out)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_torn_manifest_is_named(tmp_path, source, content):
    out = tmp_path / "out"
    make(out, source)
    (out / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        make(out, source)


def test_report_prints_and_saves(tmp_path):
    report = Report({"counts": {"in": 1234}, "rate": 0.123456, "ids": list(range(20))})
    assert "counts.in" in str(report)
    assert "1,234" in str(report)
    assert "[20 entries]" in str(report)
    report.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == dict(report)


def test_input_inside_the_output_is_refused(tmp_path, source):
    out = tmp_path / "out"
    make(out, source)
    part = out / "part-00000.parquet"
    with pytest.raises(ConfigError, match="holds the input"):
        run_stage("copy", out, inputs=[part], config=2, work=lambda f: Outcome())
    assert part.is_file()


def test_failed_replacement_leaves_the_earlier_result(tmp_path, source):
    out = tmp_path / "out"
    first, _ = make(out, source)

    def crash(folder):
        (folder / "half").write_text("half")
        raise InputError("bad row")

    with pytest.raises(InputError):
        run_stage("copy", out, inputs=[source], config=2, work=crash)
    assert verify(out)["ok"]
    again, made = make(out, source)
    assert (made, dict(again)) == (0, dict(first))
    assert make(out, source, config=2)[1] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_resumable_run_left_waits_beside_the_earlier_result(tmp_path, source):
    out = tmp_path / "out"
    make(out, source)
    first = (out / MANIFEST).read_text()

    def work(folder):
        seen = (folder / "half").exists()
        (folder / "half").write_text("half")
        if not seen:
            raise KeyboardInterrupt
        return Outcome(details={"resumed": True})

    def again():
        return run_stage("copy", out, inputs=[source], config=2, work=work, resumable=True)

    with pytest.raises(KeyboardInterrupt):
        again()
    assert (out / MANIFEST).read_text() == first
    assert again()["details"] == {"resumed": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out"]


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("left", [None, "started.json.tmp", STARTED])
def test_kill_while_a_result_is_replaced_loses_neither(tmp_path, source, resumable, left):
    out = tmp_path / "out"
    make(out, source)
    first = (out / MANIFEST).read_text()
    out.rename(tmp_path / ".out.before")
    if left:
        key = stage_key("copy", 2, [source])
        out.mkdir()
        (out / left).write_text(json.dumps({"stage": "copy", "key": key}))
        (out / "half").write_text("half") if left == STARTED else None
    # The earlier result is there for whoever wants it.
    report, made = make(out, source, resumable=resumable)
    assert (report.reused, made, (out / MANIFEST).read_text()) == (True, 0, first)
    found = []

    def fail(folder):
        found.extend(path.name for path in folder.iterdir())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage("copy", out, inputs=[source], config=2, work=fail, resumable=resumable)
    assert (out / MANIFEST).read_text() == first
    assert ("half" in found) == (left == STARTED and resumable)


def test_one_run_at_a_time(tmp_path, source):
    out = tmp_path / "out"

    def work(folder):
        with pytest.raises(ResumeError, match="another run is at work"):
            make(out, source)
        return Outcome()

    run_stage("copy", out, inputs=[source], config=2, work=work)
    assert make(out, source)[1] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out"]


def test_links_to_files_are_what_they_lead_to(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.bin").write_text(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").symlink_to(tmp_path / f"{name}.bin")
        (tmp_path / name / "gone").symlink_to(tmp_path / "nothing")
    assert input_hash(tmp_path / "a") != input_hash(tmp_path / "b")


@pytest.mark.parametrize("parts", ['{"parts": [{"name": "x"}]}', '{"parts": 5}', "{}"])
def test_manifest_of_another_shape_is_not_verified(tmp_path, parts):
    (tmp_path / MANIFEST).write_text(parts)
    with pytest.raises(InputError, match="`parts` is no list"):
        verify(tmp_path)


def test_precious_results_are_never_replaced(tmp_path, source):
    make(tmp_path / "out", source, precious=True)
    with pytest.raises(ResumeError, match=r"setting 1 \(now 2\)"):
        make(tmp_path / "out", source, config=2, precious=True)
    assert make(tmp_path / "out", source, precious=True)[1] == 0
    source.write_text("another")
    with pytest.raises(ResumeError, match="other inputs"):
        make(tmp_path / "out", source, precious=True)


def test_manifest_of_other_software_is_an_ordinary_file(tmp_path, source):
    repository = tmp_path / "extension"
    repository.mkdir()
    (repository / MANIFEST).write_text('{"manifest_version": 3, "name": "x"}')
    (repository / "a.py").write_text("a = 1")
    before = input_hash(repository)
    (repository / "a.py").write_text("a = 2")
    assert input_hash(repository) != before


def test_rows_that_are_all_unusable_are_an_error(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"content": "a"}\n{"content": "b"}\n')
    with pytest.raises(InputError, match=r"no usable row; 2 .* row 1\) because: no `text`"):
        hb.dedup(source, tmp_path / "out")
    with pytest.raises(InputError, match="has not ended"):
        corpus.read([tmp_path / "out"])


def test_evidence_is_verified_too(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a b"}\n{"text": "a b"}\n')
    hb.dedup(source, tmp_path / "out")
    assert verify(tmp_path / "out")["checked"] > 1
    clusters = tmp_path / "out" / "evidence" / "clusters.json"
    clusters.write_text(clusters.read_text().replace("0", "1"))
    with pytest.raises(InputError, match=r"clusters\.json: its contents changed"):
        verify(tmp_path / "out")


def test_a_result_that_lost_a_part_is_made_again(tmp_path, source):
    report, _ = make(tmp_path / "out", source)
    part = tmp_path / "out" / report["parts"][0]["name"]
    for spoil in (part.unlink, lambda: part.write_bytes(b"short")):
        spoil()
        with pytest.raises(InputError, match=r"remove .*out and run it again"):
            verify(tmp_path / "out")
        assert make(tmp_path / "out", source)[1] == 1
        assert verify(tmp_path / "out")["ok"]


def test_what_took_long_loses_nothing_but_the_part(tmp_path, source):
    report, _ = make(tmp_path / "out", source, precious=True)
    (tmp_path / "out" / "checkpoint").write_text("days of work")
    (tmp_path / "out" / report["parts"][0]["name"]).unlink()
    assert make(tmp_path / "out", source, precious=True)[1] == 1
    assert (tmp_path / "out" / "checkpoint").read_text() == "days of work"
    assert verify(tmp_path / "out")["ok"]


def test_an_input_is_what_its_manifest_says(tmp_path, source):
    """Neither less than that, nor what somebody put beside it."""
    report, _ = make(tmp_path / "in", source)
    before = input_hash(tmp_path / "in")
    (tmp_path / "in" / "other.jsonl").write_text('{"text": "foreign"}\n')
    assert input_hash(tmp_path / "in") == before
    for folder in (tmp_path / "in", tmp_path):
        assert [row["text"] for row in corpus.read([folder])] == ["hello"]
    part = tmp_path / "in" / report["parts"][0]["name"]
    part.write_bytes(part.read_bytes() + b" ")
    for look in (lambda: input_hash(tmp_path / "in"), lambda: corpus.read([tmp_path / "in"])):
        with pytest.raises(InputError, match="bytes, but the manifest says"):
            look()
    part.unlink()
    for look in (lambda: input_hash(tmp_path / "in"), lambda: corpus.read([tmp_path / "in"])):
        with pytest.raises(InputError, match="missing, though the manifest names it"):
            look()


def test_an_input_that_changes_during_the_work_is_noticed(tmp_path, source):
    make(tmp_path / "out", source)

    def work(folder):
        source.write_text("changed")
        return Outcome(parts=corpus.write(folder, [{"text": "old"}], {}), rows_in=1, kept=1)

    with pytest.raises(InputError, match="changed while it was being read"):
        run_stage("copy", tmp_path / "out", inputs=[source], config=2, work=work)
    assert [row["text"] for row in corpus.read([tmp_path / "out"])] == ["hello"]


@pytest.mark.parametrize("place", ["started.json", "manifest.json"])
def test_an_earlier_result_survives_a_disk_that_is_full(tmp_path, source, monkeypatch, place):
    make(tmp_path / "out", source)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    write_text = manifest.write_text

    def full(path, text):
        if path.name == place:
            raise StorageError(f"{path}: No space left on device")
        write_text(path, text)

    monkeypatch.setattr(manifest, "write_text", full)
    with pytest.raises(StorageError, match="No space"):
        make(tmp_path / "out", source, config=2)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    assert verify(tmp_path / "out")["ok"]


def test_a_torn_manifest_says_what_to_remove(tmp_path, source):
    make(tmp_path / "out", source)
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(InputError, match=r"remove .*out to begin again"):
        make(tmp_path / "out", source)
