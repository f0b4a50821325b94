"""The browser's way in: a sign-in page, and a cookie that stands for a key.

The page holds nothing of the release. It exchanges the key for a cookie that no script can read; the cookie holds for
this run of the server, and only for what a page of this server asks.
"""

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

PAGE = Path(__file__).parent / "page" / "signin.html"
COOKIE = "gristmill"
SESSION_S = 12 * 3600
MAX_SESSIONS = 1000  # the oldest goes


class Sessions:
    """Random tokens, and the ids of the keys that they stand for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._keys: dict[str, tuple[str, float]] = {}  # hash of a token -> id of the key, end

    def create(self, key_id: str, *, secure: bool) -> str:
        """Return the Set-Cookie header of a new session."""
        if len(self._keys) >= MAX_SESSIONS:
            del self._keys[next(iter(self._keys))]
        token = secrets.token_urlsafe(32)
        self._keys[_digest(token)] = key_id, self._clock() + SESSION_S
        head = f"{COOKIE}={token}; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict"
        return f"{head}; Secure" if secure else head

    def find(self, headers: Mapping[str, str]) -> str | None:
        """Return the id of the key of a request's cookie. The digest of what was sent is looked up, not compared."""
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        key_id, end = self._keys.get(_digest(cookie.value), ("", 0.0)) if cookie else ("", 0.0)
        return key_id if self._clock() < end else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def is_same_origin(method: str, headers: Mapping[str, str]) -> bool:
    """Say whether a page of this server, or the user, asks; a page of another site or port may not use the cookie.

    Browsers send Sec-Fetch-Site over TLS and to the local machine, and Origin with all but plain reading elsewhere.
    """
    reads = method in ("GET", "HEAD")
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin" or (site == "none" and reads)
    origin = headers.get("origin")
    return reads if origin is None else urlsplit(origin).netloc == headers.get("host")


def read_page() -> tuple[bytes, str]:
    """Return the sign-in page, and the policy by which nothing but its own script and style runs or loads."""
    text = PAGE.read_text(encoding="utf8")
    script, style = (_hash_inline(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _hash_inline(text: str, tag: str) -> str:
    inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert len(inside) == 1, tag
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()}'"
