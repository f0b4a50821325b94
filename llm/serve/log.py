"""Structured logs: one JSON object a line on stderr, and an id for each request.

No prompt, answer or query string is ever written; paths are cut, because they are the client's text too.
"""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.metrics import Watch

log = logging.getLogger(__name__)

HEADER = b"x-request-id"
WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")
QUIET = ("/livez", "/readyz", "/metrics")  # asked every few seconds by those who watch the server
PATH_CHARS = 100


class JsonLines(logging.Formatter):
    """A record as one JSON object; `extra={"fields": {...}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging() -> None:
    """Send what `llm` logs to stderr as JSON; the entry point calls it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("llm")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    logging.getLogger("bentoml.access").setLevel(logging.WARNING)  # a line of prose for what ours says


class RequestLog:
    """Outermost middleware: names each request, tells the client the name, and writes one line when it has ended.

    In the request's state it leaves `request_id`, and `watches`: a list to which the routes add the watch over each
    answer. Whoever checks the key leaves its `caller` there.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(HEADER, b"")
        name = asked.decode() if WELL_FORMED.fullmatch(asked) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state |= {"request_id": name, "watches": []}
        started, status = time.monotonic(), 500

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (HEADER, name.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, tell)
        finally:
            if status >= 400 or scope["path"] not in QUIET:
                fields = describe_request(scope, status, time.monotonic() - started)
                log.info("request", extra={"fields": fields})


def describe_request(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    """Return what the log says of a request that has ended; tokens and times only where it got an answer."""
    state = scope["state"]
    caller = state.get("caller")
    fields = {
        "request_id": state["request_id"],
        "key_id": caller.key_id if caller else None,
        "method": scope["method"],
        "path": scope["path"][:PATH_CHARS],
        "status": status,
        "seconds": round(seconds, 4),
    }
    watches: list[Watch] = state["watches"]
    if watches:
        times = [watch.first_token_s for watch in watches if watch.first_token_s is not None]
        fields |= {
            "model": watches[0].model,
            "prompt_tokens": sum(watch.prompt_tokens for watch in watches),
            "answer_tokens": sum(watch.answer_tokens for watch in watches),
            "first_token_seconds": round(min(times), 4) if times else None,
            "finish": [watch.reason for watch in watches],
        }
    return fields
