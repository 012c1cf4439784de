"""Lines of the Rust core that only Python reaches."""

import json

import numpy as np
import pytest

import hornbook as hb
from hornbook.decontaminate import decontaminate, save_ngrams
from hornbook.packing import pack_tokens


def test_a_torn_line_of_the_journal_does_not_hide_what_follows(tmp_path):
    tok = hb.Tokenizer.train(["abc def " * 20], vocab_size=260, special_tokens=["<|endoftext|>"])
    tok.save(tmp_path / "tokenizer.json")
    ids = np.arange(1, 31, dtype=np.uint16)

    def broken(count):
        for _ in range(count):
            yield ids, np.array([0, 30], np.uint64)
        raise OSError("gone")

    options = {"tokenizer": tmp_path / "tokenizer.json", "identity": "a", "part_bytes": 200}
    journal = tmp_path / "out" / "journal.jsonl"
    with pytest.raises(OSError, match="gone"):
        pack_tokens(broken(10), tmp_path / "out", **options)
    sound = len(journal.read_text().splitlines())
    with journal.open("a") as file:
        file.write('{"parts": [{"na')
    with pytest.raises(OSError, match="gone"):
        pack_tokens(broken(40), tmp_path / "out", **options)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) > sound > 0


def test_what_is_ignored_is_ignored_in_hashed_files_too(tmp_path):
    words = "finds the sum of every second number in a list of lists of whole numbers"
    problem = {
        "task_id": "x/1",
        "prompt": f'def g():\n    """{words}"""\n',
        "canonical_solution": "    return 1\n",
        "entry_point": "g",
        "test": "",
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": f"# {words}\n"}) + "\n")
    save_ngrams(tmp_path / "grams.gz", [tmp_path / "problems.jsonl"])
    options = {"benchmarks": [tmp_path / "grams.gz"]}
    plain = decontaminate(tmp_path / "in.jsonl", tmp_path / "a", **options)
    assert plain["counts"]["kept"] == 0
    kept = decontaminate(tmp_path / "in.jsonl", tmp_path / "b", ignore=[words], **options)
    assert kept["counts"]["kept"] == 1
