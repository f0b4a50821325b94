"""The real server is closed: every route that the running app has, its logs, its transport, its keys."""

import itertools
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm.serve.keys import create_key, revoke_key

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
OPEN = {"/livez", "/readyz"}
MARKER = "marmalade-zeppelin-4711"
Start = Callable[[list[str], dict[str, str]], AbstractContextManager[Any]]
# Run in a process of its own, because BentoML configures the process that it builds a server in.
LIST_ROUTES = """
import json
from starlette.routing import Mount
from llm.serve.service import Gristmill

def walk(routes, prefix):
    for route in routes:
        path = prefix + getattr(route, "path", "")
        inner = getattr(route, "routes", None)
        if inner:
            yield from walk(inner, path.rstrip("/"))
        yield path + "/main.css" if isinstance(route, Mount) and not inner else path

print(json.dumps(sorted(set(walk(Gristmill.to_asgi().routes, "")))))
"""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths of the application that the worker runs, BentoML's own included."""
    environment = os.environ | {"BENTOML_HOME": str(tmp_path_factory.mktemp("bentoml"))}
    done = subprocess.run(
        [sys.executable, "-c", LIST_ROUTES], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_every_route_needs_a_key(server: str, routes: list[str], http: httpx.Client) -> None:
    assert {"/", "/livez", "/metrics", "/healthz", "/docs.json", "/schema.json", "/v1/chat/completions"} <= set(routes)
    assert http.get("/docs.json").status_code == 200  # so that a 401 is the gateway's doing
    with httpx.Client(base_url=server, timeout=30) as stranger:
        for path, method in itertools.product(routes, METHODS):
            url = path.replace("{", "").replace(":path}", "").replace("}", "")
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "gristmill=wrong"}):
                reply = stranger.request(method, url, headers=headers)
                if path in OPEN:
                    assert reply.status_code == (200 if method in ("GET", "HEAD") else 405)
                    continue
                assert reply.status_code == 401, (method, path)
                assert reply.headers["www-authenticate"] == 'Bearer realm="gristmill"'
                assert not [name for name in reply.headers if name.startswith("access-control")]
                if method != "HEAD":
                    error = reply.json()["error"]
                    assert error.keys() == {"message", "type", "param", "code"}
                    assert error["code"] == "invalid_api_key"


def test_strangers_leave_nothing_in_memory(server: str, http: httpx.Client) -> None:
    """BentoML's own metrics kept a series for each path, 3.6 kB of /metrics for each."""
    with httpx.Client(base_url=server, timeout=30) as stranger:
        for number in range(10):
            assert stranger.get(f"/unheard-of-{number}").status_code == 401
    metrics = http.get("/metrics").text
    assert "# TYPE" in metrics
    assert "unheard-of" not in metrics


def test_no_text_of_a_prompt_and_no_key_is_logged(running: Any, http: httpx.Client, key: str) -> None:
    messages = [{"role": "user", "content": MARKER}]
    good = {"model": "gristmill", "max_tokens": 4}
    bodies: list[Any] = [good | {"messages": messages}, good | {"prompt": MARKER}]
    bodies += [good | {"messages": messages, "stream": True}, good | {"prompt": MARKER, MARKER: MARKER}]
    bodies += [good | {"prompt": MARKER, "temperature": MARKER}, {"model": MARKER, "prompt": MARKER}, MARKER]
    for path, body in itertools.product(("/v1/chat/completions", "/v1/completions"), bodies):
        http.post(path, json=body, params={"q": MARKER})
    http.post("/v1/completions", content=MARKER, headers={"Content-Type": "application/json"})
    http.get("/", headers={"Authorization": f"Bearer {MARKER}", "Cookie": MARKER})
    http.get("/a%0aforged%20line", headers={"Authorization": ""})
    log = running.log.read_text()
    assert "Service gristmill initialized" in log  # the worker's log is read, not only the supervisor's
    assert "\nforged line" not in log
    assert MARKER not in log
    assert key not in log


def test_file_of_keys_is_followed_while_the_server_runs(running: Any, http: httpx.Client) -> None:
    path = running.log.with_name("keys.json")
    made, secret = create_key(path, "a", ["inference"], {"requests_per_minute": 1000})

    def status(path: str = "/v1/models") -> int:
        return http.get(path, headers={"Authorization": f"Bearer {secret}"}).status_code

    wait_until(lambda: status() == 200)
    assert status("/metrics") == 403
    revoke_key(path, made.id)
    wait_until(lambda: status() == 401)
    assert http.get("/v1/models").status_code == 200


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def test_tls_by_flags_with_a_fresh_key(start_server: Start, certificate: tuple[Path, Path]) -> None:
    cert_file, key_file = certificate
    arguments = ["--tls-cert", str(cert_file), "--tls-key", str(key_file)]
    with start_server(arguments, {"GRISTMILL_API_KEY": ""}) as running:
        (key,) = re.findall(r"^key for this run: (\S{43})$", running.log.read_text(), re.MULTILINE)
        assert f"sign in: {running.address}/#key={key}\n" in running.log.read_text()
        assert running.address.startswith("https://127.0.0.1:")
        headers = {"Authorization": f"Bearer {key}"}
        trusting = ssl.create_default_context(cafile=str(cert_file))
        assert httpx.get(f"{running.address}/v1/models", headers=headers, verify=trusting).status_code == 200
        opened = httpx.post(f"{running.address}/session", headers=headers, verify=trusting)
        assert "Secure" in opened.headers["set-cookie"].split("; ")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{running.address}/livez")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.address.replace('https', 'http')}/livez")
