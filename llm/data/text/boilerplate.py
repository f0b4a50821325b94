"""Cut away what archives wrap around a book: licences, headers, notes on the scan.

Nothing is cut on a phrase alone. A mark must open a line, in the first or last part of the text, with the
archive's name near it; a text that quotes such a mark in passing stays as it is.
"""

import re
from dataclasses import dataclass

MARGIN_CHARS = 40_000  # headers and licences are shorter; Gutenberg's licence has about 19,000
_FLAGS = re.IGNORECASE | re.MULTILINE

_STARS = r"^[ \t]*\*{2,3}[ \t]*"
_GUTENBERG_START = re.compile(
    _STARS
    + r"START[ \t]+OF[ \t]+(?:THE|THIS)[ \t]+PROJECT[ \t]+GUTENBERG[^*]{0,300}?(?:\*{2,3}[ \t\r]*$|\n[ \t\r]*\n)",
    _FLAGS,
)
_SMALL_PRINT = re.compile(r"^[ \t]*\*?END[ \t]?\*?[ \t]?THE SMALL PRINT![^\n]*\n?[^\n*]{0,80}\*END\*[^\n]*$", _FLAGS)
_SMALL_PRINT_LINE = re.compile(r"^[ \t]*\*END[ \t]?\*?[ \t]?THE SMALL PRINT![^\n]*$", _FLAGS)
_GUTENBERG_END = re.compile(
    _STARS + r"END[ \t]+OF[ \t]+(?:THE|THIS)[ \t]+PROJECT[ \t]+GUTENBERG"
    r"|^[ \t]*End of (?:the |this )?Project Gutenberg(?:['\u2019]s)?(?: |$)",
    _FLAGS,
)  # fmt: skip
_CREDITS = re.compile(
    r"\s*(?:(?:This (?:e-?book|etext) was )?(?:Produced|Prepared|Transcribed|Scanned|Digitized) (?:by|from)\b"
    r"|E-?text prepared by\b|HTML version by\b).{0,600}?(?:\n[ \t\r]*\n|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_CANADA_START = re.compile(
    r"^[ \t]*\* A (?:Distributed Proofreaders Canada|Project Gutenberg Canada) E-?book \*[ \t\r]*$", _FLAGS
)
_CANADA_TITLE = re.compile(r"^[ \t]*Title: ", re.MULTILINE)
_CANADA_END = re.compile(r"^[ \t]*\[(?:The )?End of [^\]\n]{3,200}\][ \t\r]*$", _FLAGS)
_SCAN_START = re.compile(
    r"^[ \t]*This is a digital copy of a book that was preserved for generations on library shelves", _FLAGS
)
_SCAN_END = re.compile(r"^[^\n]*\bat +https? ?: ?/ ?/ ?books ?\. ?google ?\. ?com ?/?[^\n]*$", _FLAGS)
_AOZORA_NOTES = re.compile(r"^-{20,}\n【テキスト中に現れる記号について】.*?^-{20,}\n", re.MULTILINE | re.DOTALL)
_AOZORA_END = re.compile(r"^底本：", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Body:
    """Where the text itself lies."""

    start: int
    end: int


def strip_boilerplate(text: str) -> tuple[str, str]:
    """Return the text without an archive's header and footer, and the archive's name, or "" if there were none."""
    for name, find in _FINDERS.items():
        body = find(text)
        if body is not None and text[body.start : body.end].strip():
            return text[body.start : body.end].strip() + "\n", name
    return text, ""


def _head(text: str) -> str:
    return text[: min(MARGIN_CHARS, len(text))]


def _find_gutenberg(text: str) -> Body | None:
    """Find the body of a Project Gutenberg book of any age: starred marks, or the `small print` of the 1990s."""
    head = _head(text)
    if "gutenberg" not in head.lower() and "gutenberg" not in text[-MARGIN_CHARS:].lower():
        return None
    start = 0
    for mark in (_GUTENBERG_START, _SMALL_PRINT, _SMALL_PRINT_LINE):
        for match in mark.finditer(head):
            before = head[: match.start()].lower()
            if start == 0 or mark is not _GUTENBERG_START:
                known = len(before.strip()) < 200 or ("gutenberg" in before and re.search("e-?book|e-?text", before))
                start = max(start, match.end()) if known else start
    if start:
        credit = _CREDITS.match(text, start)
        start = credit.end() if credit else start
    end = len(text)
    offset = max(start, len(text) - MARGIN_CHARS)
    closing = _GUTENBERG_END.search(text, offset)
    if closing and (start or _ends_in_licence(text[closing.start() :])):
        end = closing.start()
    return Body(start, end) if start or end < len(text) else None


def _ends_in_licence(tail: str) -> bool:
    """Tell whether what follows an end mark, where no header was found, is the mark alone or a licence."""
    return len(tail) < 400 or "full project gutenberg" in tail.lower() or "gutenberg.org" in tail.lower()


def _find_canada(text: str) -> Body | None:
    """Find the body of an e-book of Distributed Proofreaders Canada (Faded Page)."""
    opening = _CANADA_START.search(_head(text)[:2000])
    title = _CANADA_TITLE.search(_head(text), opening.end()) if opening else None
    if title is None:
        return None
    closing = _CANADA_END.search(text, max(title.start(), len(text) - 2000))
    return Body(title.start(), closing.start() if closing else len(text))


def _find_scan(text: str) -> Body | None:
    """Find the body of a book that Google scanned: its notice, in one or more languages, stands before it."""
    opening = _SCAN_START.search(_head(text)[:4000])
    closings = list(_SCAN_END.finditer(_head(text), opening.end())) if opening else []
    return Body(closings[-1].end(), len(text)) if closings else None


def _find_aozora(text: str) -> Body | None:
    """Find the body of an Aozora Bunko text: a legend of signs before it, the printed source after it."""
    legend = _AOZORA_NOTES.search(_head(text))
    if legend is None:
        return None
    closing = _AOZORA_END.search(text, max(legend.end(), len(text) - MARGIN_CHARS // 8))
    return Body(legend.end(), closing.start() if closing else len(text))


_FINDERS = {
    "gutenberg": _find_gutenberg,
    "proofreaders_canada": _find_canada,
    "google_books": _find_scan,
    "aozora": _find_aozora,
}
