"""End to end against a real peer: `transformers serve` with a tiny checkpoint made here.

The model is random, so nothing it writes is an exercise; what is tested is that requests, answers,
usage and limits of length mean to it what they mean to us.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from hornbook.evaluate import Problem
from hornbook.evaluate.models import open_model
from hornbook.generate.client import Request, TeacherError, complete_all
from hornbook.generate.ledger import Ledger
from hornbook.generate.llm import generate_llm

NEEDED = ("torch", "transformers", "tokenizers", "accelerate", "fastapi", "uvicorn", "openai")
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(240),
]

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "assistant: "
)


def checkpoint(folder: Path) -> Path:
    """A Llama of 60 thousand random weights, with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["def f(x): return x"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = checkpoint(tmp_path_factory.mktemp("peer") / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    start = [command] if command else [sys.executable, "-m", "transformers.cli.transformers"]
    log = folder.parent / "log"
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [*start, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"transformers serve does not start: {log.read_text()[-300:]}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_calls_to_a_real_server(
    peer: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, model = peer
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    requests = [
        Request(
            slot=str(index),
            messages=[{"role": "user", "content": f"Say {index}."}],
            params={"max_tokens": 24, "temperature": 0.0},
        )
        for index in range(6)
    ]
    with Ledger(tmp_path / "l") as ledger:
        options = {"ledger": ledger, "model": model, "base_url": url, "budget_tokens": 10**6}
        made = list(complete_all(requests, concurrency=3, **options))  # type: ignore[arg-type]
        assert [r.request.slot for r in made] == [str(index) for index in range(6)]
        assert all(r.verdict in ("ok", "truncated", "empty") for r in made)
        for response in made:
            answer = response.answer
            assert answer is not None
            if answer.completion_tokens is not None:
                assert 0 < answer.completion_tokens <= 24
            # A bound that the tokenizer of a real server keeps.
            if answer.prompt_tokens is not None:
                assert answer.prompt_tokens <= response.request.most_prompt_tokens
        again = list(complete_all(requests, concurrency=3, **options))  # type: ignore[arg-type]
        assert all(r.stored for r in again)
        assert [r.text for r in again] == [r.text for r in made]
        assert ledger.totals().lost == 0


def test_a_stage_on_a_real_server(
    peer: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, model = peer
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    try:
        report = generate_llm(
            "exercises",
            tmp_path / "out",
            count=4,
            model=model,
            ledger=tmp_path / "l",
            base_url=url,
            budget_tokens=10**6,
            params={"max_tokens": 32},
            concurrency=2,
        )
    except TeacherError as error:
        pytest.fail(str(error))
    counts = report["counts"]
    # A random model writes no exercise; every answer is there with the reason.
    assert counts["in"] == counts["kept"] + sum(counts["dropped"].values()) == 4
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_a_base_model_is_evaluated_there_as_it_is_here(
    peer: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/v1/completions` of a real server, and the same weights opened here: the same answers."""
    url, model = peer
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    problems = [
        Problem(
            task_id=f"T/{name}",
            prompt=f'def {name}(x):\n    """Gives {name} of x."""\n',
            preamble="",
            test="",
            entry_point=name,
        )
        for name in ("one", "two", "three")
    ]
    pairs, places = [(problem, 0) for problem in problems], range(len(problems))
    endpoint = {"base_url": url, "budget_tokens": 10**6, "ledger": tmp_path / "l"}
    there = open_model(model, backend="completions", max_new_tokens=24, endpoint=endpoint)
    here = open_model(model, backend="transformers", max_new_tokens=24, device="cpu")
    texts = list(there.draw(pairs, places))
    assert all(texts)
    assert texts == list(here.draw(pairs, places))
