"""Find and decode a user's text files, and cut long texts into passages.

Names in records are relative to the source, never absolute. A passage ends where the content says so, not at
a multiple of bytes: two editions of a book are cut at the same places, so that near-duplicates can be found.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm.config import ConfigError, require
from llm.data.schema import hash_share

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
LONG_TEXT_CHARS = 16_000
PASSAGE_CHARS = 4_000

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source with their names within it, and how many others lay beside them, by suffix."""

    files: list[tuple[Path, str]]
    skipped: dict[str, int]


def list_files(locator: str) -> Listing:
    """Return the readable files of a file, a folder (recursively) or a glob, sorted by name."""
    path = Path(locator).expanduser()
    if path.is_file():
        require(
            path.suffix.lower() in SUFFIXES,
            f"{locator}: cannot read {path.suffix or 'files without a suffix'}; allowed: {', '.join(SUFFIXES)}",
        )
        return Listing([(path, path.name)], {})
    if path.is_dir():
        found = sorted(_walk(path))
        root = path
    else:
        found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if Path(one).is_file()]
        require(bool(found), f"{locator}: no such file or folder, and nothing matches it as a glob")
        root = Path(os.path.commonpath([one.parent for one in found]))
    usable = [(one, one.relative_to(root).as_posix()) for one in found if one.suffix.lower() in SUFFIXES]
    skipped = Counter(one.suffix.lower() or "no suffix" for one in found if one.suffix.lower() not in SUFFIXES)
    require(bool(usable), f"{locator}: holds no text; expected files of {', '.join(SUFFIXES)}")
    return Listing(usable, dict(sorted(skipped.items())))


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in names if not name.startswith("."))


def read_bytes(path: Path) -> bytes:
    """Return a file's content, or raise ConfigError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def decode_text(content: bytes, path: Path) -> str:
    """Return the text of UTF-8 (with or without BOM), UTF-16 with BOM, or else Windows-1252 or Latin-1."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    require(b"\0" not in content, f"{path}: is not text (it holds zero bytes); remove it from the source")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")


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
