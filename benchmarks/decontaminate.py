"""How fast are the 13-gram scan and the AST match rate, and are their answers those of slow twins?

Scan: Python files of this machine as JSON lines and as Parquet, against HumanEval and MBPP, one
thread. The twin is a Python loop over sets of word tuples; the hits of both must be equal, with
one document in a hundred carrying a planted copy of a problem. AST: functions of HumanEval and
MBPP against the functions of the corpus, rates of 0.8 or more. Peers: Python's `ast` with
Levenshtein's and rapidfuzz's C distances on strings of one symbol a node, a call a pair, without
and with a cut-off, and rapidfuzz's `cdist`. The pairs found are held against a plain table of the
same symbols. CPU seconds; engines in turn.

    HORNBOOK_DATA=data/ python benchmarks/decontaminate.py --megabytes 200
"""

import argparse
import ast
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from data import documents

from hornbook import _core
from hornbook.contaminants import NgramRule, Problem, benchmark_path, load
from hornbook.decontaminate import SyntaxRule, decontaminate, scan

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = ("humaneval", "mbpp")
TAU = 0.8


def measure(engines: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each engine, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.process_time()
            engine()
            seconds[name].append(round(time.process_time() - start, 4))
    return seconds


def row(name: str, seconds: list[float], amount: float, unit: str, **more: Any) -> dict[str, Any]:
    """Prints and returns a line of the table."""
    rate = amount / median(seconds)
    shown = f"{rate:14,.1f}" if rate < 1e5 else f"{rate:14,.0f}"
    print(f"  {name:<46}{shown} {unit}")
    return {"cpu_seconds": seconds, unit: round(rate, 2), **more}


# The 13-gram scan


def is_word(text: str) -> list[str]:
    """The token rule, by the character classes of the `regex` package."""
    import regex

    found = regex.findall(r"(?:[A-Za-z0-9_]|(?=[^\x00-\x7f])[\p{Alphabetic}\p{N}])+", text)
    return ["".join(c.lower() for c in word) for word in found]


def twin(texts: list[str], problems: list[Problem], n: int) -> set[tuple[int, str]]:
    """What the scan should find, the slow way: `(document, problem)`."""

    def grams(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    def counts(gram: tuple[str, ...]) -> bool:
        telling = {word for word in gram if sum(c.isalpha() for c in word) > 1}
        return 3 * len(telling) >= len(gram)

    owners: dict[tuple[str, ...], set[str]] = {}
    for problem in problems:
        for text in (problem.docstring, problem.program):
            words = is_word(text)
            short = 8 <= len(words) < n
            for gram in {tuple(words)} if short else grams(words):
                if counts(gram):
                    owners.setdefault(gram, set()).add(problem.task_id)
    sizes = {len(gram) for gram in owners}
    found = set()
    for place, text in enumerate(texts):
        words = is_word(text)
        for size in sizes:
            for i in range(len(words) - size + 1):
                for item in owners.get(tuple(words[i : i + size]), ()):
                    found.add((place, item))
    return found


def bench_scan(texts: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """The scan from files and from memory; hits as the twin's."""
    import pyarrow
    import pyarrow.parquet

    rule = NgramRule()
    contaminants = load([benchmark_path(name) for name in BENCHMARKS], rule)
    problems = contaminants.problems
    draw = random.Random(0)
    for place in range(0, len(texts), 100):
        problem = draw.choice(problems)
        copied = draw.choice([problem.docstring, problem.program])
        cut = draw.randrange(len(texts[place]) + 1)
        texts[place] = f"{texts[place][:cut]}\n{copied}\n{texts[place][cut:]}"
    jsonl, parquet = folder / "corpus.jsonl", folder / "corpus.parquet"
    with jsonl.open("w", encoding="utf-8") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"id": str(i), "text": text}, ensure_ascii=False) + "\n")
    table = pyarrow.table({"id": [str(i) for i in range(len(texts))], "text": texts})
    pyarrow.parquet.write_table(table, parquet, compression="zstd", row_group_size=1024)
    size = sum(len(text.encode()) for text in texts) / 1e6
    lines = jsonl.stat().st_size / 1e6

    start = time.process_time()
    expected = twin(texts, problems, rule.ngram)
    slow = time.process_time() - start
    for path in (jsonl, parquet):
        hits = scan([path], benchmarks=BENCHMARKS, most=10**9, threads=1)["hits"]
        found = {(int(hit["id"]), hit["item"]) for hit in hits}
        assert found == expected, f"hits differ: {found ^ expected}"

    grams = contaminants.ngrams(rule)
    names = [problem.task_id for problem in problems]
    place = iter(range(1000))
    seconds = measure(
        {
            "memory": lambda: grams.scan(texts, 1),
            "index ready": lambda: grams.scan_files([jsonl], [], names, 0, 1, None),
            "jsonl": lambda: scan([jsonl], benchmarks=BENCHMARKS, threads=1),
            "parquet": lambda: scan([parquet], benchmarks=BENCHMARKS, threads=1),
            "stage": lambda: decontaminate(
                [parquet], folder / f"out-{next(place)}", benchmarks=BENCHMARKS, threads=1
            ),
        },
        rounds,
    )
    print(f"\n13-gram scan against {len(problems)} problems, {len(grams)} n-grams, {size:.0f} MB")
    unit = "MB per CPU second"
    return {
        "megabytes_of_text": round(size, 1),
        "documents": len(texts),
        "ngrams": len(grams),
        "hits": len(expected),
        "hits_equal_to_the_twin": True,
        "ours, texts in memory": row("ours, texts in memory", seconds["memory"], size, unit),
        "ours, JSON lines from disk, index ready": row(
            "ours, JSON lines from disk, index ready", seconds["index ready"], lines, unit
        ),
        "ours, JSON lines from disk": row(
            "ours, JSON lines from disk (MB of file)", seconds["jsonl"], lines, unit
        ),
        "ours, Parquet from disk": row(
            "ours, zstd Parquet from disk (MB of text)", seconds["parquet"], size, unit
        ),
        "ours, the stage": row(
            "ours, the stage: Parquet in, Parquet out", seconds["stage"], size, unit
        ),
        "Python twin": row("Python twin, texts in memory", [round(slow, 2)], size, unit),
    }


# The AST match rate


def python_symbols(source: str, entry: str | None = None) -> list[str]:
    """Each function of a source as a string of one character a node, by Python's own parser."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    named = [n for n in functions if n.name == entry] or functions
    return [_preorder(function) for function in named]


_numbers: dict[type, str] = {}


def _preorder(root: ast.AST) -> str:
    symbols: list[str] = []
    pending = [root]
    while pending:
        node = pending.pop()
        symbols.append(_numbers.setdefault(type(node), chr(65 + len(_numbers))))
        below = [
            child
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.Load | ast.Store | ast.Del)
        ]
        pending.extend(reversed(below))
    return "".join(symbols)


def plain_rate(a: list[int], b: list[int]) -> float:
    """The rate by the whole table."""
    table = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, table[0] = table[0], i
        for j, y in enumerate(b, 1):
            above, table[j] = table[j], min(above + (x != y), table[j] + 1, table[j - 1] + 1)
    return 1 - table[-1] / max(len(a), len(b))


def check_rates(index: _core.SyntaxIndex, texts: list[str], problems: list[Problem]) -> int:
    """Every rate of a sample held against the plain table; how many pairs that were."""
    reading = SyntaxRule().reading()

    def functions(source: str, entry: str | None = None) -> list[list[int]]:
        symbols, found = _core.syntax_symbols(source, reading)
        named = [f for f in found if f[0] == entry] or found
        return [symbols[start:end] for _, _, start, end in named]

    references = [functions(p.program, p.entry_point) for p in problems]
    found = {
        (text, item): rate
        for text, item, rate, _, _ in index.matches(index.functions(texts, 1), TAU, 1)
    }
    pairs = 0
    for place, text in enumerate(texts):
        for item, own in enumerate(references):
            best = 0.0
            for function in functions(text):
                for reference in own:
                    pairs += 1
                    longest = max(len(function), len(reference))
                    if min(len(function), len(reference)) >= TAU * longest:
                        best = max(best, plain_rate(function, reference))
            assert found.get((place, item), 0.0) == (best if best >= TAU else 0.0), (place, item)
    return pairs


def bench_ast(texts: list[str], rounds: int) -> dict[str, Any]:
    """Pairs a second, trees given; and end to end."""
    import Levenshtein
    import rapidfuzz
    from rapidfuzz import distance

    problems = load([benchmark_path(name) for name in BENCHMARKS], NgramRule()).problems
    index = _core.SyntaxIndex(
        [(p.task_id, p.program, p.entry_point) for p in problems], SyntaxRule().reading(), 1
    )
    checked = check_rates(index, [t for t in texts if len(t) < 3000][:25], problems[:300])
    ours = index.functions(texts, 1)
    references = [s for p in problems for s in python_symbols(p.program, p.entry_point)]
    functions = [s for text in texts for s in python_symbols(text)]
    few = functions[:: max(1, len(functions) // 1500)]

    def levenshtein() -> None:
        for a in few:
            for b in references:
                _ = 1 - Levenshtein.distance(a, b) / max(len(a), len(b)) >= TAU

    def rapidfuzz_cutoff() -> None:
        for a in few:
            for b in references:
                _ = distance.Levenshtein.normalized_similarity(a, b, score_cutoff=TAU)

    def cdist() -> None:
        rapidfuzz.process.cdist(
            few,
            references,
            scorer=distance.Levenshtein.normalized_similarity,
            score_cutoff=TAU,
            workers=1,
        )

    def end_to_end_ours() -> None:
        index.matches(index.functions(sample, 1), TAU, 1)

    def end_to_end_python() -> None:
        for text in sample:
            for a in python_symbols(text):
                for b in references:
                    _ = 1 - Levenshtein.distance(a, b) / max(len(a), len(b)) >= TAU

    # Three rounds inside one, so that the clock has something to count.
    seconds = measure(
        {
            "ours": lambda: [index.matches(ours, TAU, 1) for _ in range(3)],
            "Levenshtein": levenshtein,
            "rapidfuzz": rapidfuzz_cutoff,
            "cdist": cdist,
        },
        rounds,
    )
    seconds["ours"] = [round(value / 3, 5) for value in seconds["ours"]]
    sample = texts[:: max(1, len(texts) // 150)]
    whole = measure({"ours": end_to_end_ours, "python": end_to_end_python}, rounds)
    pairs = len(few) * len(references)
    used = sum(len(python_symbols(p.program, p.entry_point)) for p in problems)
    our_pairs = len(ours) * used
    print(
        f"\nAST match rate of {TAU} or more, {used} references; {checked:,} pairs held to a table"
    )
    unit = "pairs per CPU second"
    rows = {
        "ours": row(f"ours ({len(ours):,} functions)", seconds["ours"], our_pairs, unit),
        "ast + Levenshtein": row(
            f"ast + Levenshtein.distance, a call a pair ({len(few):,})",
            seconds["Levenshtein"],
            pairs,
            unit,
        ),
        "ast + rapidfuzz, cut-off": row(
            "ast + rapidfuzz normalized_similarity, cut-off", seconds["rapidfuzz"], pairs, unit
        ),
        "ast + rapidfuzz cdist, cut-off": row(
            "ast + rapidfuzz.process.cdist, cut-off", seconds["cdist"], pairs, unit
        ),
    }
    inside = sum(len(python_symbols(text)) for text in sample) * len(references)
    rows["end to end, ours"] = row(
        f"parsing included, ours ({len(sample)} files)", whole["ours"], inside, unit
    )
    rows["end to end, ast + Levenshtein"] = row(
        "parsing included, ast + Levenshtein.distance", whole["python"], inside, unit
    )
    base = rows["ours"][unit]
    ratios = {
        name: round(base / rows[name][unit], 1)
        for name in (
            "ast + Levenshtein",
            "ast + rapidfuzz, cut-off",
            "ast + rapidfuzz cdist, cut-off",
        )
    }
    ratios["end to end"] = round(
        rows["end to end, ours"][unit] / rows["end to end, ast + Levenshtein"][unit], 1
    )
    print(f"  times the peers: {ratios}")
    return {
        "tau": TAU,
        "references": used,
        "pairs_equal_to_the_table": checked,
        **rows,
        "times_the_peers": ratios,
    }


def versions(*names: str) -> dict[str, str]:
    """Installed versions."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def main() -> None:
    """Runs both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--ast-megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("scan", "ast"), help="the other part stays as it is")
    options = parser.parse_args()
    texts = documents(options.megabytes)
    size, few = 0, []
    for text in texts:
        size += len(text)
        few.append(text)
        if size >= options.ast_megabytes * 1e6:
            break
    with tempfile.TemporaryDirectory() as name:
        parts = {}
        date = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        if options.only != "scan":
            parts["ast"] = date | bench_ast(list(few), options.rounds)
        if options.only != "ast":
            parts["scan"] = date | bench_scan(texts, options.rounds, Path(name))
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    target = RESULTS / "decontaminate.json"
    before = json.loads(target.read_text(encoding="utf-8")) if options.only else {}
    results = {
        **before,
        "machine": {
            "cpu": cpu[1] if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **versions("hornbook", "rapidfuzz", "Levenshtein", "pyarrow"),
        },
        **parts,
    }
    RESULTS.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {target}")


if __name__ == "__main__":
    main()
