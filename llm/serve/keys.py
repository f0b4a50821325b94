"""API keys: made, listed and revoked by `python -m llm.serve.keys`; the file holds their hashes, never a key.

A key made here is 256 random bits. So a fast hash keeps it: nobody can try that many keys, and a slow one (scrypt)
would cost every request what it is meant to cost a guesser. HMAC-SHA256 under the file's own random salt, so that the
hashes of two files cannot be compared. A running server sees a change of the file within `CHECK_S`.
"""

import argparse
import hmac
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError

from llm.config import BaseParams, ConfigError, require
from llm.serve.params import KeyLimits
from llm.serve.store import hold_lock, write_private

log = logging.getLogger(__name__)

DEFAULT_FILE = Path(__file__).resolve().parents[2] / ".gristmill" / "keys.json"
CHECK_S = 0.5
MIN_CHARS = 16  # of a key that somebody chose: GRISTMILL_API_KEY
RUN_KEY = "run"  # the id of the key that is valid for one run of the server only

Scope = Literal["inference", "metrics", "lineage"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


def _check_limits(limits: dict[str, int]) -> dict[str, int]:
    KeyLimits.model_validate(limits)
    return limits


class Key(BaseParams):
    """What is known of a key: everything but the key itself."""

    id: str = Field(pattern="^[0-9a-z]{1,32}$", description="names the key in logs, lists and in `revoke`")
    name: str = Field(min_length=1, max_length=64, description="whose it is, or what for")
    hash: str = Field(pattern="^[0-9a-f]{64}$", description="HMAC-SHA256 of the key")
    created: str = Field(description="UTC time")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="what it may be used for")
    limits: Annotated[dict[str, int], AfterValidator(_check_limits)] = Field(
        default_factory=dict, description="its own limits; serve.limits of params.yaml holds the others"
    )
    revoked: str | None = Field(None, description="UTC time")


class KeyFile(BaseParams):
    """The content of the file."""

    salt: str = Field(default_factory=lambda: secrets.token_hex(16), pattern="^[0-9a-f]{32}$")
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Caller:
    """Who sent a request. The routes call `charge` with the tokens of prompt and answer when the answer has ended."""

    key_id: str
    scopes: frozenset[str]
    request_id: str
    charge: Callable[[int], None] = field(repr=False)


def find_keys_file() -> Path:
    """Return the file named by GRISTMILL_KEYS, or the project's own."""
    return Path(os.environ.get("GRISTMILL_KEYS") or DEFAULT_FILE)


def read_keys(path: Path) -> KeyFile:
    """Return the file's content; one that does not exist yet holds no key. Raises ConfigError when it is not ours."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return KeyFile()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}; mend it, or delete it and make new keys") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def create_key(path: Path, name: str, scopes: Collection[str], limits: dict[str, int]) -> tuple[Key, str]:
    """Add a key and return it; the second value is the key that the client sends, which is kept nowhere."""
    secret = secrets.token_urlsafe(32)
    with hold_lock(path):
        file = read_keys(path)
        entry = {
            "id": secrets.token_hex(4),
            "name": name,
            "hash": hash_key(file.salt, secret),
            "created": _now(),
            "scopes": [scope for scope in SCOPES if scope in scopes],
            "limits": limits,
        }
        key = Key.model_validate(entry)
        write_private(path, KeyFile(salt=file.salt, keys=(*file.keys, key)).model_dump_json(indent=1), sync=True)
    return key, secret


def revoke_key(path: Path, key_id: str) -> Key:
    """Mark a key as revoked; it stays in the list. Raises ConfigError when there is no such key."""
    with hold_lock(path):
        file = read_keys(path)
        found = [key for key in file.keys if key.id == key_id and key.revoked is None]
        require(bool(found), f"{key_id}: {path} holds no such key, or it is revoked already")
        revoked = found[0].model_copy(update={"revoked": _now()})
        keys = tuple(revoked if key.id == key_id else key for key in file.keys)
        write_private(path, KeyFile(salt=file.salt, keys=keys).model_dump_json(indent=1), sync=True)
    return revoked


def check_run_key(secret: str) -> None:
    """Refuse a chosen key that could be guessed or not be sent in a header. Raises ConfigError."""
    sendable = secret.isascii() and secret.isprintable() and " " not in secret
    require(
        len(secret) >= MIN_CHARS and sendable,
        f"GRISTMILL_API_KEY: at least {MIN_CHARS} ASCII characters without spaces; leave it out for a random one",
    )


def hash_key(salt: str, secret: str) -> str:
    """Return what the file keeps of a key."""
    return hmac.digest(bytes.fromhex(salt), secret.encode("utf8", "surrogateescape"), "sha256").hex()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class KeyRing:
    """The keys that a running server accepts: those of the file as it is now, and that of this run, if there is one.

    Raises: ConfigError: see `check_run_key`.
    """

    def __init__(self, path: Path, run_key: str | None, clock: Callable[[], float] = time.monotonic):
        if run_key:
            check_run_key(run_key)
        self._path, self._run_key, self._clock = path, run_key, clock
        self._checked = -float("inf")
        self._seen: tuple[int, ...] | None = None
        self._use(KeyFile())

    def find(self, secret: str) -> Key | None:
        """Return the key that was sent. Every hash is compared, whole: how long it takes tells nothing of them."""
        self._refresh()
        digest, found = hash_key(self._salt, secret), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.hash):
                found = key
        return found

    def get(self, key_id: str) -> Key | None:
        """Return the key of an id, if it is still valid."""
        self._refresh()
        return next((key for key in self._keys if key.id == key_id), None)

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_S:
            return
        self._checked = now
        seen = _identify(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._use(read_keys(self._path))
        except ConfigError as error:  # closed rather than open: what cannot be read may have been revoked
            log.error("no key of the file is accepted: %s", error)
            self._use(KeyFile())

    def _use(self, file: KeyFile) -> None:
        self._salt = file.salt
        self._keys = [key for key in file.keys if key.revoked is None]
        if self._run_key:  # an empty variable is none: the empty key must not open anything
            digest = hash_key(file.salt, self._run_key)
            self._keys.append(Key(id=RUN_KEY, name="this run", hash=digest, created=_now(), scopes=SCOPES))


def _identify(path: Path) -> tuple[int, ...]:
    """Return what changes when the file is replaced; nothing when there is none."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def main() -> None:
    """Do what was asked; a new key goes to stdout, alone, and is shown this once."""
    options = _parse_options()
    path = find_keys_file()
    try:
        if options.command == "create":
            limits = {name: getattr(options, name) for name in KeyLimits.model_fields}
            key, secret = create_key(path, options.name, options.scopes, {k: v for k, v in limits.items() if v})
            print(f"key {key.id} ({key.name}) for {', '.join(key.scopes)}; it is not shown again:", file=sys.stderr)
            print(secret)
        elif options.command == "revoke":
            print(f"revoked {revoke_key(path, options.id).id}")
        else:
            for key in read_keys(path).keys:
                state = f"revoked {key.revoked}" if key.revoked else "valid"
                own = " ".join(f"{name}={value}" for name, value in key.limits.items())
                print(f"{key.id}  {key.name}  {key.created}  {','.join(key.scopes)}  {state}  {own}".rstrip())
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.serve.keys", description="Make, list and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it")
    create.add_argument("--name", type=_name, required=True, help="whose it is, or what for")
    about = f"some of {','.join(SCOPES)}: metrics is for /metrics, lineage for /v1/lineage, inference for the rest"
    create.add_argument("--scopes", type=_scopes, default=["inference"], help=f"{about} (default: inference)")
    for name, limit in KeyLimits.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        create.add_argument(option, dest=name, type=_limit, metavar="N", help=limit.description)
    commands.add_parser("list", help="print all keys but their secrets")
    commands.add_parser("revoke", help="make a key invalid").add_argument("id")
    return parser.parse_args()


def _name(text: str) -> str:
    if not (text.isprintable() and 1 <= len(text.strip()) <= 64):
        raise argparse.ArgumentTypeError("1 to 64 printable characters")
    return text.strip()


def _scopes(text: str) -> list[str]:
    scopes = [one.strip() for one in text.split(",")]
    if not set(scopes) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"allowed are {', '.join(SCOPES)}, separated by commas")
    return scopes


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
