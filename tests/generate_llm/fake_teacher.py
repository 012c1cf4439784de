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
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = body["messages"][-1]["content"]
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
                    data = completion(data)
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

    @property
    def total(self) -> int:
        return self.seen.total()

    def close(self) -> None:
        if not self.thread.is_alive():
            return
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
