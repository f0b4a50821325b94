"""Bytes to text: byte-order marks, UTF-8/16/32, the declared charset checked against the bytes, legacy code pages.

The bytes decide. A declaration is believed only where the bytes bear it out, because servers and old files are
often wrong; what is not text at all is refused under the reason `binary`.
"""

import codecs
import re

from charset_normalizer import from_bytes

from llm.data.schema import BadRecord
from llm.data.text.alphabets import LATIN_PAGES, measure_fit

SAMPLE_BYTES = 16_384  # of a text in a legacy code page: enough to tell pages apart, small enough to be fast
MAX_CONTROLS = 0.02  # share of control characters in text of a legacy code page; random bytes have a tenth
MAX_UTF8_CONTROLS = 0.3  # the same for valid UTF-8, which is hardly ever valid by accident
MAX_BROKEN = 0.1  # broken UTF-8 sequences per whole one: a cut or patched file is still UTF-8
GOOD_FIT = 0.9  # share of a Latin text's high bytes that one language explains
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
# Python's other codecs are escapes, archives and the like: nothing that a file may ask for.
_CHARSET = re.compile(r"cp\d|iso8859|iso2022|koi8|mac_|gb|big5|euc_|shift_|hz$|johab|tis|ptcp|kz|hp_")
# What browsers take these names for: the larger page that the files are really in.
_WIDER = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
_PAGES = [
    "cp1251", "koi8_r", "koi8_u", "cp866", "iso8859_5", "cp1253", "iso8859_7", "cp1255", "cp1256", "cp874", "cp1258",
    "cp932", "euc_jp", "gb18030", "big5", "cp949",
]  # fmt: skip


def decode_text(content: bytes, declared: str | None = None) -> str:
    """Return the text of the whole content; broken sequences become U+FFFD.

    Raises: BadRecord: reason `binary`, for what is no text.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    else:
        if _looks_plain(content):
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
    return _count_odd(content[: 2 * SAMPLE_BYTES], name) <= MAX_CONTROLS


def _count_odd(content: bytes, name: str) -> float:
    """Return the share of characters that no text holds: controls, private and unassigned ones."""
    text = codecs.getincrementaldecoder(name)("replace").decode(content)
    odd = sum(not (one.isprintable() or one in "\t\n\v\f\r\x1a\ufeff\u00ad" or one.isspace()) for one in text)
    return (odd + text.count("\ufffd")) / max(len(text), 1)


def _detect_wide(content: bytes) -> str:
    """Return the codec of UTF-16 or UTF-32 without a mark, or "" where zero bytes do not show one."""
    sample = content[: 2 * SAMPLE_BYTES]
    places = [sample[i::4].count(b"\0") for i in range(4)]
    zeros, units = sum(places), len(sample) // 4
    if zeros == 0 or units == 0:
        return ""
    if min(places[2], places[3]) > 0.9 * units:
        names = ["utf-32-le"]
    elif min(places[0], places[1]) > 0.9 * units:
        names = ["utf-32-be"]
    elif max(places[0] + places[2], places[1] + places[3]) > 0.9 * zeros or _count_sequences(sample)[1] > 0.2 * units:
        names = ["utf-16-le", "utf-16-be"][:: 1 if places[1] + places[3] > places[0] + places[2] else -1]
        # The wrong order makes line ends and spaces unassigned characters.
    else:
        return ""
    if zeros < MAX_CONTROLS * len(sample) and _count_sequences(sample)[1] == 0:
        return ""  # UTF-8 with a stray zero byte
    best = min(names, key=lambda name: _count_odd(sample, name))
    return best if _count_odd(sample, best) <= MAX_CONTROLS else ""


def _detect_page(content: bytes, declared: str | None) -> str:
    """Return the legacy code page of the bytes, the declared one where it fits about as well as the best."""
    lines = b"\n".join(_HIGH_LINE.findall(content[: 16 * SAMPLE_BYTES]))[:SAMPLE_BYTES]
    sample = lines if len(lines) > 400 else content[:SAMPLE_BYTES]
    wanted = _widen(declared) if declared else ""
    pages = [*dict.fromkeys([*([wanted] if wanted else []), *LATIN_PAGES])]
    fits = {page: measure_fit(sample, page) for page in pages}
    best_page = max(pages, key=lambda page: fits[page])  # the first of equals: the declared one, the commonest
    if fits[best_page] >= GOOD_FIT:
        return best_page
    return _detect_script(content, sample, wanted)


def _detect_script(content: bytes, sample: bytes, wanted: str) -> str:
    """Return the code page of text that is hardly Latin, by charset-normalizer's measure of disorder."""
    pages = [*dict.fromkeys([*([wanted] if wanted else []), *_PAGES, *LATIN_PAGES])]
    matches = from_bytes(sample, cp_isolation=pages, threshold=0.4, preemptive_behaviour=False)
    best = matches.best()
    if best is None:
        return wanted if wanted and _decodes(content, wanted) else "cp1252"
    given = next((one for one in matches if wanted in (one.encoding, *one.could_be_from_charset)), None)
    if given is not None and given.chaos <= best.chaos + CLOSE_CHAOS and given.coherence >= best.coherence - 0.2:
        return wanted
    return str(best.encoding)


def _widen(declared: str) -> str:
    """Return the codec of a declared charset, "" for one unknown, or that the bytes have ruled out already (UTF)."""
    try:
        name = codecs.lookup(declared.strip().strip("\"'")).name
    except (LookupError, ValueError):  # ValueError: a zero byte within the name
        return ""
    name = _WIDER.get(name, name.replace("-", "_"))
    return name if _CHARSET.match(name) else ""
