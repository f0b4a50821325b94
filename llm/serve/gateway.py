"""The gate in front of every route, BentoML's own included: keys, scopes, limits, and how an answer may end.

A middleware over the whole server. Only /livez and /readyz are open. A request with a valid key gets a `Caller` in its
state and is counted; its body is read here, whole, within the limits of size and time; an answer that takes too long,
or longer than a server that stops will wait, ends with an error that its client can read. Nothing here allows another
site's page anything (CORS): a preflight has no key.
"""

import asyncio
import json
import math
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm.serve.drain import LAST_EVENT_S, Drain
from llm.serve.errors import ApiError
from llm.serve.keys import Caller, Key, KeyRing
from llm.serve.limits import Limiter, LimitReached
from llm.serve.params import KeyLimits, ServeParams
from llm.serve.session import Sessions, is_same_origin, read_page

OPEN = ("/livez", "/readyz")
# What a key must be made for; every other path, known or not, is for inference.
SCOPED = (("/metrics", "metrics"), ("/v1/lineage", "lineage"))
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"  # the policy of what brings none of its own


class Refusal(ApiError):
    """An error with headers: how to authenticate, or when to come again."""

    def __init__(self, message: str, *, status: int, code: str, headers: dict[str, str] | None = None):
        super().__init__(message, status=status, code=code)
        self.headers = headers or {}


class Reply:
    """What has been sent of an answer, so that one that is cut short gets a proper end."""

    def __init__(self, send: Send):
        self._send = send
        self._started = self._streams = self._ended = False
        self.headers: dict[str, str] = {}  # of this answer, beside those of every answer
        self.describe_limits: Callable[[], dict[str, str]] = dict  # asked when the answer begins

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the headers."""
        if message["type"] == "http.response.start":
            ours = SECURITY | self.describe_limits() | self.headers
            names = {name.encode() for name in ours}
            headers = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
            given = {name.lower(): value for name, value in headers}
            if b"content-security-policy" not in given:
                ours["content-security-policy"] = NO_PAGE
            headers += [(name.encode(), value.encode("latin-1")) for name, value in ours.items()]
            self._started = True
            self._streams = given.get(b"content-type", b"").startswith(b"text/event-stream")
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error."""
        if isinstance(error, Refusal):
            self.headers |= error.headers
        await self.answer(error.status, json.dumps(error.body()).encode(), {"content-type": "application/json"})

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send a whole answer."""
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        if status != 204:
            pairs.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def cut(self, error: ApiError) -> None:
        """End an answer that was interrupted; what was not a stream of events, and has begun, cannot end well."""
        if not self._started:
            await self.refuse(error)
        elif self._streams and not self._ended:
            last = f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
            await self.send({"type": "http.response.body", "body": last.encode()})


class Gateway:
    """The middleware."""

    def __init__(self, app: ASGIApp, params: ServeParams, keys: KeyRing, limiter: Limiter, drain: Drain):
        self._app, self._params, self._keys, self._limiter, self._drain = app, params, keys, limiter, drain
        self._sessions = Sessions()
        self._page, self._page_policy = read_page()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, Reply(send))
        else:  # a websocket: nothing here has one
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        if scope["path"] in OPEN:
            await self._app(scope, receive, reply.send)
            return
        try:
            key = self._identify(scope)
            self._check(scope, key)
            limits = self._params.limits.model_copy(update=key.limits)
            if scope["method"] == "POST" and scope["path"] == "/session":
                await self._open_session(scope, key, reply)
                return
            self._begin(key, limits, reply)
        except ApiError as error:
            await self._refuse(scope, reply, error)
            return
        try:
            with self._drain.count():
                await self._run(scope, receive, reply, key)
        finally:
            self._limiter.end(key.id)

    def _identify(self, scope: Scope) -> Key:
        """Return the key of the header, or else of a session's cookie. Raises Refusal (401)."""
        headers = Headers(scope=scope)
        kind, _, sent = headers.get("authorization", "").partition(" ")
        key = None
        if kind:
            key = self._keys.find(sent.strip()) if kind.lower() == "bearer" else None
        elif is_same_origin(scope["method"], headers):
            key_id = self._sessions.find(headers)
            key = self._keys.get(key_id) if key_id else None
        if key is None:
            message = "send a valid API key: Authorization: Bearer KEY"
            challenge = {"www-authenticate": 'Bearer realm="gristmill"'}
            raise Refusal(message, status=401, code="invalid_api_key", headers=challenge)
        return key

    def _check(self, scope: Scope, key: Key) -> None:
        """Raise Refusal when the key is not for this path (403), or the server stops (503)."""
        path = scope["path"]
        needed = next((name for start, name in SCOPED if path == start or path.startswith(f"{start}/")), "inference")
        if needed not in key.scopes and path != "/session":
            raise Refusal(f"the key {key.id} has no scope {needed!r}", status=403, code="missing_scope")
        if self._drain.active:
            raise self._stopping()

    def _stopping(self) -> Refusal:
        headers = {"retry-after": str(max(1, math.ceil(self._drain.grace_s))), "connection": "close"}
        return Refusal("the server is stopping", status=503, code="server_stopping", headers=headers)

    async def _open_session(self, scope: Scope, key: Key, reply: Reply) -> None:
        reply.headers["set-cookie"] = self._sessions.create(key.id, secure=scope["scheme"] == "https")
        await reply.answer(204, b"", {})

    def _begin(self, key: Key, limits: KeyLimits, reply: Reply) -> None:
        """Count the request. Raises Refusal (429)."""
        reply.describe_limits = partial(self._limiter.describe, key.id, limits)
        try:
            self._limiter.begin(key.id, limits)
        except LimitReached as reached:
            headers = {"retry-after": str(max(1, math.ceil(reached.retry_after_s)))}
            raise Refusal(str(reached), status=429, code="rate_limit_exceeded", headers=headers) from None

    async def _refuse(self, scope: Scope, reply: Reply, error: ApiError) -> None:
        """Answer with the error; a browser that opens the page without a session gets a page to sign in."""
        asks_page = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if error.status == 401 and asks_page and "text/html" in Headers(scope=scope).get("accept", ""):
            headers = {"content-type": "text/html; charset=utf-8", "content-security-policy": self._page_policy}
            await reply.answer(401, self._page, headers)
        else:
            await reply.refuse(error)

    async def _run(self, scope: Scope, receive: Receive, reply: Reply, key: Key) -> None:
        """Let the application answer, within the request's time."""
        state = scope.setdefault("state", {})
        request_id = state.setdefault("request_id", uuid.uuid4().hex)
        charge = partial(self._limiter.charge, key.id)
        state["caller"] = Caller(key.id, frozenset(key.scopes), request_id, charge)
        try:
            async with asyncio.timeout(self._params.request_timeout_s) as deadline:
                with self._drain.watch(deadline):
                    body = await self._read_body(receive)
                    if body is not None:
                        send = partial(self._send_while_valid, key, deadline, reply)
                        await self._app(scope, replay(body, receive), send)
        except ApiError as error:
            await reply.refuse(error)
        except TimeoutError:
            if not deadline.expired():
                raise
            with suppress(TimeoutError):  # a client that does not read gets no last event
                async with asyncio.timeout(LAST_EVENT_S):
                    await reply.cut(self._why_cut(key))

    async def _send_while_valid(self, key: Key, deadline: asyncio.Timeout, reply: Reply, message: Message) -> None:
        """Pass a message on, unless the time is over or the key was revoked: the last event is the gateway's."""
        if deadline.expired():
            return
        if self._keys.get(key.id) is None:
            deadline.reschedule(asyncio.get_running_loop().time())
            return
        await reply.send(message)

    def _why_cut(self, key: Key) -> Refusal:
        if self._drain.active:
            return self._stopping()
        if self._keys.get(key.id) is None:
            return Refusal(f"the key {key.id} was revoked", status=401, code="invalid_api_key")
        message = f"the request took longer than {self._params.request_timeout_s:g} s"
        return Refusal(message, status=504, code="request_timeout")

    async def _read_body(self, receive: Receive) -> bytes | None:
        """Return the body, or None when the client has gone. Raises Refusal (408, 413)."""
        body, limit = bytearray(), self._params.max_body_bytes
        try:
            async with asyncio.timeout(self._params.body_timeout_s) as deadline:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise Refusal(f"the body holds more than {limit} bytes", status=413, code="body_too_large")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            if not deadline.expired():
                raise
            text = f"the body did not arrive within {self._params.body_timeout_s:g} s"
            raise Refusal(text, status=408, code="body_timeout", headers={"connection": "close"}) from None


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, in one piece, and then what comes after it."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
