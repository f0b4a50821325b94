"""Bring text to one form: NFC, plain newlines, no control or invisible characters.

The tokenizer has no normaliser (some readers of its file would skip it), so this is the only place. Joiners
(U+200C, U+200D) stay: they are part of the spelling of Persian, of Indic scripts and of emoji.
"""

import re
import unicodedata

_NEWLINES = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


def normalise_text(text: str) -> str:
    """Return the text in NFC with `\\n` newlines, at most one blank line in a row, and no invisible characters.

    Applying it twice changes nothing more.
    """
    if not text.isascii() or "\r" in text:
        text = _NEWLINES.sub("\n", text)
    text = _INVISIBLE.sub("", text.replace("\x0b", "\n").replace("\x0c", "\n"))
    if not text.isascii():
        text = unicodedata.normalize("NFC", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()
