"""A stand-in for the server behind the chat page: what it lists, and how it answers each question, a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm.serve.page_route import load_page

Reply = Callable[["Handler"], None]
LINEAGE = {
    "init_from": {"name": "Qwen3-0.6B", "digest": "77aa"},
    "corpus": {
        "sources": {"fables": {"documents": {"train": 19, "val": 1}, "licences": {"MIT": 8, "CC0-1.0": 12}}},
        "conversations": {"chat": 3},
        "preferences": {},
        "questions": {},
    },
    "stages": {"pretrain": {"deps": {}, "outs": {"models/base": "2c3d4e5f60718293a4b5c6d7e8f90a1b"}, "params": {}}},
}


def describe(name: str, status: str = "released") -> dict[str, Any]:
    """Return an entry of /v1/models."""
    mark = "" if status == "released" else "-not-released"
    about = {"fingerprint": f"0123456789abcdef{mark}", "status": status, "file": "model-q8_0.gguf"}
    return {"id": name, "metadata": about | {"engine": "openvino", "context": 512}}


class Stub:
    """Its `replies` are used up one per question; `asked` holds the bodies of the questions."""

    def __init__(self) -> None:
        self.address = ""
        self.go_on = threading.Event()  # what `hold` waits for
        self.reset()

    def reset(self) -> None:
        """Forget what a test has set."""
        self.go_on.set()
        self.go_on = threading.Event()
        self.models = [describe("gristmill")]
        self.models_reply: Reply | None = None
        self.lineage: dict[str, Any] = LINEAGE
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    """One request."""

    stub: Stub

    def do_GET(self) -> None:
        if self.path == "/":
            html, policy = load_page()
            self.head(200, {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy})
            self.wfile.write(html.encode())
        elif self.path == "/v1/models":
            (self.stub.models_reply or (lambda handler: handler.json({"data": self.stub.models})))(self)
        elif self.path.startswith("/v1/lineage/"):
            fingerprint = self.path.removeprefix("/v1/lineage/")
            marked = fingerprint.endswith("-not-released")
            head = {"system_fingerprint": fingerprint, "status": "not released" if marked else "released"}
            self.json(head | self.stub.lineage)
        else:
            refuse(404, "unknown route")(self)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.stub.asked.append(json.loads(body))
        self.stub.replies.pop(0)(self)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.head(status, {"Content-Type": "application/json", **headers})
        self.wfile.write(json.dumps(content).encode())

    def event(self, content: Any) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *parts: Any) -> None:
        """Say nothing."""


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]}


def answer(*pieces: str, finish: str = "stop", hold: bool = False) -> Reply:
    """Stream the pieces; with `hold`, the first one, and the rest once the stub's `go_on` is set."""

    def reply(handler: Handler) -> None:
        go_on = handler.stub.go_on
        handler.head(200, {"Content-Type": "text/event-stream"})
        for number, text in enumerate(pieces):
            if hold and number == 1:
                go_on.wait(timeout=20)
            handler.event(piece(text))
        handler.event(piece("", finish))
        usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
        handler.event({"choices": [], "usage": usage})
        handler.wfile.write(b"data: [DONE]\n\n")

    return reply


def refuse(status: int, message: str, code: str | None = None, retry_after: str = "") -> Reply:
    """Answer with an error."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return lambda handler: handler.json(body, status, **headers)


def fail_midway(handler: Handler) -> None:
    """Stream a piece, and then the error event of an engine that failed."""
    handler.head(200, {"Content-Type": "text/event-stream"})
    handler.event(piece("half"))
    handler.event({"error": {"message": "the engine failed on this request"}})
    handler.wfile.write(b"data: [DONE]\n\n")


def end_early(handler: Handler) -> None:
    """Close the connection after a piece, as if all had been sent."""
    handler.head(200, {"Content-Type": "text/event-stream"})
    handler.event(piece("half"))


def break_off(handler: Handler) -> None:
    """Close the connection in the middle of what was announced."""
    handler.head(200, {"Content-Type": "text/event-stream", "Content-Length": "100000"})
    handler.event(piece("half"))


def hang_up(handler: Handler) -> None:
    """Fail below HTTP: two lengths are refused. A connection that only closes makes a browser ask again, sometimes."""
    handler.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    handler.connection.close()


@contextmanager
def run_stub() -> Iterator[Stub]:
    """Serve on a free port of this machine."""
    stub = Stub()
    handler = type("StubHandler", (Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield stub
    stub.go_on.set()
    server.shutdown()
    server.server_close()
