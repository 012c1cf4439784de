"""What a filter did to a corpus, from its scores files, and the page that shows it."""

import html
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hornbook import _core, webpage
from hornbook.quality.stats import rank_correlation

EXAMPLES = 5
"""Documents of the highest scores, and of the lowest, that the report shows."""
MOST_ROWS = 30
"""Values of a column that the report lists: those with the most text."""
EXCERPT = 1_200
"""Characters of a document on the page."""


class Tally:
    """The scores files of a stage, counted in memory that does not grow with them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._histograms, self._groups, high, low, self._sample = _core.tally(list(paths), EXAMPLES)
        self._places = {"highest": high, "lowest": low}

    @property
    def totals(self) -> list[int]:
        """Documents, bytes, documents kept, bytes kept."""
        counts = list(self._groups.get("length", {}).values())
        return [sum(count[at] for count in counts) for at in range(4)]

    @property
    def highest(self) -> list[dict[str, Any]]:
        """Ids and scores of the best documents."""
        return [{"id": name, "score": score} for score, _, _, name in self._places["highest"]]

    @property
    def lowest(self) -> list[dict[str, Any]]:
        """Ids and scores of the worst documents."""
        return [{"id": name, "score": score} for score, _, _, name in self._places["lowest"]]

    def rule(self, of_all: float | None, of_each: float | None) -> tuple[float, dict[str, float]]:
        """The threshold that keeps about a share of the text, of all or of each source.

        Scores are counted in 10,000 steps; documents of one step stay or go together.
        """
        if of_each is not None:
            own = {
                source: _cut(size, lowest, of_each)
                for source, (_, size, lowest) in sorted(self._histograms.items())
            }
            # What has no source of its own in the table is judged by the table's joint entry.
            rest = own.get("(other)", own.get("", 0.5))
            return rest, {source: cut for source, cut in own.items() if source}
        assert of_all is not None
        if not self._histograms:
            return 0.5, {}
        import numpy as np

        sizes = np.sum([size for _, size, _ in self._histograms.values()], axis=0)
        lowest = np.min([low for _, _, low in self._histograms.values()], axis=0)
        return _cut(sizes, lowest, of_all), {}

    def curve(self) -> list[dict[str, float]]:
        """Shares of documents and of text that thresholds from 0 to 1 would keep."""
        import numpy as np

        if not self._histograms:
            return []
        documents = np.sum([count for count, _, _ in self._histograms.values()], axis=0)
        sizes = np.sum([size for _, size, _ in self._histograms.values()], axis=0)
        # The last step of all holds the scores of 1.
        starts = [min(at * _core.SCORE_BINS // 20, _core.SCORE_BINS - 1) for at in range(21)]
        return [
            {
                "threshold": at / 20,
                "documents": float(documents[start:].sum() / max(1, documents.sum())),
                "text": float(sizes[start:].sum() / max(1, sizes.sum())),
            }
            for at, start in enumerate(starts)
        ]

    def keep_rates(self) -> dict[str, list[dict[str, Any]]]:
        """By source, licence, repository and length: what was kept where there is most text."""
        return {
            column: [
                {
                    "value": value,
                    "documents": documents,
                    "kept": kept,
                    "keep_rate": kept / documents,
                    "text_bytes": text,
                    "kept_text_bytes": kept_text,
                }
                for value, (documents, text, kept, kept_text) in sorted(
                    values.items(), key=lambda item: (-item[1][1], item[0])
                )[:MOST_ROWS]
            ]
            for column, values in sorted(self._groups.items())
        }

    def correlations(self) -> dict[str, float | None]:
        """What the score goes along with, in a sample of 50,000 documents."""
        scores, sizes, shares = self._sample
        return {
            "correlation_with_length": rank_correlation(scores, sizes),
            "correlation_with_docstring_share": rank_correlation(scores, shares),
        }

    def examples(self, units: _core.Units, threads: int) -> dict[str, list[tuple[str, float, str]]]:
        """Id, score and beginning of the highest and lowest documents."""
        rows: dict[int, list[int]] = {}
        for places in self._places.values():
            for _, unit, row, _ in places:
                rows.setdefault(unit, []).append(row)

        def read(unit: int) -> dict[tuple[int, int], str]:
            return {(unit, row): text for row, text in units.excerpts(unit, rows[unit], EXCERPT)}

        texts: dict[tuple[int, int], str] = {}
        with ThreadPoolExecutor(threads) as pool:
            for found in pool.map(read, sorted(rows)):
                texts.update(found)
        return {
            end: [(name, score, texts.get((unit, row), "")) for score, unit, row, name in places]
            for end, places in self._places.items()
        }


def _cut(sizes: Any, lowest: Any, share: float) -> float:
    """The score from which about a share of the text is kept."""
    import numpy as np

    filled = np.flatnonzero(sizes)
    if not len(filled):
        return 0.5
    above = np.cumsum(sizes[filled][::-1])[::-1].astype(np.float64)
    at = int(np.argmin(np.abs(above - share * above[0])))
    return float(lowest[filled[at]])


def page(report: dict[str, Any], examples: dict[str, list[tuple[str, float, str]]]) -> str:
    """The report as one HTML file that needs nothing else."""
    parts = [
        "<h1>Quality filter</h1>",
        f"<p>{report['kept_text_share']:.1%} of the text is kept, from a score of "
        f"{report['threshold']:.4f}. Features: {html.escape(report['embedder'])}.</p>",
    ]
    held = report.get("held_out")
    if held:
        parts += ["<h2>On labels it has not seen</h2>", _held_out(held, report.get("out_of_bag"))]
    parts += [
        "<h2>What the score goes along with</h2>",
        _table(["over the corpus", "rank correlation"], list(report["corpus"].items())),
        "<h2>Text kept by threshold</h2>",
        _curve(report["curve"], report["threshold"]),
    ]
    for column, rows in report["keep_rate"].items():
        cells = [
            (
                row["value"],
                f"{row['documents']:,}",
                f"{row['keep_rate']:.1%}",
                f"{row['text_bytes']:,}",
            )
            for row in rows
        ]
        parts += [
            f"<h2>Kept by {column}</h2>",
            _table([column, "documents", "kept", "bytes"], cells),
        ]
    parts += ["<h2>Highest and lowest</h2>", _pairs(examples)]
    css = (
        "main{max-width:75rem}.pair table{table-layout:fixed;width:100%}code,td{overflow-wrap:"
        "anywhere}pre{font-size:12px;max-height:24em;overflow:auto}svg{max-width:100%;height:auto}"
    )
    return webpage.page("Quality filter", "\n".join(parts), css)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else html.escape(str(value))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_show(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = line("th", header) + "".join(line("td", row) for row in rows)
    return f"<div class=scroll><table>{lines}</table></div>"


def _held_out(held: dict[str, Any], bag: dict[str, Any] | None) -> str:
    names = ("n", "precision", "recall", "f1", "accuracy", "kappa")
    scores = _table(
        ["", "held out", "out of bag"],
        [(name, held[name], bag[name] if bag else None) for name in names],
    )
    others = _table(
        ["rank correlation of", "with", ""],
        [
            ("score", "annotator", held["correlation_with_annotator"]),
            ("score", "length", held["correlation_with_length"]),
            ("score", "docstring share", held["correlation_with_docstring_share"]),
            ("annotator", "length", held["annotator_correlation_with_length"]),
            ("annotator", "docstring share", held["annotator_correlation_with_docstring_share"]),
        ],
    )
    rule = held["docstring_rule"]
    warning = (
        f"<p>The rule <q>has a docstring</q> alone: F1 {_show(rule['f1'])}; it agrees with the "
        f"forest with a kappa of {_show(rule['agreement_with_forest'])}.</p>"
    )
    bins = _table(
        ["score", "labels", "mean score", "share educational"],
        [
            (
                f"{row['from']:.1f} to {row['to']:.1f}",
                row["n"],
                row["mean_score"],
                row["share_useful"],
            )
            for row in held["calibration"]
        ],
    )
    return scores + others + warning + bins


def _curve(curve: Sequence[dict[str, float]], threshold: float) -> str:
    if not curve:
        return "<p>No documents.</p>"

    def line(name: str, colour: str) -> str:
        points = " ".join(f"{400 * p['threshold']:.1f},{200 - 200 * p[name]:.1f}" for p in curve)
        return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>"

    ticks = "".join(
        f"<text x='{400 * at}' y='216' font-size='12' text-anchor='middle'>{at:g}</text>"
        f"<text x='-6' y='{204 - 200 * at:g}' font-size='12' text-anchor='end'>{at:.0%}</text>"
        for at in (0, 0.5, 1)
    )
    return (
        "<svg viewBox='-50 -10 460 260' width='560' role='img' aria-label='text kept by threshold'>"
        f"<rect width='400' height='200' fill='none' stroke='#999'/>{ticks}"
        f"{line('text', '#06c')}{line('documents', '#c60')}"
        f"<line x1='{400 * threshold:.1f}' x2='{400 * threshold:.1f}' y2='200' stroke='#999' "
        "stroke-dasharray='4'/><text y='238' font-size='13'>threshold; share kept of text "
        "(blue) and of documents (orange)</text></svg>"
    )


def _pairs(examples: dict[str, list[tuple[str, float, str]]]) -> str:
    def cell(example: tuple[str, float, str] | None) -> str:
        if example is None:
            return "<td></td>"
        name, score, text = example
        return (
            f"<td>{score:.3f} <code>{html.escape(name)}</code><pre>{html.escape(text)}</pre></td>"
        )

    high, low = examples["highest"], examples["lowest"]
    rows = [
        "<tr>"
        + cell(high[at] if at < len(high) else None)
        + cell(low[at] if at < len(low) else None)
        + "</tr>"
        for at in range(max(len(high), len(low)))
    ]
    return (
        "<div class=pair><table><tr><th>Highest</th><th>Lowest</th></tr>"
        + "".join(rows)
        + "</table></div>"
    )
