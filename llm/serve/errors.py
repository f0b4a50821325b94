"""Errors in the form that OpenAI clients read, for our routes and for those that nobody owns."""

import json
from typing import Any

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FIELD_CHARS = 200  # of a field's name that is repeated to the client who made it up


class ApiError(Exception):
    """A request that cannot be answered; becomes an HTTP status and an OpenAI error body."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def body(self) -> dict[str, Any]:
        """Return the OpenAI error body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class FieldError(ValueError):
    """A field of a request that does not go with the others."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def from_status(status: int, method: str, path: str) -> ApiError:
    """Return the error of a request that no route of ours took."""
    if status == 404:
        return ApiError(f"unknown route: {method} {path}", status=404, code="unknown_route")
    if status == 405:
        return ApiError(f"method {method} is not allowed on {path}", status=405, code="method_not_allowed")
    return ApiError(f"HTTP {status}", status=status)


def from_validation(error: ValidationError) -> ApiError:
    """Return a 400 that names the first field at fault."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    fault = context.get("error")
    param = join_location((*first["loc"], fault.field) if isinstance(fault, FieldError) else first["loc"])
    if kind == "extra_forbidden":
        return ApiError(f"{param}: unknown or unsupported field", param=param, code="unknown_field")
    if kind == "missing":
        return ApiError(f"{param}: required, but missing", param=param, code="missing_field")
    message = str(fault) if kind == "value_error" else first["msg"]
    return ApiError(f"{param or 'body'}: {message}", param=param, code="invalid_value")


def join_location(loc: tuple[int | str, ...]) -> str | None:
    """Return a location as `messages[0].content`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:MAX_FIELD_CHARS] or None


class ErrorBodies:
    """Middleware over the whole server: gives its plain-text 404 and 405 answers an OpenAI body."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        replaced = False

        async def rewrite(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] in (404, 405):
                headers = [
                    (k, v) for k, v in message["headers"] if k.lower() not in (b"content-length", b"content-type")
                ]
                replaced = dict(message["headers"]).get(b"content-type", b"") != b"application/json"
                if replaced:
                    error = from_status(message["status"], scope["method"], scope["path"])
                    body = json.dumps(error.body()).encode()
                    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                    await send({**message, "headers": headers})
                    await send({"type": "http.response.body", "body": body})
                    return
            if not replaced:
                await send(message)

        await self.app(scope, receive, rewrite)
