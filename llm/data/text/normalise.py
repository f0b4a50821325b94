"""Bring text to one form: NFC, plain newlines, no control or invisible characters, no text decoded wrongly.

The tokenizer has no normaliser (some readers of its file would skip it), so this is the only place. Joiners
(U+200C, U+200D) stay: they are part of the spelling of Persian, of Indic scripts and of emoji. Text that was
decoded by the wrong table (`cafÃ©`) is repaired by ftfy, in lines that look like it only. Nothing else is taken for
a mistake: quotes, entities and the tokenizer's special tokens stay as they are written.
"""

import re
import unicodedata
from typing import Any

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.data.text.kernel import kernel

_NEWLINES = re.compile(r"\r\n?|[\x0b\x0c\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")

# Windows-1252 read as Latin-1 leaves these: quotes, dashes, the euro.
_WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") or None for code in range(0x80, 0xA0)}
# UTF-8 read by a table of single bytes: what its first byte becomes, before what a second byte becomes.
_SUSPECT = re.compile(
    "[\xc2-\xf4][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[a-z]Ã\\s"  # by Latin-1 or Windows-1252
    "|[ÂĂĹĐŘŮŰâ]€?[\x80-\xbf‚„…†‡‰Š‹ŚŤŽŹ‘’“”•–—™š›śťžźˇ˘Ł¤Ą§¨©Ş«¬®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľż]"  # by Windows-1250
    "|[РС][\x80-\xbfЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—™љ›њќћџЎўЈҐЁЄЇІіґё№єјЅѕї][РС]"  # by Windows-1251
    "|[¬√◊‚][Ä†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæøëîïìíêñóòôöõ]"  # by Mac Roman
    "|[├┬Γ╬╨╤][\x80-\xbfÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐]"  # by code page 437
)


def normalise_text(text: str) -> str:
    """Return the text in NFC with `\\n` newlines, at most one blank line in a row, and no invisible characters.

    Applying it twice changes nothing more.
    """
    while True:
        clean = _clean(text)
        if clean.isascii():
            return clean
        repaired = repair_lines(clean)
        if repaired == clean:
            return clean
        text = repaired


def _clean(text: str) -> str:
    if text.isascii():
        text = _NEWLINES.sub("\n", text) if "\r" in text else text
        text = _INVISIBLE.sub("", text.replace("\x0b", "\n").replace("\x0c", "\n"))
    else:
        text = repair_lines(text)  # before its controls go: they may be halves of letters
        text = _INVISIBLE.sub("", _NEWLINES.sub("\n", text.translate(_WINDOWS)))
        text = unicodedata.normalize("NFC", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()


def repair_lines(text: str) -> str:
    """Return the text with each suspicious line as ftfy repairs it."""
    if not _SUSPECT.search(text):
        return text
    return "\n".join(_repair(line) if _SUSPECT.search(line) else line for line in text.split("\n"))


def _repair(line: str) -> str:
    repaired = ftfy.fix_encoding(line)
    # Two letters become one, or a capital a small one: so that repairs of repairs come to an end.
    better = (len(repaired), repaired.count("Ã")) < (len(line), line.count("Ã"))
    return repaired if better else line


def normalise_texts(texts: pa.StringArray) -> pa.StringArray:
    """Return each text as `normalise_text` gives it; ASCII texts all at once, the others one by one."""
    if len(texts) == 0:
        return texts
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data if data is not None else b"", np.uint8)
    out, out_bounds, wide = _normalise_ascii(content, bounds)
    clean = pa.StringArray.from_buffers(len(texts), pa.py_buffer(out_bounds), pa.py_buffer(out))
    if not wide.any():
        return clean
    slow = [normalise_text(text) for text in texts.filter(pa.array(wide)).to_pylist()]
    return pc.replace_with_mask(clean, pa.array(wide), pa.array(slow, pa.string()))


@kernel
def _normalise_ascii(content: Any, bounds: Any) -> Any:
    """Return the normal forms, where each ends, and which texts are not ASCII: these are left empty."""
    num_texts = len(bounds) - 1
    out = np.empty(bounds[num_texts] - bounds[0], np.uint8)
    out_bounds = np.zeros(num_texts + 1, np.int32)
    wide = np.zeros(num_texts, np.bool_)
    n = 0
    for t in range(num_texts):
        start = n
        newlines, spaces, first = (
            0,
            0,
            bounds[t],
        )  # seen, and not yet written: they are dropped at the ends of lines and texts
        for i in range(bounds[t], bounds[t + 1]):
            c = content[i]
            if 32 < c < 127:
                if newlines and n > start:
                    out[n] = 10
                    n += 1
                    if newlines > 1:
                        out[n] = 10
                        n += 1
                if spaces and n > start:
                    for j in range(first, i):
                        if content[j] == 32 or content[j] == 9:
                            out[n] = content[j]
                            n += 1
                newlines, spaces = 0, 0
                out[n] = c
                n += 1
            elif c == 32 or c == 9:
                if spaces == 0:
                    first = i
                spaces += 1
            elif 10 <= c <= 13:
                if not (c == 10 and i > bounds[t] and content[i - 1] == 13):
                    newlines += 1
                spaces = 0
            elif c > 127:
                wide[t] = True
                n = start
                break
        out_bounds[t + 1] = n
    return out[:n], out_bounds, wide
