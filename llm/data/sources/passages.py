"""Cut long texts into passages.

A passage ends where the content says so, not at a multiple of bytes: two editions of a book are cut at the same
places, so that near-duplicates can be found.
"""

import re
from collections.abc import Iterator

from llm.data.schema import hash_share

LONG_TEXT_CHARS = 16_000
PASSAGE_CHARS = 4_000

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


def cut_passages(text: str) -> list[tuple[int, str]]:
    """Return (offset, passage) pairs; texts up to 16,000 characters stay whole, others give about 4,000 each."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) <= LONG_TEXT_CHARS:
        return [(0, text)] if text.strip() else []
    passages: list[tuple[int, str]] = []
    start = 0
    for end in _paragraph_ends(text):
        size = end - start
        paragraph = text[max(start, text.rfind("\n\n", start, max(start, end - 2))) : end]
        if size >= 2 * PASSAGE_CHARS or (size >= PASSAGE_CHARS // 2 and _ends_passage(paragraph)):
            passages.append((start, text[start:end]))
            start = end
    passages.append((start, text[start:]))
    return [(offset, passage.strip()) for offset, passage in passages if passage.strip()]


def _paragraph_ends(text: str) -> Iterator[int]:
    """Yield where paragraphs end; one longer than a passage also ends at lines, then at words."""
    start = 0
    for end in [*(match.end() for match in _BLANK_LINES.finditer(text)), len(text)]:
        while end - start > PASSAGE_CHARS:
            cut = max(text.rfind("\n", start, start + PASSAGE_CHARS), start)
            cut = cut if cut > start else text.rfind(" ", start, start + PASSAGE_CHARS)
            start = cut + 1 if cut > start else start + PASSAGE_CHARS
            yield start
        if end > start:
            start = end
            yield end


def _ends_passage(paragraph: str) -> bool:
    """Decide by the paragraph's letters and digits alone, with a chance that grows with its length."""
    characters = re.sub(r"[^a-z0-9]+", "", paragraph.lower())
    return hash_share("passage", characters) < len(paragraph) / (PASSAGE_CHARS // 2)
