"""How many answers a second does the LLM client take in, at what CPU cost, beside its peers?

Peers: curator's and datatrove's runners, each in an environment of its own (their pins exclude each
other and ours): `--curator PYTHON`, `--datatrove PYTHON` name the interpreters; one that is not
given is left out. A fast server of our own answers after each of the `--delay`s (1,000 calls at
once and 0.2 s make 5,000 answers a second at most); every engine keeps its answers on disk, as it
does by default. Engines run in turn, `--rounds` times; the median counts. datatrove has a client of
its own for plain-HTTP localhost and the `openai` package for every other endpoint: both are shown.
All answers are checked to be there.

    python benchmarks/generate.py --curator /envs/curator/bin/python --datatrove ...
    python benchmarks/generate.py --memory 1000000        # the client
    python benchmarks/generate.py --memory-stage 200000   # the whole stage, gate and all
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
TEXT = "word " * 200


# The server


class Answers(asyncio.Protocol):
    """Reads requests as they come and answers each after a delay."""

    delay = 0.2
    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            place = head.find(b"content-length:")
            size = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            self.buffer = self.buffer[end + 4 + size :]
            last = b"connection: close" in head
            wait = self.delay if head.startswith(b"post") else 0
            asyncio.get_running_loop().call_later(wait, self.answer, last)

    def answer(self, last: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)
            if last:
                self.transport.close()


async def serve(delay: float) -> None:
    body = json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "fake-1",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": TEXT},
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 200, "total_tokens": 220},
        }
    ).encode()
    Answers.delay = delay
    Answers.reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )
    server = await asyncio.get_running_loop().create_server(Answers, "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The engines; each runs in a process of its own


def prompts(count: int) -> list[str]:
    return [f"Write exercise {index}: " + "please " * 20 for index in range(count)]


def ours(port: int, count: int, concurrency: int, folder: Path) -> int:
    from hornbook import corpus
    from hornbook.generate.client import Request, complete_all
    from hornbook.generate.ledger import Ledger

    requests = (
        Request(
            slot=str(index),
            messages=[{"role": "user", "content": text}],
            params={"max_tokens": 300},
        )
        for index, text in enumerate(prompts(count))
    )
    with Ledger(folder / "ledger") as ledger:
        stream = complete_all(
            requests,
            ledger=ledger,
            model="m",
            base_url=f"http://127.0.0.1:{port}/v1",
            budget_tokens=10**12,
            concurrency=concurrency,
        )
        rows = ({"text": response.text, "slot": response.request.slot} for response in stream)
        parts = corpus.write(folder / "out", rows, {"slot": "string"})
    return sum(part["rows"] for part in parts)


def curator(port: int, count: int, concurrency: int, folder: Path) -> int:
    os.environ |= {
        "TELEMETRY_ENABLED": "false",
        "CURATOR_VIEWER": "0",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "CURATOR_CACHE_DIR": str(folder),
    }
    import tiktoken

    # It counts tokens with a vocabulary that it downloads; without a network, bytes do.
    single = {bytes([value]): value for value in range(256)}
    counted = tiktoken.Encoding(
        "bytes", pat_str=r"\w+|\W", mergeable_ranks=single, special_tokens={}
    )
    tiktoken.get_encoding = lambda name: counted
    from bespokelabs import curator as peer

    llm = peer.LLM(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={
            "base_url": f"http://127.0.0.1:{port}/v1/chat/completions",
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**11,
            "max_concurrent_requests": concurrency,
        },
        generation_params={"max_tokens": 300},
    )
    made = llm(prompts(count))
    return len(getattr(made, "dataset", made))


def datatrove(port: int, count: int, concurrency: int, folder: Path, host: str) -> int:
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def rollout(document: Document, generate: object) -> object:
        message = {"role": "user", "content": document.text}
        return await generate({"messages": [message]})  # type: ignore[operator]

    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path="m",
        endpoint_url=f"http://{host}:{port}",
        api_key="x" * 20,
        max_concurrent_generations=concurrency,
        default_generation_params={"max_tokens": 300},
    )
    if host != "127.0.0.1":
        config.endpoint_url = f"http://{host}:{port}/v1"
    documents = [Document(text=text, id=str(index)) for index, text in enumerate(prompts(count))]
    runner = InferenceRunner(
        rollout_fn=rollout,
        config=config,
        output_writer=JsonlWriter(str(folder / "out"), compression=None),
    )
    LocalPipelineExecutor(pipeline=[documents, runner], logging_dir=str(folder / "logs")).run()
    return sum(len(path.read_text().splitlines()) for path in (folder / "out").rglob("*.jsonl"))


def engine(name: str, port: int, count: int, concurrency: int) -> None:
    """Runs one engine and prints what it took."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as folder:
        path = Path(folder)
        # What is imported and set up once is not a cost of each row: a short run comes first.
        for size in (50, count):
            sub = path / str(size)
            sub.mkdir()
            wall, cpu = time.perf_counter(), time.process_time()
            if name == "ours":
                rows = ours(port, size, concurrency, sub)
            elif name == "curator":
                rows = curator(port, size, concurrency, sub)
            else:
                host = "127.0.0.2" if name == "datatrove-openai" else "127.0.0.1"
                rows = datatrove(port, size, concurrency, sub, host)
            took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print("RESULT " + json.dumps({"rows": rows, **took}), flush=True)


def resident_mb() -> float:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def memory(count: int, concurrency: int, port: int) -> None:
    """The client over many slots: memory as it goes."""
    from hornbook.generate.client import Request, complete_all
    from hornbook.generate.ledger import Ledger

    requests = (
        Request(
            slot=str(index),
            messages=[{"role": "user", "content": f"Write exercise {index}: " + "please " * 20}],
            params={"max_tokens": 300},
        )
        for index in range(count)
    )
    points: list[tuple[int, float]] = []
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as folder,
        Ledger(Path(folder) / "ledger") as ledger,
    ):
        stream = complete_all(
            requests,
            ledger=ledger,
            model="m",
            base_url=f"http://127.0.0.1:{port}/v1",
            budget_tokens=10**12,
            concurrency=concurrency,
        )
        for done, response in enumerate(stream, 1):
            assert response.text == TEXT
            if done % (count // 20) == 0:
                points.append((done, resident_mb()))
        answered = ledger.totals().answered
    assert answered == count
    result = {
        "slots": count,
        "concurrency": concurrency,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "rss_mb": points,
    }
    save("generate-memory", result)
    print(json.dumps(result))


def memory_stage(count: int) -> None:
    """The whole stage over many slots, with a teacher that is a function: memory as it goes."""
    import random

    import hornbook.progress as progress
    from hornbook.generate.gate import GateOptions
    from hornbook.generate.llm import generate_llm

    def ask(messages: list[dict[str, str]], params: object) -> str:
        text = messages[-1]["content"]
        name = text.split("called `")[1].split("`")[0]
        rng = random.Random(text)
        calls = ("abs", "int", "round")
        steps = "\n".join(
            f"    x = {rng.choice(calls)}(x) {rng.choice('+-*')} {rng.randrange(9)}"
            for _ in range(rng.randrange(1, 9))
        )
        tests = "\n".join(f"assert {name}({i}) == {rng.randrange(99)}" for i in range(4))
        return (
            f'```python\ndef {name}(x: int) -> int:\n    """Works out a number from x."""\n'
            f"{steps}\n    return x\n```\n```python\n{tests}\n```"
        )

    points: list[tuple[int, float]] = []

    def listen(label: str, done: int, total: int | None, note: str) -> None:
        if not points or done - points[-1][0] >= count // 20:
            points.append((done, resident_mb()))

    folder = Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_TMP")))
    started = time.perf_counter()
    with progress.listen(listen):
        report = generate_llm(
            "exercises",
            folder / "out",
            count=count,
            model="function",
            ledger=folder / "ledger",
            teacher=ask,
            concurrency=64,
            gate=GateOptions(repeats=10**9, mutants=0),
        )
    result = {
        "slots": count,
        "rows": report["counts"]["kept"],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 1),
        "rss_mb": points,
    }
    save("generate-memory-stage", result)
    print(json.dumps(result))


def save(name: str, result: dict) -> None:
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**about, **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def versions(python: str, names: tuple[str, ...]) -> dict[str, str]:
    script = (
        "import json, sys; from importlib.metadata import version\n"
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    made = subprocess.run([python, "-c", script, *names], capture_output=True, text=True)
    return json.loads(made.stdout) if made.returncode == 0 else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--curator", help="interpreter with bespokelabs-curator")
    parser.add_argument("--datatrove", help="interpreter with datatrove and openai")
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--concurrency", type=int, default=1_000)
    parser.add_argument("--delay", type=float, nargs="+", default=[0.05, 0.2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="SLOTS")
    parser.add_argument("--memory-stage", type=int, metavar="SLOTS")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.delay[0]))
        return
    if args.engine:
        engine(args.engine, args.port, args.count, args.concurrency)
        return
    if args.memory_stage:
        memory_stage(args.memory_stage)
        return
    if args.memory:
        with server(0.0) as port:
            memory(args.memory, args.concurrency, port)
        return
    engines = {"ours": sys.executable}
    if args.curator:
        engines["curator"] = args.curator
    if args.datatrove:
        engines |= {"datatrove": args.datatrove, "datatrove-openai": args.datatrove}
    tables = {}
    for delay in args.delay:
        with server(delay) as port:
            tables[str(delay)] = compare(
                engines, port, count=args.count, concurrency=args.concurrency, rounds=args.rounds
            )
        print(f"\nanswers after {delay:g} s   rows/s   CPU ms/row   our rate and CPU against its")
        mine = tables[str(delay)]["ours"]
        for name, row in tables[str(delay)].items():
            rate = mine["rows_per_second"] / row["rows_per_second"]
            cpu = row["cpu_ms_per_row"] / mine["cpu_ms_per_row"]
            print(
                f"{name:20} {row['rows_per_second']:9.0f} {row['cpu_ms_per_row']:12.2f} "
                f"{rate:12.2f}x {cpu:6.2f}x"
            )
    save(
        "generate",
        {
            "count": args.count,
            "concurrency": args.concurrency,
            "versions": versions(sys.executable, ("openai", "httptools"))
            | (versions(args.curator, ("bespokelabs-curator",)) if args.curator else {})
            | (versions(args.datatrove, ("datatrove",)) if args.datatrove else {}),
            "engines_by_delay_s": tables,
        },
    )


@contextmanager
def server(delay: float) -> Iterator[int]:
    """Our server in a process of its own; gives its port."""
    running = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--delay", str(delay)], stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    try:
        yield int(running.stdout.readline())
    finally:
        running.terminate()
        running.wait()


def compare(
    engines: dict[str, str], port: int, *, count: int, concurrency: int, rounds: int
) -> dict[str, dict]:
    """Rows per second and CPU per row of each engine, the median of some rounds."""
    took: dict[str, list[dict]] = {name: [] for name in engines}
    env = {**os.environ, "OPENAI_API_KEY": "x" * 20, "DO_NOT_TRACK": "1"}
    for _ in range(rounds):
        for name, python in engines.items():
            command = [python, __file__, "--engine", name, "--port", str(port)]
            command += ["--count", str(count), "--concurrency", str(concurrency)]
            made = subprocess.run(command, capture_output=True, text=True, env=env)
            lines = [x for x in made.stdout.splitlines() if x.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{name} failed:\n{made.stdout[-2000:]}\n{made.stderr[-3000:]}")
            result = json.loads(lines[0].removeprefix("RESULT "))
            assert result["rows"] == count, f"{name}: {result['rows']} answers"
            took[name].append(result)
            print(f"{name:18} {result['wall']:6.2f} s wall {result['cpu']:6.2f} s CPU")
    table = {}
    for name, measured in took.items():
        wall, cpu = (median(r[key] for r in measured) for key in ("wall", "cpu"))
        table[name] = {
            "rows_per_second": round(count / wall, 1),
            "cpu_ms_per_row": round(1000 * cpu / count, 3),
            "rounds": measured,
        }
    return table


if __name__ == "__main__":
    main()
