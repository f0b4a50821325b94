"""The gateway over a small application, in process: who may pass, what is counted, and how an answer ends."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from llm.serve.drain import Drain
from llm.serve.gateway import Gateway
from llm.serve.keys import KeyRing, create_key, revoke_key
from llm.serve.limits import Budget, Limiter
from llm.serve.params import ServeParams

RUN_KEY = "the-key-of-this-run"
PAGE_POLICY = "default-src 'self'"


async def echo(request: Request) -> Response:
    """Say who asked and how long the body was; charge what the query says."""
    caller = request.state.caller
    size = len(await request.body())
    caller.charge(int(request.query_params.get("tokens", 0)))
    return JSONResponse(
        {"key": caller.key_id, "request": caller.request_id, "scopes": sorted(caller.scopes), "n": size}
    )


async def stream(request: Request) -> Response:
    async def events() -> Any:
        yield "data: 1\n\n"
        await asyncio.sleep(float(request.query_params.get("wait", 3600)))
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def drip(request: Request) -> Response:
    async def events() -> Any:
        for _ in range(2000):
            yield "data: 1\n\n"
            await asyncio.sleep(0)
        yield "data: whole\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def sleep(request: Request) -> Response:
    await asyncio.sleep(3600)
    return PlainTextResponse("slept")


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"Content-Security-Policy": PAGE_POLICY})


def fine(request: Request) -> Response:
    return PlainTextResponse("fine")


APP = Starlette(
    routes=[
        Route("/", page),
        Route("/livez", fine),
        Route("/readyz", fine),
        Route("/metrics", fine),
        Route("/v1/lineage/x", fine),
        Route("/v1/echo", echo, methods=["GET", "POST"]),
        Route("/v1/stream", stream),
        Route("/v1/drip", drip),
        Route("/v1/sleep", sleep),
    ]
)


class Gate:
    """A gateway, and what a test moves of it."""

    def __init__(self, folder: Path, **params: Any):
        self.path, self.now = folder / "keys.json", 0.0
        self.drain = Drain(params.get("grace_s", 30))
        budget = Budget(folder / "usage.json")
        keys = KeyRing(self.path, RUN_KEY, clock=lambda: self.now)
        limiter = Limiter(budget, clock=lambda: self.now)
        self.app = Gateway(APP, ServeParams.model_validate(params), keys, limiter, self.drain)

    def ask(self, path: str, key: str | None = RUN_KEY, method: str = "GET", **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            return await self.send(path, key, method, **options)

        return asyncio.run(run())

    async def send(self, path: str, key: str | None = RUN_KEY, method: str = "GET", **options: Any) -> httpx.Response:
        headers = options.pop("headers", {}) | ({} if key is None else {"Authorization": f"Bearer {key}"})
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url=options.pop("base", "http://one:3000")) as client:
            return await client.request(method, path, headers=headers, **options)

    async def wait_for(self, num_running: int) -> None:
        while self.drain._num_running < num_running:
            await asyncio.sleep(0)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def code(reply: httpx.Response) -> str:
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.mark.parametrize("path", ["/v1/echo", "/", "/metrics", "/unknown", "/livez/", "/LIVEZ", "//readyz", "/session"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Basic {RUN_KEY}"}, {"Authorization": RUN_KEY}])
def test_without_a_key_nothing_is_told(gate: Gate, path: str, headers: dict[str, str]) -> None:
    for key in (None, "wrong-key-of-this-run", RUN_KEY[:-1]):
        reply = gate.ask(path, key, headers=headers) if key is None else gate.ask(path, key)
        assert reply.status_code == 401
        assert code(reply) == "invalid_api_key"
        assert reply.headers["www-authenticate"].startswith("Bearer")


def test_probes_are_open_and_the_run_key_opens_the_rest(gate: Gate) -> None:
    for path in ("/livez", "/readyz"):
        assert gate.ask(path, None).text == "fine"
    for path in ("/", "/metrics", "/v1/lineage/x", "/v1/echo"):
        assert gate.ask(path).status_code == 200
    assert gate.ask("/unknown").status_code == 404
    assert gate.ask("/v1/echo", headers={"Authorization": f"bearer  {RUN_KEY}"}, key=None).status_code == 200


@pytest.mark.parametrize(
    "scope, open_paths",
    [("inference", {"/", "/v1/echo"}), ("metrics", {"/metrics"}), ("lineage", {"/v1/lineage/x"})],
)
def test_scopes(gate: Gate, scope: str, open_paths: set[str]) -> None:
    key, secret = create_key(gate.path, "a", [scope], {})
    for path in ("/", "/v1/echo", "/metrics", "/v1/lineage/x"):
        reply = gate.ask(path, secret)
        assert reply.status_code == (200 if path in open_paths else 403)
        if reply.status_code == 403:
            assert code(reply) == "missing_scope"
            assert key.id in reply.json()["error"]["message"]


def test_caller_is_named_and_each_request_has_an_id(gate: Gate) -> None:
    key, secret = create_key(gate.path, "a", ["inference"], {})
    one, two = gate.ask("/v1/echo", secret).json(), gate.ask("/v1/echo", secret).json()
    assert one["key"] == key.id
    assert one["scopes"] == ["inference"]
    assert one["request"] != two["request"]


def test_a_stream_ends_when_its_key_is_revoked(gate: Gate) -> None:
    key, secret = create_key(gate.path, "a", ["inference"], {})

    async def run() -> list[httpx.Response]:
        streams = [asyncio.create_task(gate.send("/v1/drip", one)) for one in (secret, RUN_KEY)]
        await gate.wait_for(2)
        for _ in range(100):  # turns of the loop: both have begun
            await asyncio.sleep(0)
        revoke_key(gate.path, key.id)
        gate.now += 1
        return await asyncio.gather(*streams)

    cut, other = asyncio.run(run())
    assert f"the key {key.id} was revoked" in cut.text
    assert cut.text.endswith("data: [DONE]\n\n")
    assert other.text.endswith("data: whole\n\n")


def test_revoked_key_is_out_within_a_second(gate: Gate) -> None:
    key, secret = create_key(gate.path, "a", ["inference"], {})
    assert gate.ask("/v1/echo", secret).status_code == 200
    revoke_key(gate.path, key.id)
    gate.now += 1
    assert gate.ask("/v1/echo", secret).status_code == 401


def test_limits_of_the_key_come_before_those_of_params(tmp_path: Path) -> None:
    gate = Gate(tmp_path, limits={"requests_per_minute": 3})
    _, secret = create_key(gate.path, "a", ["inference"], {"requests_per_minute": 1})
    first = gate.ask("/v1/echo", secret)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    second = gate.ask("/v1/echo", secret)
    assert second.status_code == 429
    assert code(second) == "rate_limit_exceeded"
    assert second.headers["retry-after"] == "60"
    assert second.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert [gate.ask("/v1/echo").status_code for _ in range(4)] == [200, 200, 200, 429]
    gate.now += 60
    assert gate.ask("/v1/echo", secret).status_code == 200


def test_charged_tokens_count(tmp_path: Path) -> None:
    gate = Gate(tmp_path, limits={"tokens_per_minute": 10, "tokens_per_day": 15})
    assert gate.ask("/v1/echo?tokens=10").headers["x-ratelimit-remaining-tokens"] == "0"
    assert "tokens of this minute" in gate.ask("/v1/echo").json()["error"]["message"]
    gate.now += 60
    assert gate.ask("/v1/echo?tokens=5").status_code == 200
    gate.now += 60
    assert "tokens of this UTC day" in gate.ask("/v1/echo").json()["error"]["message"]


def test_parallel_requests_are_counted_until_they_end(tmp_path: Path) -> None:
    gate = Gate(tmp_path, limits={"parallel": 2})

    async def run() -> list[int]:
        waiting = [asyncio.ensure_future(gate.send("/v1/sleep")) for _ in range(2)]
        await gate.wait_for(2)
        full = await gate.send("/v1/echo")
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [full.status_code, (await gate.send("/v1/echo")).status_code]

    assert asyncio.run(run()) == [429, 200]


def test_security_headers_are_on_every_answer(gate: Gate) -> None:
    replies = [gate.ask(path) for path in ("/", "/v1/echo", "/v1/stream?wait=0", "/unknown", "/livez")]
    replies += [gate.ask("/", None), gate.ask("/", None, headers={"Accept": "text/html"}), gate.ask("/", "wrong")]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers.get_list("cache-control") == ["no-store"]
        assert "default-src" in reply.headers["content-security-policy"]
    assert replies[0].headers.get_list("content-security-policy") == [PAGE_POLICY]


def test_other_sites_get_no_leave(gate: Gate) -> None:
    preflight = {"Origin": "http://evil", "Access-Control-Request-Method": "POST"}
    for key in (None, RUN_KEY):
        reply = gate.ask("/v1/echo", key, "OPTIONS", headers=preflight)
        assert reply.status_code in (401, 405)
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_session_cookie_opens_the_page_for_its_own_pages_only(gate: Gate) -> None:
    opened = gate.ask("/session", method="POST")
    assert opened.status_code == 204
    token, *attributes = opened.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    assert RUN_KEY not in opened.headers["set-cookie"]
    assert "Secure" in gate.ask("/session", method="POST", base="https://one").headers["set-cookie"].split("; ")

    def status(method: str, **headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"Cookie": f"a=b; {token}"}
        return gate.ask("/v1/echo", None, method, headers=sent).status_code

    assert status("GET") == status("GET", Sec_Fetch_Site="none") == 200
    assert status("POST", Sec_Fetch_Site="same-origin") == status("POST", Origin="http://one:3000") == 200
    for site in ("cross-site", "same-site", "none", ""):
        assert status("POST", Sec_Fetch_Site=site, Origin="http://one:3000") == 401
    for origin in ("http://one:3001", "http://evil", "null", ""):
        assert status("POST", Origin=origin) == status("GET", Origin=origin) == 401
    assert status("POST") == 401
    assert gate.ask("/v1/echo", None, headers={"Cookie": f"{token}x"}).status_code == 401
    assert gate.ask("/v1/echo", None, headers={"Cookie": "gristmill"}).status_code == 401
    assert gate.ask("/v1/echo", "wrong", headers={"Cookie": token}).status_code == 401


def test_session_ends_with_its_key(gate: Gate) -> None:
    key, secret = create_key(gate.path, "a", ["inference"], {})
    token = gate.ask("/session", secret, "POST").headers["set-cookie"].split(";")[0]
    assert gate.ask("/v1/echo", None, headers={"Cookie": token}).json()["key"] == key.id
    revoke_key(gate.path, key.id)
    gate.now += 1
    assert gate.ask("/v1/echo", None, headers={"Cookie": token}).status_code == 401


def test_sign_in_page_is_inert(gate: Gate) -> None:
    reply = gate.ask("/", None, headers={"Accept": "text/html,*/*"})
    assert reply.status_code == 401
    assert reply.headers["content-type"].startswith("text/html")
    script = reply.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    for word in ("http://", "https://", "innerHTML", "gristmill", "Gristmill"):
        assert word not in reply.text
    assert gate.ask("/v1/echo", None, headers={"Accept": "text/html"}).headers["content-type"] == "application/json"


async def drive(
    gate: Gate, path: str, receive: Callable[[], Awaitable[Any]], method: str = "POST"
) -> list[dict[str, Any]]:
    """Send a request by hand, and return the messages of the answer."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {RUN_KEY}".encode())],
        "scheme": "http",
    }

    async def send(message: Any) -> None:
        sent.append(message)

    await gate.app(scope, receive, send)
    return sent


def test_body_within_the_limit_arrives_whole(tmp_path: Path) -> None:
    gate = Gate(tmp_path, max_body_bytes=1000)

    async def pieces() -> Any:
        for size in (400, 600):
            yield b"x" * size

    assert gate.ask("/v1/echo", method="POST", content=pieces()).json()["n"] == 1000
    large = gate.ask("/v1/echo", method="POST", content=b"x" * 1001)
    assert large.status_code == 413
    assert code(large) == "body_too_large"


def test_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    async def half() -> dict[str, Any]:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"x", "more_body": True}

    start, body = asyncio.run(drive(Gate(tmp_path, body_timeout_s=0.05), "/v1/echo", half))
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "body_timeout"


def test_client_that_leaves_within_its_body_reaches_no_route(gate: Gate) -> None:
    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert asyncio.run(drive(gate, "/v1/echo", leave)) == []
    assert gate.ask("/v1/echo").headers["x-ratelimit-remaining-requests"] == "598"


def test_request_that_takes_too_long_ends_with_an_error(tmp_path: Path) -> None:
    gate = Gate(tmp_path, request_timeout_s=0.05)
    reply = gate.ask("/v1/sleep")
    assert reply.status_code == 504
    assert code(reply) == "request_timeout"
    first, last, done = gate.ask("/v1/stream").text.strip().split("\n\n")
    assert (first, done) == ("data: 1", "data: [DONE]")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"


def test_websockets_are_closed(gate: Gate) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate.app({"type": "websocket", "path": "/v1/echo"}, lambda: asyncio.sleep(0), send))  # type: ignore[arg-type, return-value]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("grace_s, ends", [(0.0, "server_stopping"), (3600.0, "[DONE]")])
def test_stopping_server_admits_nobody_and_ends_what_runs(tmp_path: Path, grace_s: float, ends: str) -> None:
    gate = Gate(tmp_path, grace_s=grace_s)

    async def run() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        running = asyncio.ensure_future(gate.send(f"/v1/stream?wait={3600 if grace_s == 0 else 0.05}"))
        await gate.wait_for(1)
        drained = asyncio.ensure_future(gate.drain.run())
        await asyncio.sleep(0)
        late, stranger = await gate.send("/v1/echo"), await gate.send("/v1/echo", None)
        await drained
        return await running, late, stranger

    running, late, stranger = asyncio.run(run())
    assert running.status_code == 200
    assert running.text.endswith("data: [DONE]\n\n")
    assert ("server_stopping" in running.text) == (ends == "server_stopping")
    assert late.status_code == 503
    assert late.headers["retry-after"] == str(max(1, int(grace_s)))
    assert stranger.status_code == 401


def test_application_that_ends_itself_when_interrupted_says_nothing_twice(tmp_path: Path) -> None:
    gate = Gate(tmp_path, request_timeout_s=0.05)

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await asyncio.sleep(3600)
        finally:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    gate.app._app = stubborn
    assert gate.ask("/v1/stream").text.count("[DONE]") == 1
