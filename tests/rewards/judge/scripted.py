"""A server that speaks OpenAI's chat completions as a script tells it: well, late, broken, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes over the wire."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    """Bytes of the body that are really sent before the line goes dead; None for all."""
    stalls: bool = False
    """Whether the rest comes only when the test is over."""


Script = Callable[[dict[str, Any], int], Reply]
"""From a question's body, and how many requests with the same text and seed came before, to the reply."""


def says(text: Any, finish: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(body=json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


def fails(status: int, body: str = "{}", **headers: str) -> Reply:
    return Reply(body=body.encode(), status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


@dataclass(kw_only=True)
class Scripted:
    """The running server, and what it has seen."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0
    """The most requests that were open at a time."""

    @property
    def texts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]


@contextmanager
def serving(script: Script, models: Any = ("tiny",)) -> Iterator[Scripted]:
    """Runs the server on a free port; `models` is what it lists, or a Reply in place of the list."""
    seen, lock, over, running = Scripted(), threading.Lock(), threading.Event(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.keys.append(self.headers["Authorization"])
            listed = json.dumps({"data": [{"id": name} for name in models]}) if isinstance(models, tuple) else ""
            self.reply(models if isinstance(models, Reply) else Reply(body=listed.encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            same = [(body["messages"], body["seed"])]
            with lock:
                before = sum([(b["messages"], b["seed"])] == same for b in seen.asked)
                seen.asked.append(body)
                seen.keys.append(self.headers["Authorization"])
                running[0] += 1
                seen.most = max(seen.most, running[0])
            try:
                self.reply(script(body, before))
            finally:
                with lock:
                    running[0] -= 1

        def reply(self, reply: Reply) -> None:
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: reply.sent])
                self.wfile.flush()
            except OSError:  # the client has left
                self.close_connection = True
            if reply.stalls:
                over.wait(WAIT_S)
            if reply.sent is not None or reply.stalls:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Writes nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()  # it waits for the threads of all requests
