"""HTML: its main text by trafilatura, without menus, comments and footers."""

import re
from collections.abc import Iterator

from llm.data.rows.formats import SourceFormat
from llm.data.sources.items import Fault, Item, Stream
from llm.data.text.boilerplate import strip_boilerplate
from llm.data.text.encoding import decode_text

SUFFIXES = (".html", ".htm", ".xhtml")

_START = re.compile(rb"(?is)(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype\s+html|html)[\s>]")
_CHARSET = re.compile(rb"(?i)<(?:meta[^>]*charset|\?xml[^>]*encoding)\s*=\s*[\"']?\s*([\w.:-]+)")


def sniff(head: bytes, name: str) -> int:
    plain = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")  # UTF-16 too
    return 3 if _START.match(plain[:4096]) else 2 * name.endswith(SUFFIXES)


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    content = stream.read(fmt.max_record_bytes + 1)
    if len(content) > fmt.max_record_bytes:
        yield Fault(0, "too_long", f"over {fmt.max_record_bytes} bytes")
    else:
        yield extract_page(content, None, 0)


def extract_page(content: bytes, declared: str | None, offset: int | str, url: str = "") -> Item | Fault:
    """Return the main text of a page; `declared` is the charset that its server named.

    Raises: BadRecord: reason `binary`.
    """
    from trafilatura import extract  # a second to import, and needed for pages only

    inside = _CHARSET.search(content[:4096])
    page = decode_text(content, declared or (inside[1].decode("ascii") if inside else None))
    text = extract(page, include_comments=False, include_tables=True)
    if not text or not text.strip():
        return Fault(offset, "no_main_text", f"no main text in {len(content)} bytes of HTML")
    body, removed = strip_boilerplate(text)
    return Item(offset, body, url, removed)
