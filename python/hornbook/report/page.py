"""The report as one HTML page: no scripts, no outside references, readable when printed."""

from html import escape
from typing import Any

from hornbook import webpage
from hornbook.report import plots, words


def render(data: dict[str, Any]) -> str:
    """The page.

    Args:
        data: What `collect` gathered, with `diversity`.
    """
    sections = [
        _head(data),
        _result(data),
        _public(data),
        _data_section(data),
        _filter_section(data),
        _contamination(data),
        _samples(data),
        _cost(data),
        _foot(data),
    ]
    body = "\n".join(section for section in sections if section)
    return webpage.page(f"Hornbook: {data['name']}", body)


def _number(value: Any, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(value: Any, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _table(head: list[str], rows: list[list[Any]], left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""

    def cell(tag: str, index: int, value: Any) -> str:
        kind = "" if index < left else " class=n"
        return f"<{tag}{kind}>{escape(str(value))}</{tag}>"

    lines = ["".join(cell("th", i, v) for i, v in enumerate(head))]
    lines += ["".join(cell("td", i, v) for i, v in enumerate(row)) for row in rows]
    return "<div class=scroll><table>" + "".join(f"<tr>{line}" for line in lines) + "</table></div>"


def _score(scores: dict[str, Any], stage: str) -> Any:
    return scores.get(stage, {}).get("pass@1")


def _head(data: dict[str, Any]) -> str:
    training = data["training"]
    cards = [
        ("parameters in each model", _number(training["parameters"])),
        ("tokens seen in pretraining", words.amount(training["pretrain_tokens"])),
        ("tokens seen in finetuning", words.amount(training["finetune_tokens"])),
    ]
    scored = [s for arm in data["arms"].values() for s in arm.values()]
    if scored:
        cards.append(("held-out problems", _number(scored[0]["n"])))
    seconds = sum(stage["seconds"] for stage in data["stages"])
    cards.append(("process time, all stages", f"{seconds / 60:.1f} min"))
    boxes = "".join(
        f"<div class=card><b>{value}</b>{escape(label)}</div>" for label, value in cards
    )
    lacking, note = data["lacking"], ""
    if lacking:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        names = ", ".join(lacking[:8])
        note = f"<p><b>This run is not finished.</b> Not done: {escape(names)}{more}.</p>"
    return (
        f"<h1>Hornbook: the recipe <em>{escape(data['name'])}</em></h1>"
        f"<p class='lead soft'>{escape(data['description'])}</p>{note}"
        f"<div class=cards>{boxes}</div>"
    )


def _result(data: dict[str, Any]) -> str:
    if not any(data["arms"].values()):
        return ""
    rows = [
        [
            arm,
            words.mixture(data, arm) or "nothing",
            *(words.percents(scores.get(stage)) for stage in ("base", "finetuned")),
        ]
        for arm, scores in data["arms"].items()
    ]
    seeds = data["by_seed"]
    text = (
        f"<h2>What the data did</h2><p>{escape(words.compared(data))}</p>"
        f"<figure>{plots.pass_bars(seeds)}<figcaption>"
    )
    text += (
        "Share of held-out problems solved at the first, greedy attempt, with 95% Wilson intervals."
        if len(seeds) == 1
        else f"Mean over {len(seeds)} training seeds; dots are the seeds."
    )
    text += " The form of the paper's Figure 2.1.</figcaption></figure>"
    which = f" (seed {seeds[0]['seed']})" if len(seeds) > 1 else ""
    head = ["arm", "pretrained on", f"base{which}, % [95%]", f"finetuned{which}, % [95%]"]
    text += _table(head, rows, left=2)
    if len(seeds) > 1:
        head = ["arm", *(f"seed {s['seed']}: base → finetuned, %" for s in seeds)]
        body = [
            [
                arm,
                *(
                    " → ".join(_plain_percent(s["arms"][arm], k) for k in ("base", "finetuned"))
                    for s in seeds
                ),
            ]
            for arm in data["arms"]
        ]
        text += _table(head, body)
    if data["loss"]:
        text += f"<h3>Loss</h3><figure>{plots.loss_curves(data['loss'])}<figcaption>"
        text += (
            "Pretraining losses of different arms are on different data and do not compare; "
            "finetuning losses do.</figcaption></figure>"
        )
    return text


def _plain_percent(scores: dict[str, Any], stage: str) -> str:
    value = _score(scores, stage)
    return "–" if value is None else f"{100 * value:.1f}"


def _public(data: dict[str, Any]) -> str:
    rows = [
        [
            r["benchmark"],
            r["arm"],
            r["stage"],
            r["seed"].removeprefix("seed-"),
            words.percents(r),
            r["n"],
        ]
        for r in data["benchmarks"]
    ]
    if not rows:
        return ""
    head = ["benchmark", "arm", "model", "seed", "pass@1, % [95%]", "problems"]
    return "<h2>Public benchmarks</h2>" + _table(head, rows, left=3)


def _data_section(data: dict[str, Any]) -> str:
    if not data["tokens"]:
        return ""
    rows = []
    for name, counts in data["tokens"].items():
        metrics = data["diversity"].get(name, {})
        structure = metrics.get("structure", {})
        rows.append(
            [
                name,
                _number(counts["documents"]),
                words.amount(counts["tokens"]),
                _number(structure.get("functions")),
                _number(structure.get("richness")),
                _number(structure.get("exp_shannon")),
                _number(metrics.get("words", {}).get("distinct_4"), 3),
                _number(metrics.get("compression", {}).get("ratio"), 1),
            ]
        )
    text = "<h2>The data</h2>" + _table(
        [
            "data set",
            "documents",
            "tokens",
            "functions",
            "structures",
            "effective",
            "4-grams",
            "zstd",
        ],
        rows,
    )
    text += (
        "<p class=soft>Structures: distinct syntax trees of functions, without names, literals and "
        "comments; effective: exp of their Shannon entropy, so a set that repeats a few of them "
        "scores low however large it is. 4-grams: share of word 4-grams that are distinct. zstd: "
        "compression ratio over long windows; higher is more repetition.</p>"
    )
    dedup = next((s for s in data["stages"] if s["name"] == "dedup"), None)
    if dedup:
        dropped = ", ".join(f"{n:,} {why}" for why, n in dedup["dropped"].items()) or "nothing"
        text += (
            f"<p><b>Deduplication</b> read {dedup['in']:,} files and kept {dedup['kept']:,}; "
            f"dropped: {escape(dropped)}. Each removal is verified against a kept file.</p>"
        )
    if data["decontamination"]:
        rows = [
            [
                ", ".join(row["against"]),
                row["data"],
                _number(row["ngram"]),
                _number(row["in"]),
                _number(row["kept"]),
                ", ".join(f"{n:,} by {why}" for why, n in row["dropped"].items() if n) or "none",
            ]
            for row in data["decontamination"]
        ]
        head = ["against", "data set", "words in a row*", "in", "kept", "removed"]
        text += "<h3>Decontamination</h3>" + _table(head, rows, left=2)
        text += "<p class=soft>* Or all of a problem's text, where it has fewer.</p>"
    coverage = data["coverage"]
    if coverage.get("topics"):
        cells = [n for row in coverage["sections"] for n in row]
        filled = sum(1 for n in cells if n)
        rows = [
            [topic, *counts]
            for topic, counts in zip(coverage["topics"], coverage["sections"], strict=True)
        ]
        text += (
            f"<h3>Textbook coverage</h3><p>{filled:,} of {coverage['pairs']:,} topic and audience "
            f"pairs have sections, the fullest {max(cells):,}.</p>"
            f"<details><summary>Sections by topic and audience</summary>"
            f"{_table(['topic', *coverage['audiences']], rows)}</details>"
        )
    return text


def _learned(info: dict[str, Any]) -> str:
    """How many labels a forest learned from, and how many were kept from it to judge it by."""
    labels, held = info.get("labels"), (info.get("held_out") or {}).get("n", 0)
    if labels is None or not held:
        return f"{_number(labels)} labels"
    return f"{labels - held:,} labels (and was judged by {held:,} others)"


def _filter_section(data: dict[str, Any]) -> str:
    info = data["filter"]
    if not info:
        return ""
    text = (
        "<h2>The quality filter</h2>"
        f"<p>A random forest learned {_learned(info)} of educational value and kept "
        f"{_number(info['kept'])} of {_number(info['in'])} files, "
        f"{_percent(info.get('kept_text_share'))} of the text (the paper: about 17 %).</p>"
    )
    # A handful of useful labels makes any share; how many there were stands beside it.
    rows = [
        words.judged(name, info[key])
        for key, name in (("held_out", "held out"), ("out_of_bag", "out of bag"))
        if info.get(key)
    ]
    if rows:
        head = ["on labels it did not learn from", "labels", "useful"]
        text += _table([*head, "precision, %", "recall, %", "f1, %", "accuracy, %"], rows)
    if info.get("kept_by_source"):
        text += "<p>Kept by source: " + ", ".join(
            f"{escape(source)} {kept:,} of {total:,}"
            for source, (kept, total) in info["kept_by_source"].items()
        )
        text += ".</p>"
    truth = info.get("pool_truth")
    if truth:
        text += (
            "<p>The procedural files of the pool know what they are, which neither the labels nor "
            f"the forest could see: of those kept, {_percent(truth['precision'])} are useful; of "
            f"the useful ones, {_percent(truth['recall'])} were kept.</p>"
        )
        rows = [
            [kind, _number(n), _number(truth["kept_by_kind"].get(kind, 0))]
            for kind, n in sorted(truth["files_by_kind"].items())
        ]
        text += _table(["kind of procedural file", "files", "kept"], rows)
    return text


def _contamination(data: dict[str, Any]) -> str:
    rows = [
        [
            r["arm"],
            r["stage"],
            f"{r['tau']:.2f}",
            f"{r['similar']['n']}",
            _percent(r["similar"]["pass@1"]),
            f"{r['non-similar']['n']}",
            _percent(r["non-similar"]["pass@1"]),
        ]
        for r in data["contamination"].get("rows", [])
        if r["stage"] == "finetuned" and r["seed"] == f"seed-{data['seed']}"
    ]
    if not rows:
        return ""
    head = ["arm", "model", "tau", "similar", "pass@1", "not similar", "pass@1"]
    return (
        "<h2>Could memory explain it?</h2><p>Held-out problems split by how closely the syntax "
        "tree of their solution matches any exercise, as in the paper's Table 3. These problems "
        "are small and built from shared parts, so high match rates are common; what counts is "
        "the score where the match is low.</p><details><summary>Scores by similarity</summary>"
        f"{_table(head, rows, left=2)}</details>"
    )


def _samples(data: dict[str, Any]) -> str:
    if not data["samples"]:
        return ""
    text = (
        "<h2>The same problems, every model</h2>"
        "<p class=soft>Chosen by position in the file, not by outcome.</p>"
    )
    for sample in data["samples"]:
        text += (
            f"<h3>{escape(sample['task_id'])}</h3><pre>{escape(sample['prompt'].rstrip())}</pre>"
        )
        boxes = []
        for answer in sample["answers"]:
            kind = "pass" if answer["passed"] else "fail"
            label = "passed" if answer["passed"] else escape(str(answer["result"]))
            boxes.append(
                f"<div><span class={kind}>{label}</span> "
                f"<span class=soft>{escape(answer['arm'])}, {escape(answer['stage'])}</span>"
                f"<pre>{escape(answer['completion'].rstrip()) or ' '}</pre></div>"
            )
        solution = escape(sample["reference"].rstrip())
        reference = f"<div><span class=soft>reference</span><pre>{solution}</pre></div>"
        text += f"<div class=answers>{reference}{''.join(boxes)}</div>"
    return text


def _cost(data: dict[str, Any]) -> str:
    rows = [
        [
            s["name"],
            _number(s["seconds"], 1),
            _number(s["peak_mb"]),
            _number(s["in"]),
            _number(s["kept"]),
        ]
        for s in data["stages"]
    ]
    if not rows:
        return ""
    spent = data["teacher"]["spent"]
    return (
        f"<h2>Where the time went</h2><figure>{plots.time_bars(data['stages'])}</figure>"
        "<details><summary>Every step</summary>"
        + _table(["step", "seconds", "peak memory, MB", "rows in", "rows kept"], rows)
        + "</details>"
        + (f"<p>{escape(words.spending(spent))}</p>" if spent else "")
    )


def _foot(data: dict[str, Any]) -> str:
    machine = data["machine"]
    return (
        f"<h2>What this is, and is not</h2><p>{escape(words.provenance(data))}</p>"
        f"<footer>hornbook {escape(machine['hornbook'])}, Python {escape(machine['python'])}, "
        f"{escape(machine['platform'])}, {machine['cpus']} CPUs; seed {data['seed']}. "
        "Numbers are in <code>report.json</code>.</footer>"
    )
