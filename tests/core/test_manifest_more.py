"""What makes a stage another, who may write, and what is on disk when."""

import os
from pathlib import Path

import pytest

from hornbook import corpus, manifest
from hornbook.manifest import Outcome, input_hash, locked, run_stage, stage_key, write_text


def test_what_is_renamed_is_on_disk(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(Path, "replace", lambda a, b: order.append("rename") or replace(a, b))
    write_text(tmp_path / "x.json", "{}")
    assert order == ["fsync", "rename"]


def test_another_version_makes_it_again(tmp_path, monkeypatch):
    (tmp_path / "in").write_text("x")
    before = stage_key("copy", 1, [tmp_path / "in"])
    monkeypatch.setattr(manifest, "__version__", "0.0.0+other")
    assert stage_key("copy", 1, [tmp_path / "in"]) != before


def test_a_change_that_keeps_the_size_is_noticed(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("hello")
    os.utime(source, ns=(1, 1))

    def work(folder):
        source.write_text("jello")
        return Outcome(parts=corpus.write(folder, [{"text": "hello"}], {}), rows_in=1, kept=1)

    with pytest.raises(manifest.InputError, match="changed while it was being read"):
        run_stage("copy", tmp_path / "out", inputs=[source], config=1, work=work)


def test_a_lock_that_its_last_holder_removed_is_taken_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, real, calls = tmp_path / ".out.lock", fcntl.flock, []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(lock, tmp_path / "out"):
        assert lock.exists()
        with pytest.raises(manifest.ResumeError), locked(lock, tmp_path / "out"):
            pass


def test_what_another_key_left_is_not_gone_on_with(tmp_path):
    source, out, seen = tmp_path / "in.txt", tmp_path / "out", []
    source.write_text("hello")

    def run(config, fail):
        def work(folder):
            seen.append(sorted(p.name for p in folder.iterdir() if p.name != "started.json"))
            (folder / f"half-{config}").write_text("half")
            if fail:
                raise KeyboardInterrupt
            return Outcome(parts=corpus.write(folder, [{"text": "a"}], {}), rows_in=1, kept=1)

        run_stage("copy", out, inputs=[source], config=config, work=work, resumable=True)

    run(1, fail=False)
    with pytest.raises(KeyboardInterrupt):
        run(2, fail=True)
    run(3, fail=False)
    assert seen[2] == []


def test_where_a_file_stands_in_an_input_counts(tmp_path):
    for folder, name in (("one", "a"), ("two", "b")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "x.txt").write_text("x")
    assert input_hash(tmp_path / "one") != input_hash(tmp_path / "two")
