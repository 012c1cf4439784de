"""A small OpenAI-compatible server that answers as it is told and counts what it is asked."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CANARY = "sk-canary-0123456789abcdef"

Reply = Callable[[dict[str, Any], int], "str | bytes | tuple[int, dict[str, str], Any] | None"]


def completion(text: str, finish: str = "stop", **changes: Any) -> dict[str, Any]:
    body = {
        "id": "x",
        "object": "chat.completion",
        "model": "fake-1",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60},
    }
    return {**body, **changes}


def continuation(text: str, finish: str = "stop") -> dict[str, Any]:
    body = completion("", object="text_completion")
    return {**body, "choices": [{"index": 0, "finish_reason": finish, "text": text}]}


def exercise(name: str, value: int = 1) -> str:
    return f'''```python
import math

def {name}(values: list[int]) -> int:
    """Adds the values and {value}; an empty list gives {value} alone."""
    return sum(values) + math.floor({value})
```

```python
assert {name}([]) == {value}
assert {name}([1]) == {value + 1}
assert {name}([1, 2]) == {value + 3}
assert {name}([-1]) == {value - 1}
```
'''


def textbook(seed: str) -> str:
    prose = "A loop repeats its body, and each turn brings the total nearer to its end. " * 6
    return f'''# Adding up {seed}

{prose}

```python
def total(values: list[int]) -> int:
    """The sum of the values."""
    result = 0
    for value in values:
        result += value
    return result
```

So the call gives six:

```python
>>> total([1, 2, 3])
6
```
'''


def answer(body: dict[str, Any], _: int = 0) -> str:
    """A fitting answer to each of our prompts, the same for the same prompt."""
    text = body["messages"][-1]["content"]
    seed = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = re.search(r"must be called `(\w+)`", text)
    if name:
        return exercise(name[1], int(seed[:4], 16))
    if "one section" in text:
        return textbook(seed)
    if '"score"' in text:
        return json.dumps({"reason": f"clear {seed}", "score": int(seed[:2], 16) % 11})
    if '"grade"' in text:
        return json.dumps({"evaluation": f"works {seed}", "grade": 7})
    return f"echo {text}"


class Server:
    """`reply(body, number)` gives a text, raw bytes, `(status, headers, body)` or None (cut off).

    `seen` counts requests by the last message; `number` is how often this one was asked before.
    """

    def __init__(self) -> None:
        self.reply: Reply = answer
        self.delay = 0.0
        self.seen: Counter[str] = Counter()
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.most_active = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: Counter[str] = Counter()
        self.slow_looks = 1
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_json(outer.batch_api(self.path, b""))

            def send_json(self, reply: Any) -> None:
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.path.endswith("/completions"):
                    self.send_json(outer.batch_api(self.path, raw))
                    return
                body = json.loads(raw)
                chat = self.path.endswith("/chat/completions")
                key = body["messages"][-1]["content"] if chat else body["prompt"]
                with outer.lock:
                    number = outer.seen[key]
                    outer.seen[key] += 1
                    outer.times.append(time.monotonic())
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.active += 1
                    outer.most_active = max(outer.most_active, outer.active)
                try:
                    time.sleep(outer.delay)
                    reply = outer.reply(body, number)
                finally:
                    with outer.lock:
                        outer.active -= 1
                if reply is None:
                    self.close_connection = True
                    return
                status, headers, data = 200, {}, reply
                if isinstance(reply, tuple):
                    status, headers, data = reply
                if isinstance(data, str):
                    data = completion(data) if chat else continuation(data)
                if not isinstance(data, bytes):
                    data = json.dumps(data).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def batch_api(self, path: str, raw: bytes) -> Any:
        """Files and batches; a batch is over after `looks` looks at it."""
        if path.endswith("/files"):
            lines = raw.split(b"\r\n\r\n")
            (content,) = (part for part in lines if part.startswith(b'{"custom_id"'))
            name = f"file-{len(self.files)}"
            self.files[name] = content.split(b"\r\n--")[0]
            return {"id": name, "object": "file", "bytes": 1, "created_at": 1, "purpose": "batch"}
        if path.endswith("/batches") and raw:
            made = json.loads(raw)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name,
                "object": "batch",
                "created_at": 1,
                "status": "in_progress",
                "endpoint": made["endpoint"],
                "completion_window": "24h",
                "input_file_id": made["input_file_id"],
                "metadata": made["metadata"],
            }
            return self.batches[name]
        if "/batches?" in path or path.endswith("/batches"):
            return {"object": "list", "data": list(self.batches.values()), "has_more": False}
        if "/batches/" in path:
            batch = self.batches[path.rsplit("/", 1)[1]]
            self.looks[batch["id"]] += 1
            if self.looks[batch["id"]] > self.slow_looks and batch["status"] == "in_progress":
                self._work(batch)
            return batch
        return self.files[path.split("/files/")[1].split("/")[0]]

    def _work(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            entry = json.loads(line)
            key = entry["body"]["messages"][-1]["content"]
            reply = self.reply(entry["body"], self.seen[key])
            self.seen[key] += 1
            status, body = 200, reply
            if isinstance(reply, tuple):
                status, _, body = reply
            if isinstance(body, str):
                body = completion(body)
            if reply is not None:
                response = {"status_code": status, "body": body}
                (good if status == 200 else bad).append(
                    json.dumps({"custom_id": entry["custom_id"], "response": response})
                )
        batch["status"] = "completed"
        for kind, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[kind] = f"file-{len(self.files)}"
                self.files[batch[kind]] = "\n".join([*reversed(lines), "{torn"]).encode()

    @property
    def total(self) -> int:
        return self.seen.total()

    def close(self) -> None:
        if not self.thread.is_alive():
            return
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
