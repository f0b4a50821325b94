"""What bad input gets: a 4xx with an OpenAI body, never a 5xx, never a worker that hangs."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm.serve.params import ServeParams
from llm.serve.release import Release
from tests.llm.serve.scripted import KEY, Api, serve

CHAT: dict[str, Any] = {"model": "gristmill", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "gristmill", "prompt": "hi", "max_tokens": 2}
FUNCTION: dict[str, Any] = {"name": "f"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA: dict[str, Any] = {"name": "s", "schema": {"type": "object"}}
BEARER = {"Authorization": f"Bearer {KEY}"}
POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def api(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    params = ServeParams(body_timeout_s=0.5, max_body_bytes=2_000_000, max_prompt_chars=100_000, max_queue=4096)
    with serve([release], params, tmp_path_factory.mktemp("scripted")) as running:
        yield running


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.address, timeout=20, headers=BEARER) as one:
        yield one


def require_error(reply: httpx.Response, status: int | None = None) -> dict[str, Any]:
    """Return the error of a reply that must be a 4xx in OpenAI's form."""
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:300])
    assert status in (None, reply.status_code), (reply.status_code, reply.text[:300])
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(reply.content) < 2000, "the error repeats the request"
    return dict(error)


def require_answers(http: httpx.Client) -> None:
    """The worker still does its work."""
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def _chat(**change: Any) -> tuple[str, Any]:
    return "/v1/chat/completions", CHAT | change


def _fields(text: str) -> list[tuple[str, Any]]:
    """Return a request for every field that may hold a text, with the text in it."""
    named = {"type": "function", "function": {"name": text}}
    says = {"role": "assistant", "content": text, "tool_calls": [CALL | {"id": text}]}
    calls = {"role": "assistant", "tool_calls": [CALL | {"function": {"name": text, "arguments": text}}]}
    wanted = {"type": "json_schema", "json_schema": SCHEMA | {"name": text}}
    described = {"type": "object", "description": text, "properties": {text: {"enum": [text]}}}
    return [
        _chat(messages=[{"role": "user", "content": text}]),
        _chat(messages=[{"role": "system", "content": [{"type": "text", "text": text}]}, *CHAT["messages"]]),
        _chat(messages=[{"role": text, "content": "hi"}]),
        _chat(messages=[{"role": "user", "content": "hi", "name": text}]),
        _chat(messages=[*CHAT["messages"], says, {"role": "tool", "tool_call_id": text, "content": text}]),
        _chat(messages=[*CHAT["messages"], calls]),
        _chat(model=text),
        _chat(stop=[text]),
        _chat(user=text),
        _chat(logit_bias={text: 1}),
        _chat(**{text: text}),
        _chat(tools=[named]),
        _chat(tools=[{"type": "function", "function": FUNCTION | {"description": text, "parameters": described}}]),
        _chat(tools=[{"type": "function", "function": FUNCTION}], tool_choice=named),
        _chat(tools=[{"type": "function", "function": FUNCTION}], tool_choice=text),
        _chat(response_format=wanted),
        _chat(response_format={"type": text}),
        _chat(response_format={"type": "json_schema", "json_schema": SCHEMA | {"description": text}}),
        _chat(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": described}}),
        ("/v1/completions", TEXT | {"prompt": text}),
        ("/v1/completions", TEXT | {"prompt": [text, "hi"], "echo": True}),
        ("/v1/completions", TEXT | {"stop": text}),
        ("/v1/completions", TEXT | {"suffix": text}),
        ("/tokenize", {"prompt": text, "return_token_strs": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": text}]}),
        ("/tokenize", {"prompt": "hi", "model": text}),
        ("/detokenize", {"tokens": [text]}),
    ]


def _ask(http: httpx.Client, text: str) -> None:
    for path, body in _fields(text):
        reply = http.post(path, json=body)
        if reply.status_code != 200:
            require_error(reply)
    back = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
    assert back.status_code == 200
    for header in ("Authorization", "X-Request-Id", "Content-Type", "Accept", "Cookie"):
        value = text.encode("utf8").replace(b"\n", b" ").replace(b"\r", b" ").replace(b"\0", b" ").strip()
        try:
            reply = http.post("/v1/chat/completions", json=CHAT, headers={header.encode(): value})
        except (httpx.LocalProtocolError, httpx.RemoteProtocolError):
            continue  # no HTTP header can hold it
        assert reply.status_code < 500


def test_some_naughty_strings_in_every_text_field(http: httpx.Client) -> None:
    for text in ("\0\ufffe", "{{7*7}} %s <script>"):
        _ask(http, text)
    require_answers(http)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_all_naughty_strings_in_every_text_field(http: httpx.Client, shared_data: Path, part: int) -> None:
    for text in json.loads((shared_data / "naughty-strings" / "blns.json").read_text(encoding="utf8"))[part::5]:
        _ask(http, text)
    require_answers(http)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b"\xff\xfe",
        b"\x00" * 100,
        bytes(range(256)) * 40,
        b"[" * 100_000,
        b'{"model": ' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "gristmill", "model": "gristmill"}',
        b'{"model": "\\ud800"}',
        b'{"model": "gristmill", "prompt": NaN, "messages": NaN, "tokens": NaN}',
        b'{"model": "gristmill", "prompt": Infinity}',
        b'{"model": "gristmill", "max_tokens": 1e999}',
        b'{"model": "gristmill", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "gristmill", "' + b"k" * 100_000 + b'": 1}',
        b'{"model": "gristmill"} {"model": "gristmill"}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_broken_bodies(http: httpx.Client, path: str, body: bytes) -> None:
    require_error(http.post(path, content=body, headers={"Content-Type": "application/json"}), 400)
    require_answers(http)


@pytest.mark.parametrize(
    "path, body, field",
    [
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": "x" * 100_001}]},
            "messages[0].content",
        ),
        ("/v1/completions", TEXT | {"prompt": "x" * 100_001}, "prompt"),
        ("/v1/completions", TEXT | {"prompt": "x" * 100_000}, "prompt"),
        ("/v1/completions", TEXT | {"prompt": [3] * 100_000}, "prompt"),
        ("/v1/completions", TEXT | {"prompt": ["x"] * 100_000}, "prompt"),
        ("/v1/chat/completions", CHAT | {"messages": CHAT["messages"] * 1001}, "messages"),
        ("/tokenize", {"prompt": "x" * 100_001}, "prompt"),
        ("/tokenize", {"messages": CHAT["messages"] * 1000}, None),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**400]}, "tokens"),
    ],
)
def test_huge_values(http: httpx.Client, path: str, body: Any, field: str | None) -> None:
    reply = http.post(path, json=body)
    if field is None:
        assert reply.status_code == 200
    else:
        assert require_error(reply, 400)["param"] == field


def test_body_beyond_the_limit_is_413_while_it_comes(http: httpx.Client) -> None:
    reply = http.post("/tokenize", content=b" " * 2_000_001, headers={"Content-Type": "application/json"})
    assert require_error(reply, 413)["code"] == "body_too_large"


def _connect(api: Api) -> socket.socket:
    host, port = api.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _head(path: str, size: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()


def test_half_a_body_is_408(api: Api, http: httpx.Client) -> None:
    head = _head("/tokenize", 100) + b"{"
    with _connect(api) as one, _connect(api) as other:
        for connection in (one, other):
            connection.sendall(head)
        require_answers(http)  # meanwhile
        received = b""
        while b"}}" not in received:
            part = one.recv(4096)
            assert part, received
            received += part
    assert received.startswith(b"HTTP/1.1 408 ")
    assert json.loads(received.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "body_timeout"
    with _connect(api) as gone:  # half a body, and no more
        gone.sendall(head)
    require_answers(http)


def test_slow_readers_hold_up_nobody(api: Api, http: httpx.Client) -> None:
    """Clients that ask for a stream and do not read it; when they have gone, so has their work."""
    api.backend.endless = True
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 4000}).encode()
    slow = [_connect(api) for _ in range(8)]
    for connection in slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(_head("/v1/chat/completions", len(body)) + body)
    _wait(lambda: len(api.backend.running) == 8)
    api.backend.endless = False
    require_answers(http)
    for connection in slow:
        connection.close()
    _wait(lambda: not api.backend.running)


@pytest.mark.parametrize(
    "method, path", [("GET", "/v1/models/%00"), ("GET", "/v1/models/" + "x" * 5000), ("GET", "/%ff")]
)
def test_odd_paths_are_404(http: httpx.Client, method: str, path: str) -> None:
    require_error(http.request(method, path), 404)


def test_document_names_every_route(api: Api, http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    ours = {route.path.replace(":path", "") for route in api.app.routes if hasattr(route, "path")}  # type: ignore[attr-defined]
    assert ours - {"/", "/openapi.json"} == set(document["paths"])
    for path in POSTS:
        statuses = set(document["paths"][path]["post"]["responses"])
        assert statuses == {"200", "400", "401", "403", "404", "408", "413", "429", "500", "503", "504"}
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == ["gristmill"]


def _fuzz(address: str, key: str, num_examples: int, folder: Path) -> None:
    """Run schemathesis over the published document, with valid and with invalid requests."""
    command = [str(Path(sys.executable).parent / "st"), "run", f"{address}/openapi.json", "--checks", CHECKS]
    command += ["--max-examples", str(num_examples), "--phases", "examples,coverage,fuzzing", "--mode", "all"]
    command += ["--seed", "1", "--no-color", "--continue-on-failure", "--no-shrink", "--request-timeout", "20"]
    command += ["--suppress-health-check", "all", "--header", f"Authorization: Bearer {key}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_schemathesis_finds_nothing(api: Api, http: httpx.Client, tmp_path: Path) -> None:
    _fuzz(api.address, KEY, 50, tmp_path)
    require_answers(http)


@pytest.mark.slow
def test_schemathesis_finds_nothing_in_the_real_server(server: str, key: str, tmp_path: Path) -> None:
    _fuzz(server, key, 10, tmp_path)
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.post(f"{server}/v1/chat/completions", json=CHAT, headers=headers, timeout=60).status_code in (200, 429)


def _wait(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
