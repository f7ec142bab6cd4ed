"""A server of the OpenAI protocol on loopback, with a good side and a faulty one.

    with LoopbackServer() as server:
        hfpipe.load("org/model", endpoint=server.url)
        assert server.bodies == [...]

The good side answers a prompt with the words of its last message, a word an event, and ends before a stop string. What
is in `faults` is taken first, one a request: a function that gets the handler, or None.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import Loopback

MODEL = "org/model"
Fault = Callable[["Handler"], None]


@dataclass
class LoopbackServer(Loopback):
    """`asked` are the paths and headers of what was posted, `bodies` its JSON. `own` are options beside the plain
    protocol that its openapi.json has, and `owned_by` what it calls itself. With `ignores_stops` it answers past stop
    strings; an event waits `pause_s`."""

    faults: list[Fault | None] = field(default_factory=list)
    own: Mapping[str, str] | None = None
    owned_by: str = "made"
    ignores_stops: bool = False
    counts: bool = True
    pause_s: float = 0.0
    # The first answers wait for each other, so many of them.
    together: int = 0
    models: tuple[str, ...] = (MODEL,)
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    # By their ports.
    connections: set[int] = field(default_factory=set)
    # Of answers: how many are under way, the most at once, and those whose reader went away.
    running: int = 0
    most: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def count(self, change: int) -> None:
        with self._lock:
            self.running += change
            self.most = max(self.most, self.running)

    def gone(self) -> None:
        with self._lock:
            self.left += 1

    def wait_until(self, holds: Callable[[], bool], seconds: float = 10) -> bool:
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.01)
        return holds()


class Handler(BaseHTTPRequestHandler):
    owner: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.owner.got.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            listed = [{"id": name, "owned_by": self.owner.owned_by} for name in self.owner.models]
            return self.json({"object": "list", "data": listed})
        if path == "/openapi.json" and self.owner.own is not None:
            return self.json(openapi(self.owner.own))
        return self.json({"error": {"message": "Not Found"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.owner._lock:
            self.owner.asked.append((self.path, dict(self.headers)))
            self.owner.bodies.append(body)
            self.owner.connections.add(self.client_address[1])
            fault = self.owner.faults.pop(0) if self.owner.faults else None
        if fault:
            return fault(self)
        if body["model"] not in self.owner.models:
            return self.json({"error": {"message": f"The model {body['model']} does not exist."}}, 404)
        path = self.path.partition("?")[0]
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return self.json({"detail": "Not Found"}, 404)
        self.owner.count(1)
        try:
            self.owner.wait_until(lambda: self.owner.most >= self.owner.together)
            self.answer(body, chat="chat" in path)
        except OSError:
            self.owner.gone()
        finally:
            self.owner.count(-1)

    def answer(self, body: Mapping[str, Any], *, chat: bool) -> None:
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        words = prompt.split(" ")
        pieces = [word + " " for word in words[:-1]] + words[-1:]
        text = "".join(pieces)
        ends = [text.find(stop) for stop in body.get("stop", []) if stop in text and not self.owner.ignores_stops]
        self.begin()
        if chat:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        sent, reason, shown = 0, "stop", 0
        for piece in pieces:
            if sent == body["max_tokens"]:
                reason = "length"
                break
            sent += 1
            if ends and shown + len(piece) > min(ends):
                piece = piece[: min(ends) - shown]
            shown += len(piece)
            self.event(choice(piece, chat=chat))
            time.sleep(self.owner.pause_s)
            if ends and shown == min(ends):
                break
        self.event(choice("", reason, chat=chat))
        if self.owner.counts and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": len(words), "completion_tokens": sent, "total_tokens": len(words) + sent}
            self.event({"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def begin(self, status: int = 200, kind: str = "text/event-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, data: Any) -> None:
        self.chunk(f"data: {json.dumps(data)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def choice(text: str, reason: str | None = None, *, chat: bool = True) -> dict[str, Any]:
    said = {"delta": {"content": text}} if chat else {"text": text}
    return {"id": "1", "choices": [{"index": 0, **said, "finish_reason": reason}]}


def openapi(own: Mapping[str, str]) -> dict[str, Any]:
    """What FastAPI makes of a server: a schema for both paths."""
    schema = {"properties": {name: {"type": kind} for name, kind in own.items()}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}}
    path = {"post": {"requestBody": {"content": content}}}
    paths = {"/v1/chat/completions": path, "/v1/completions": path}
    return {"openapi": "3.1.0", "paths": paths, "components": {"schemas": {"Request": schema}}}


# Faults


def status(code: int, value: Any = None, **headers: str) -> Fault:
    """An answer of JSON with this status."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda handler: handler.json(value or {"error": {"message": f"made {code}"}}, code, named)


def page(handler: Handler) -> None:
    handler.send(200, b"<html>Please log in.</html>", {"Content-Type": "text/html; charset=utf-8"})


def refuses(handler: Handler) -> None:
    """No answer at all."""
    handler.close_connection = True


def after_text(rest: Fault) -> Fault:
    """A text, and then `rest`."""

    def fault(handler: Handler) -> None:
        handler.begin()
        handler.event(choice("half "))
        with suppress(OSError):
            rest(handler)
        handler.close_connection = True

    return fault


def cut(handler: Handler) -> None:
    handler.close_connection = True


def ends(handler: Handler) -> None:
    """As an answer that is whole ends, but for its finish_reason."""
    handler.chunk(b"")


def raw(data: bytes) -> Fault:
    return lambda handler: handler.chunk(data)


def silent(handler: Handler) -> None:
    """Nothing, until the reader goes away."""
    with suppress(OSError):
        while handler.connection.recv(1):
            pass
    handler.owner.gone()


def slow(handler: Handler) -> None:
    """A byte at a time, none of which makes an event."""
    try:
        while True:
            handler.chunk(b":")
            time.sleep(0.02)
    except OSError:
        handler.owner.gone()


LoopbackServer.handler = Handler
