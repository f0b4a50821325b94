"""Bytes to text: byte-order marks, UTF-8/16/32, the declared charset checked against the bytes, legacy code pages.

The bytes decide. A declaration is believed only where the bytes bear it out, because servers and old files are
often wrong; what is not text at all is refused under the reason `binary`.
"""

import codecs
import re

from charset_normalizer import from_bytes

from llm.data.schema import BadRecord

SAMPLE_BYTES = 65_536  # of a text in a legacy code page: enough to tell pages apart, small enough to be fast
MAX_CONTROLS = 0.02  # share of control characters in text of a legacy code page; random bytes have a tenth
MAX_UTF8_CONTROLS = 0.3  # the same for valid UTF-8, which is hardly ever valid by accident
MAX_BROKEN = 0.1  # broken UTF-8 sequences per whole one: a cut or patched file is still UTF-8
CLOSE_CHAOS = 0.03  # a declared page may look this much worse than the best one

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x08\x1a\x1b"} | {0x7F})
_HIGH_LINE = re.compile(rb"[^\n]{0,200}[\x80-\xff][^\n]{0,200}")
_ESCAPES = ((b"\x1b$B", "iso2022_jp"), (b"\x1b$@", "iso2022_jp"), (b"\x1b$)C", "iso2022_kr"))
# What browsers take these names for: the larger page that the files are really in.
_WIDER = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
_PAGES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874",
    "koi8_r", "koi8_u", "cp866", "iso8859_2", "iso8859_5", "iso8859_7", "mac_roman", "cp437", "cp850",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip


def decode_text(content: bytes, declared: str | None = None) -> str:
    """Return the text of the whole content; broken sequences become U+FFFD.

    Raises: BadRecord: reason `binary`, for what is no text.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        if b"\0" not in content and not content.startswith(codecs.BOM_UTF8) and _looks_plain(content):
            return text
    return content.decode(detect_encoding(content, declared), "replace")


def detect_encoding(head: bytes, declared: str | None = None) -> str:
    """Return the name of the Python codec for content that begins with `head`, which may end within a character.

    Pure ASCII gives utf-8. For the whole of a file this is more certain than for its first bytes.
    Raises: BadRecord: reason `binary`.
    """
    for mark, name in _BOMS:
        if head.startswith(mark) and _reads_well(head, name):
            return name
    wide = _detect_wide(head)
    if wide:
        return wide
    controls = _count_controls(head)
    whole, broken = _count_sequences(head)
    if broken <= MAX_BROKEN * whole:
        _refuse_binary(controls, len(head), MAX_UTF8_CONTROLS if whole or controls == 0 else 0.1)
        escape = next((name for mark, name in _ESCAPES if mark in head), "")
        return escape if escape and _decodes(head, escape) else "utf-8"
    _refuse_binary(controls, len(head), MAX_CONTROLS)
    return _detect_page(head, declared)


def _looks_plain(content: bytes) -> bool:
    """Tell whether valid UTF-8 holds no control characters and no escape sequences."""
    return _count_controls(content) == 0 and b"\x1b$" not in content


def _count_controls(content: bytes) -> int:
    return len(content) - len(content.translate(None, _CONTROLS))


def _refuse_binary(controls: int, size: int, most: float) -> None:
    if controls > most * size:
        raise BadRecord("binary", f"{controls} of {size} bytes are control characters")


def _count_sequences(content: bytes) -> tuple[int, int]:
    """Return how many UTF-8 sequences of more than one byte are whole, and how many broken ones there are."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(content)
    replaced = text.count("\ufffd")
    broken = replaced - content.count(b"\xef\xbf\xbd") if replaced else 0
    whole = sum(content.count(bytes([lead])) for lead in range(0xC2, 0xF5)) if not content.isascii() else 0
    return max(whole - broken, 0), broken


def _decodes(content: bytes, name: str) -> bool:
    """Tell whether the codec takes the content, of which the last character may be cut."""
    try:
        codecs.getincrementaldecoder(name)("strict").decode(content)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _reads_well(content: bytes, name: str) -> bool:
    """Tell whether the content is plausible text in an encoding of two or four bytes per unit."""
    text = codecs.getincrementaldecoder(name)("replace").decode(content[: 2 * SAMPLE_BYTES])
    odd = sum(not (one.isprintable() or one in "\t\n\v\f\r\x1a\ufeff\u00ad\u3000 ") for one in text)
    return odd <= 0.05 * len(text)


def _detect_wide(content: bytes) -> str:
    """Return the codec of UTF-16 or UTF-32 without a mark, or "": zero bytes stand in the same places only."""
    zeros = content.count(b"\0")
    if zeros < max(0.01 * len(content), 1) or len(content) < 4:
        return ""
    places = [content[i : 2 * SAMPLE_BYTES : 4].count(b"\0") for i in range(4)]
    total = sum(places)
    if places[2] + places[3] > 0.6 * total and places[3] * 4.4 >= min(len(content), 2 * SAMPLE_BYTES):
        names = ["utf-32-le", "utf-16-le"]
    elif places[0] + places[1] > 0.6 * total and places[0] * 4.4 >= min(len(content), 2 * SAMPLE_BYTES):
        names = ["utf-32-be", "utf-16-be"]
    elif places[1] + places[3] > 0.9 * total:
        names = ["utf-16-le"]
    elif places[0] + places[2] > 0.9 * total:
        names = ["utf-16-be"]
    else:
        names = []
    return next((name for name in names if _reads_well(content, name)), "")


def _detect_page(content: bytes, declared: str | None) -> str:
    """Return the legacy code page of the bytes, the declared one where it fits about as well as the best."""
    lines = b"\n".join(_HIGH_LINE.findall(content[: 16 * SAMPLE_BYTES]))[:SAMPLE_BYTES]
    sample = lines if len(lines) > 400 else content[:SAMPLE_BYTES]
    wanted = _widen(declared) if declared else ""
    pages = [*dict.fromkeys([*([wanted] if wanted else []), *_PAGES])]
    matches = from_bytes(sample, cp_isolation=pages, threshold=0.4, preemptive_behaviour=False)
    best = matches.best()
    if best is None:
        return wanted if wanted and _decodes(content, wanted) else "cp1252"
    given = next((one for one in matches if wanted in (one.encoding, *one.could_be_from_charset)), None)
    if given is not None and given.chaos <= best.chaos + CLOSE_CHAOS and given.coherence >= best.coherence - 0.2:
        return wanted
    return str(best.encoding)


def _widen(declared: str) -> str:
    """Return the codec that a declared charset stands for, "" for an unknown name or one that the bytes rule out."""
    try:
        name = codecs.lookup(declared.strip().strip("\"'")).name
    except LookupError:
        return ""
    # UTF-8, 16 and 32 were looked for already; the rest of Python's codecs are no text encodings.
    if name.startswith("utf") or not getattr(codecs.lookup(name), "_is_text_encoding", True):
        return ""
    return _WIDER.get(name, name.replace("-", "_"))
