"""A judge on this machine: an HTTP server that speaks like an OpenAI-compatible endpoint, and misbehaves when told to.

It says yes where the student's answer holds the gold answer, no elsewhere.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789abcdef"

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request: the next misbehaviour in the queue, or a reply."""

    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompt = self.body["messages"][0]["content"]
        server = self.server
        with server.mutex:
            server.requests.append(self.prompt)
            server.bodies.append(self.body)
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            behave = server.misbehaviour.pop(0) if server.misbehaviour else server.always
        try:
            behave(self)
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True
        finally:
            with server.mutex:
                server.under_way -= 1

    def send(self, status: int, body: bytes, **headers: str) -> None:
        with self.server.mutex:  # before the client can go on
            self.server.answered += 1
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


class JudgeServer(ThreadingHTTPServer):
    """`with JudgeServer() as server:` serves at `server.url` until the end of the block."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.misbehaviour: list[Behaviour] = []  # of the next requests, one each
        self.always: Behaviour = reply  # of those after
        self.mutex = threading.Lock()
        self.released = threading.Event()  # what `hang` waits for
        self.requests: list[str] = []  # prompts
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []  # of arrival
        self.keys: list[str | None] = []
        self.under_way = self.most_under_way = self.answered = 0

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error here."""


def completion(text: str | None, finish: str = "stop", **message: Any) -> bytes:
    """A body as the endpoint sends it."""
    message = {"role": "assistant", "content": text, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge-2026-01-01", "choices": [choice]}
    return json.dumps({**body, "usage": usage}).encode()


def reply(request: Handler) -> None:
    found = re.search(r"Gold answer: (.*)\nStudent's answer: <(.*?)>(.*)</\2>\n", request.prompt, re.DOTALL)
    request.send(200, completion("Yes." if found and found[1] in found[3] else "no"))


def say(text: str | None, finish: str = "stop", **message: Any) -> Behaviour:
    return lambda request: request.send(200, completion(text, finish, **message))


def only_with(names: set[str], behave: Behaviour = reply) -> Behaviour:
    """A service that takes no other parameters than these beside the model and the messages."""

    def answer(request: Handler) -> None:
        others = sorted(request.body.keys() - {"model", "messages", *names})
        refusal = refuse(400, "unsupported_parameter", f"Unsupported parameter: '{others[0]}'") if others else behave
        refusal(request)

    return answer


def refuse(status: int, code: str | None = None, message: str = "no", **headers: str) -> Behaviour:
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()
    return lambda request: request.send(status, body, **headers)


def send(body: bytes, content_type: str = "application/json") -> Behaviour:
    return lambda request: request.send(200, body, Content_Type=content_type)


def cut(request: Handler) -> None:
    """Half an answer, and the connection is gone."""
    body = completion("yes")
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: len(body) // 2])
    request.wfile.flush()
    request.close_connection = True


def drop(request: Handler) -> None:
    """No answer at all, and the connection is gone."""
    request.close_connection = True


def hang(request: Handler) -> None:
    """Nothing, until the server is released."""
    request.server.released.wait(60)
    request.close_connection = True


def endless(piece: bytes, pause: float) -> Behaviour:
    """A body without an end: `piece` again and again, `pause` seconds apart."""

    def answer(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(2**40))
        request.end_headers()
        while not request.server.released.wait(pause):
            request.wfile.write(piece)
            request.wfile.flush()

    return answer
