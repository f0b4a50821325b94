"""GET /: the chat page, under a policy by which its own script and style run, and nothing else does."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse

PAGE = Path(__file__).parent / "page" / "index.html"


async def show_page() -> HTMLResponse:
    """GET /: the chat page."""
    html, policy = load_page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})


@cache
def load_page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy: the script and style by digest, requests to this server only."""
    html = PAGE.read_text(encoding="utf8")
    policy = (
        f"default-src 'none'; script-src {_digest(html, 'script')}; style-src {_digest(html, 'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _digest(html: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
