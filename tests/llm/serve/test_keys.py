"""Keys: made, listed and revoked on the command line, hashed in a private file, and seen by a running server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.serve.keys import CHECK_S, SCOPES, KeyRing, check_run_key, create_key, hash_key, read_keys, revoke_key

ROOT = Path(__file__).resolve().parents[3]


def run_keys(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm.serve.keys", *arguments]
    environment = os.environ | {"GRISTMILL_KEYS": str(path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def test_command_line_makes_lists_and_revokes(path: Path) -> None:
    made = run_keys(path, "create", "--name", "nightly", "--scopes", "metrics,inference", "--tokens-per-day", "7")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    (key,) = read_keys(path).keys
    assert (key.name, key.scopes, key.limits) == ("nightly", ("inference", "metrics"), {"tokens_per_day": 7})
    assert len(secret) == 43
    assert KeyRing(path, None).find(secret) == key
    for place in (path, path.parent):
        assert place.stat().st_mode & 0o077 == 0
        assert secret not in "".join(file.read_text() for file in path.parent.iterdir())
    listed = run_keys(path, "list").stdout
    assert key.id in listed
    assert "nightly" in listed
    assert "tokens_per_day=7" in listed
    assert key.hash not in listed
    assert run_keys(path, "revoke", key.id).returncode == 0
    again = run_keys(path, "revoke", key.id)
    assert again.returncode == 1
    assert "revoked already" in again.stderr
    assert KeyRing(path, None).find(secret) is None
    assert "revoked" in run_keys(path, "list").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("create",), "--name"),
        (("create", "--name", "a\nb"), "printable"),
        (("create", "--name", "a", "--scopes", "all"), "allowed are inference, metrics, lineage"),
        (("create", "--name", "a", "--parallel", "0"), "at least 1"),
        (("create", "--name", "a", "--parallel", "many"), "at least 1"),
        (("revoke", "none"), "no such key"),
    ],
)
def test_command_line_refuses_and_says_why(arguments: tuple[str, ...], message: str, path: Path) -> None:
    done = run_keys(path, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.exists()


def test_writers_at_once_lose_no_key(path: Path) -> None:
    program = "import sys; from pathlib import Path; from llm.serve.keys import create_key\n"
    program += "for n in range(10): create_key(Path(sys.argv[1]), str(n), ['inference'], {})"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT) for _ in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    keys = read_keys(path).keys
    assert len({key.id for key in keys}) == 30
    assert not list(path.parent.glob("*.partial"))


def test_running_server_sees_changes(path: Path) -> None:
    now = 0.0
    ring = KeyRing(path, None, clock=lambda: now)
    assert ring.find("anything") is None
    key, secret = create_key(path, "a", ["inference"], {})
    now += CHECK_S
    assert ring.find(secret) == ring.get(key.id) == key
    assert ring.find(secret + "x") is None
    assert ring.find("") is None
    revoke_key(path, key.id)
    now += CHECK_S / 2
    assert ring.find(secret) == key  # not looked at again yet
    now += CHECK_S / 2
    assert ring.find(secret) is None
    assert ring.get(key.id) is None


def test_file_that_breaks_closes_the_server(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    ring = KeyRing(path, "the-key-of-this-run", clock=lambda: now)
    _, secret = create_key(path, "a", ["inference"], {})
    assert ring.find(secret)
    path.write_text("{")
    now += CHECK_S
    assert ring.find(secret) is None
    assert "no key of the file is accepted" in caplog.text
    run_key = ring.find("the-key-of-this-run")
    assert run_key is not None
    assert run_key.scopes == SCOPES
    with pytest.raises(ConfigError, match="mend it"):
        create_key(path, "b", ["inference"], {})


def test_hash_is_salted_hmac() -> None:
    # RFC 4231, test case 2, whose key is "Jefe"
    assert hash_key(b"Jefe".hex(), "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.mark.parametrize("secret", ["", "short", "sixteen letters and spaces", "p\u00e4ssword-of-sixteen", "x" * 15])
def test_chosen_key_that_is_weak_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        check_run_key(secret)


def test_empty_variable_is_no_key(path: Path) -> None:
    for nothing in (None, ""):
        assert KeyRing(path, nothing).find("") is None
    with pytest.raises(ConfigError, match="GRISTMILL_API_KEY"):
        KeyRing(path, "short")
