"""The report's sentences and tables say what the run holds, whatever its recipe."""

import json

import pytest

from hornbook.commands.runs import _score_tables
from hornbook.errors import InputError
from hornbook.evaluate.problems import read_objects
from hornbook.report import plots, words
from hornbook.report.page import _filter_section, _public


def run(**changes):
    data = {
        "sources": ["stdlib", "pool", "/data/mine"],
        "teacher": {"kind": "procedural", "model": "", "spent": None},
        "levels": {"trained": [1], "tested": [1, 2]},
        "training": {
            "parameters": 182_400,
            "pretrain_tokens": 76_800,
            "finetune_tokens": 30_000,
            "arms": {"mixed": {"filtered": 1.0, "textbooks": 3.0}, "bare": {}},
            "finetuned_arms": ["mixed", "bare"],
        },
        "tokens": {
            "filtered": {"documents": 1, "tokens": 9_600},
            "textbooks": {"documents": 1, "tokens": 100_000},
            "exercises": {"documents": 1, "tokens": 15_000},
        },
    }
    return {**data, **changes}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (9_999, "10.0 k"),
        (76_800, "76.8 k"),
        (182_400, "182 k"),
        (999_900, "1.00 M"),
        (1_300_000_000, "1.30 B"),
    ],
)
def test_amounts_have_three_figures(number, text):
    assert words.amount(number) == text


def test_passes_over_small_sets_are_told():
    assert words.passes(run(), "mixed") == pytest.approx({"filtered": 2.0, "textbooks": 0.576})
    assert words.mixture(run(), "mixed") == "filtered (2 times), textbooks (0.576 times)"
    assert words.mixture(run(), "bare") == ""


def test_an_arm_without_pretraining_is_not_said_to_have_had_some():
    text = words.compared(run())
    assert "bare: no pretraining." in text
    assert "30.0 k tokens of the same exercises, 2 times all of them" in text
    assert "same number of training tokens" not in text
    training = {**run()["training"], "arms": {"mixed": {"filtered": 1.0}}, "finetuned_arms": []}
    text = words.compared(run(training=training))
    assert "no pretraining" not in text
    assert "Finetuned" not in text


def test_provenance_names_only_what_there_was():
    text = words.provenance(run())
    assert "The useful files of the pool, the textbooks, the exercises and the held-out" in text
    assert "Code as it was found: the standard library and /data/mine." in text
    teacher = {"kind": "openai", "model": "gpt-4o-mini"}
    text = words.provenance(run(sources=["/data/mine"], teacher=teacher))
    assert "standard library" not in text
    assert "pool" not in text
    assert "The textbooks and exercises were written by gpt-4o-mini." in text
    assert "cleaner" not in text
    assert "Levels of the grammar trained on: 1; tested: 1, 2." in text


def test_what_has_not_been_trained_is_not_said_to_have_seen_tokens():
    training = {**run()["training"], "pretrain_tokens": None, "finetune_tokens": None}
    assert "saw" not in words.provenance(run(training=training))
    assert (
        words.mixture(run(training=training), "mixed") == "filtered (0 times), textbooks (0 times)"
    )
    assert "several times" in words.compared(run())
    once = {**run()["training"], "pretrain_tokens": 9_600}
    assert "several times" not in words.compared(run(training=once))


def test_calls_that_may_have_been_billed_are_told_apart():
    spent = {"answered": 40, "tokens": 150_222, "usd": 0.1988, "unpriced": (), "lost": 0}
    assert words.spending(spent) == "LLM calls: 40 answers, 150,222 tokens, 0.20 US dollars."
    lost = {"lost": 3, "lost_tokens": 2_000, "lost_usd": 0.031, "unpriced": ("m",)}
    text = words.spending({**spent, **lost})
    assert "40 answers, 150,222 tokens. 3 more" in text
    assert text.endswith("at most 2,000 tokens.")


ZERO = {"pass@1": 0.0, "stderr": 0.0, "low": 0.0, "high": 0.161, "n": 20}


def test_a_score_of_nothing_has_an_interval():
    assert words.percents(ZERO) == "0.0 [0.0, 16.1]"
    assert words.percents(None) == "–"


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_the_terminal_has_intervals_seeds_and_public_benchmarks():
    one = {"seed": 0, "arms": {"a": {"base": ZERO}, "none": {"finetuned": ZERO}}}
    public = {"benchmark": "humaneval", "arm": "a", "stage": "base", "seed": "seed-0", **ZERO}
    held, human = _score_tables({"by_seed": [one], "benchmarks": [public]})
    assert cells(held) == [["a", "none"], ["0.0 (0.0 to 16.1)", "-"], ["-", "0.0 (0.0 to 16.1)"]]
    assert human.title == "pass@1 on humaneval, %"
    two = {"seed": 1, "arms": {"a": {"base": {**ZERO, "pass@1": 0.5}}, "none": {}}}
    [held] = _score_tables({"by_seed": [one, two], "benchmarks": []})
    assert cells(held)[1][0] == "25.0 (seeds: 0.0, 50.0)"


def test_rows_of_seeds_can_be_told_apart():
    public = {"benchmark": "humaneval", "arm": "a", "stage": "base", **ZERO}
    page = _public({"benchmarks": [{**public, "seed": f"seed-{i}"} for i in (7, 8)]})
    assert "<td>7</td>" in page or "<td class=n>7</td>" in page
    assert "<td>8</td>" in page or "<td class=n>8</td>" in page


def test_the_filter_says_how_few_labels_were_met():
    held = {
        "n": 30,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "accuracy": 1.0,
        "calibration": [
            {"n": 28, "share_useful": 0.0},
            {"n": 2, "share_useful": 1.0},
            {"n": 0, "share_useful": None},
        ],
    }
    assert words.judged("held out", held)[:4] == ["held out", "30", "2", "100.0"]
    info = {"labels": 150, "kept": 1, "in": 2, "held_out": held, "out_of_bag": {**held, "n": 120}}
    page = _filter_section({"filter": info})
    assert "out of bag" in page
    assert "<td class=n>120</td>" in page


@pytest.mark.parametrize("line", ['{"task_id": "a', "12", '"words"'])
def test_a_torn_line_of_a_result_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"task_id": "\u2028"}, ensure_ascii=False) + "\n" + line)
    rows = read_objects(path)
    assert next(rows)[1] == {"task_id": "\u2028"}
    with pytest.raises(InputError, match=r"results\.jsonl, line 2: .*run the recipe again"):
        next(rows)


def test_pictures_hold_every_arm_and_no_empty_panel():
    curve = {"base": [[step, 3.0 / step] for step in range(1, 9)]}
    drawn = plots.loss_curves({f"arm{i}": curve for i in range(9)})
    assert all(f">arm{i}<" in drawn for i in range(9))
    assert "finetuning" not in drawn
    one = plots.loss_curves({"arm": {"base": [[1, 2.0]], "finetuned": [[1, 1.0]]}})
    assert ">pretraining<" in one
    assert ">finetuning<" in one
    arms = {f"raw+filtered+textbooks_mix_{i}": {"base": ZERO} for i in range(8)}
    drawn = plots.pass_bars([{"seed": 0, "arms": arms}])
    assert drawn.count("rotate(-90") > 8
