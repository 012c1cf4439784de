"""Labels by an LLM from the command line and from a recipe, and the filter that learns them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_teacher import Server

from hornbook import corpus
from hornbook.cli import main
from hornbook.pipeline import run
from hornbook.recipe import load

pytest.importorskip("sklearn")

ROWS = 60


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [
        f"def add_{n}(a, b):\n    return [a + x * {n} for x in b]\n"
        if n % 2
        else f"PATH_{n} = 'a/{n}'\nHOST = 'h{n}'\nPORTS = [80, {n}]\n"
        for n in range(ROWS)
    ]
    path.write_text(
        "".join(json.dumps({"id": f"d{n}", "text": t}) + "\n" for n, t in enumerate(texts))
    )
    return path


@pytest.fixture
def bodies(server: Server) -> list[dict[str, Any]]:
    """What the server is asked; it likes functions, a little less when asked again."""
    asked: list[dict[str, Any]] = []

    def reply(body: dict[str, Any], number: int) -> str:
        asked.append(body)
        score = 8 if "def add" in body["messages"][-1]["content"] else 2
        return json.dumps({"reason": "as it is", "score": score - (number > 0 and score > 5)})

    server.reply = reply
    return asked


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def annotate(server: Server, rows: Path, out: Path, *more: object) -> int:
    model = ["--model", "m", "--base-url", server.url, "--budget-tokens", 10**7]
    return cli("annotate", rows, "--samples", ROWS, "--out", out, *model, *more)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_annotate_and_filter_by_command(
    server: Server, bodies: list[Any], rows: Path, tmp_path: Path, capsys: Any
) -> None:
    labels, kept = tmp_path / "labels", tmp_path / "kept"
    assert annotate(server, rows, labels, "--repeats", 0.5) == 0
    assert len(bodies) == ROWS + ROWS // 2
    assert all(body["response_format"]["type"] == "json_schema" for body in bodies)
    details = manifest(labels)["details"]
    assert details["annotator"].startswith("llm/m/")
    assert details["structured_output"] == "used"
    assert details["label_noise"]["asked_twice"] == ROWS // 2
    assert details["label_noise"]["kappa"] == 1
    assert details["label_noise"]["mean_difference"] > 0
    scores = {row["id"]: row["score"] for row in corpus.read([labels])}
    assert scores == {f"d{n}": 8.0 if n % 2 else 2.0 for n in range(ROWS)}

    # Once more: nobody is asked.
    assert annotate(server, rows, labels, "--repeats", 0.5) == 0
    assert len(bodies) == ROWS + ROWS // 2

    assert cli("filter", rows, "--labels", labels, "--trees", 20, "--out", kept) == 0
    assert {row["id"] for row in corpus.read([kept])} == {f"d{n}" for n in range(1, ROWS, 2)}
    capsys.readouterr()
    assert cli("filter", rows, "--out", kept, "--explain", "d3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keep"] is True
    assert found["score"] >= found["threshold"]
    assert cli("filter", rows, "--out", kept, "--explain", "d4") == 0
    assert "score" in capsys.readouterr().out
    assert cli("filter", rows, "--out", kept, "--explain", "nobody") == 2
    assert "nobody" in capsys.readouterr().err


def test_options_of_the_command_reach_the_endpoint(
    server: Server, bodies: list[Any], rows: Path, tmp_path: Path
) -> None:
    rubric = tmp_path / "fun.toml"
    rubric.write_text('most = 8\nuser = """Is it fun?\n$fence\n$code\n$fence\nData$part."""\n')
    assert annotate(server, rows, tmp_path / "a", "--rubric", rubric, "--structured", "never") == 0
    assert all("Is it fun?" in body["messages"][-1]["content"] for body in bodies)
    assert not any("response_format" in body for body in bodies)
    assert manifest(tmp_path / "a")["details"]["structured_output"] == "not asked for"
    scores = [row["score"] for row in corpus.read([tmp_path / "a"])]
    assert sorted(set(scores)) == [2.5, 10.0]


def test_a_recipe_asks_the_endpoint_too(
    server: Server, bodies: list[Any], rows: Path, tmp_path: Path
) -> None:
    liked = server.reply

    def reply(body: dict[str, Any], number: int) -> Any:
        if "response_format" in body:
            return 400, {}, {"error": {"message": "response_format is not supported"}}
        return liked(body, number)

    server.reply = reply
    settings = [
        f"source.raw=['{rows}']",
        "annotate.annotator=openai",
        f"annotate.samples={ROWS}",
        "generate.model=m",
        f"generate.base_url={server.url}",
        "generate.budget_tokens=10000000",
        "filter.min_score=5.0",
        "skip=['dedup']",
    ]
    run(load("demo", settings), tmp_path / "run", only=("source", "annotate", "filter"))
    details = manifest(tmp_path / "run" / "annotate")["details"]
    assert details["structured_output"] == "refused by the endpoint"
    assert len(bodies) == ROWS
    kept = {row["id"] for row in corpus.read([tmp_path / "run" / "filter"])}
    assert kept == {f"d{n}" for n in range(1, ROWS, 2)}
    with_schema = load("demo", [*settings, "annotate.structured=never"])
    run(with_schema, tmp_path / "plain", only=("source", "annotate"))
    details = manifest(tmp_path / "plain" / "annotate")["details"]
    assert details["structured_output"] == "not asked for"


@pytest.mark.parametrize("refused", [3, 12])
def test_labels_that_were_not_to_be_had_are_asked_for_again(
    server: Server, tmp_path: Path, refused: int
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"id": str(i), "text": f"value = {i}\n"} for i in range(12)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["annotate", str(source), "--samples", "12", "--model", "m", "--base-url", server.url]
    command += ["--budget-tokens", "1000000", "--structured", "never", "--out"]
    command.append(str(tmp_path / "labels"))
    good = json.dumps({"reason": "clear", "score": 7})

    def reply(body: Any, number: int) -> Any:
        text = str(body["messages"])
        bad = any(f"value = {i}\\n" in text for i in range(refused))
        status = 400 if refused == 12 else 500
        return (status, {"x-should-retry": "false"}, b"{}") if bad else good

    server.reply = reply
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 3
    assert not (tmp_path / "labels" / "manifest.json").exists()
    server.reply = lambda body, number: good
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    assert manifest["counts"]["kept"] == 12
    assert len([text for text, times in server.seen.items() if times == 1]) == 12 - refused
