"""Split texts into words the way that spaCy splits English: the words that Gopher's rules count.

A run without spaces is a word, after what stands apart has been taken from its ends (brackets, quotes, commas,
a full stop, `'s`) and from between its letters (`and/or`, `key=value`, `well-known`), and contractions have been
split. Written from that tokenizer's documented behaviour and its rules' effect on samples; it leaves out the rarest
(internet addresses as numbers, emoticons of many characters).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.text.characters import (
    ALPHA,
    BEFORE_DOT,
    CLOSES,
    COMMA,
    CURRENCY,
    DASH,
    DIGIT,
    DOT,
    HOST,
    ICON,
    JOINT,
    LOWER,
    MATHS,
    MINUS,
    OPENS,
    PLAIN,
    PLUS,
    QUOTE,
    SPACE,
    SPOKEN,
    TERMINAL,
    UPPER,
    load_kinds,
)
from llm.data.text.exceptions import MERGED, UNIT, list_exceptions
from llm.data.text.kernel import kernel, part

HAS_ALPHA = 1  # bits of a word
IS_SPOKEN = 2
ENDS_SENTENCE = 4
IS_SIGN = 8  # no letter or digit in it

MAX_EXCEPTION = 15  # characters
SLOTS = 1 << 12  # of the table of exceptions; behind them, by first character, the lengths that occur

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_ONE = np.uint64(1)
_SLOT = np.uint64(SLOTS - 1)
_APOSTROPHE, _TYPOGRAPHIC, _SMALL_S, _LARGE_S, _AT, _SLASH, _COLON, _DEGREE, _QUESTION, _HASH = (
    ord(one) for one in "'’sS@/:°?#"
)
_LETTER = ALPHA | DIGIT


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a batch of texts: word i lies at `starts[i]:ends[i]` in `codes`, those of text t are
    `word_offsets[t]:word_offsets[t + 1]`.

    `codes` are the code points of all texts one after another, `text_offsets` (n + 1) where each begins; `hashes`
    tell words apart, `bits` say of what kind a word is.
    """

    codes: NDArray[np.int32]
    text_offsets: NDArray[np.int64]
    word_offsets: NDArray[np.int64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    bits: NDArray[np.int32]


def split_words(texts: pa.StringArray) -> Words:
    """Return the words of every text."""
    codes, text_offsets = decode_texts(texts)
    kinds = load_kinds()[codes]
    word_offsets, words, hashes = _split(codes, kinds, text_offsets, _load_exceptions())
    return Words(codes, text_offsets, word_offsets, words[0], words[1], hashes, words[2])


def hash_words(words: list[str]) -> NDArray[np.uint64]:
    """Return the hash of each string taken as one word."""
    return np.asarray(_hash_all(*decode_texts(pa.array(words, pa.string()))))


def decode_texts(texts: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the code points of all texts and where each text begins in them (n + 1)."""
    if len(texts) == 0:
        # Arrays that cannot be written, like those below, are another type to kernels: they would be compiled again.
        return np.frombuffer(b"", np.int32), np.zeros(1, np.int64)
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    codes = np.frombuffer(content.tobytes().decode("utf-8").encode("utf-32-le"), np.int32)
    if len(codes) == len(content):
        return codes, (ends - ends[0]).astype(np.int64)
    # UTF-8 opens a character with any byte but 10xxxxxx: count these up to each text's end.
    places = np.concatenate([[0], np.cumsum((content & 0xC0) != 0x80)])
    return codes, places[ends - ends[0]].astype(np.int64)


@cache
def _load_exceptions() -> NDArray[np.uint64]:
    """Return the exceptions as an open hash table: (keys, cuts), and behind it the lengths by first character."""
    exceptions = list_exceptions()
    table = np.zeros((2, SLOTS + 128), np.uint64)
    assert len(exceptions) < SLOTS // 2, len(exceptions)
    for key, (word, cut) in zip(hash_words([*exceptions]), exceptions.items(), strict=True):
        place = int(key >> _ONE & _SLOT)
        while table[0, place]:
            place = (place + 1) % SLOTS
        table[:, place] = key, cut
        if not cut & UNIT:
            table[1, SLOTS + (ord(word[0]) if word[0].isascii() else 0)] |= np.uint64(1 << len(word))
    return table


@part
def _hash(codes: Any, a: Any, b: Any) -> Any:
    h = np.uint64(b - a)
    for i in range(a, b):
        h = (h ^ np.uint64(codes[i])) * _MULTIPLIER
    return (h ^ (h >> _SHIFT)) | _ONE


@kernel
def _hash_all(codes: Any, offsets: Any) -> Any:
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for t in range(len(hashes)):
        hashes[t] = _hash(codes, offsets[t], offsets[t + 1])
    return hashes


@part
def _look_up(codes: Any, a: Any, b: Any, table: Any) -> Any:
    """Return the cuts of the exception at [a, b), -1 if it is none."""
    key = _hash(codes, a, b)
    place = key >> _ONE & _SLOT
    while table[0, place] != 0:
        if table[0, place] == key:
            return np.int64(table[1, place])
        place = (place + _ONE) & _SLOT
    return np.int64(-1)


@part
def _find_exception(codes: Any, a: Any, b: Any, table: Any) -> Any:
    """Return the cuts of the exception at [a, b), -1 if it is none, or a unit."""
    if b - a > MAX_EXCEPTION or a >= b:
        return np.int64(-1)
    first = codes[a] if codes[a] < 128 else 0
    if not table[1, SLOTS + first] >> np.uint64(b - a) & _ONE:
        return np.int64(-1)
    cut = _look_up(codes, a, b, table)
    return np.int64(-1) if cut & UNIT else cut


@part
def _measure_run(codes: Any, i: Any, b: Any) -> Any:
    """Return how often the character at `i` stands in a row."""
    j = i
    while j < b and codes[j] == codes[i]:
        j += 1
    return j - i


@part
def _measure_opening(codes: Any, kinds: Any, a: Any, b: Any) -> Any:
    """Return how many characters at the beginning of [a, b) stand apart."""
    if kinds[a] & OPENS:
        return 1
    if kinds[a] & DOT:
        dots = _measure_run(codes, a, b)
        return dots if dots > 1 else 0
    return 1 if kinds[a] & PLUS and not (a + 1 < b and kinds[a + 1] & DIGIT) else 0


@part
def _measure_closing(codes: Any, kinds: Any, a: Any, b: Any, table: Any) -> Any:
    """Return how many characters at the end of [a, b) stand apart."""
    kind = kinds[b - 1]
    if kind & CLOSES:
        return 1
    if b - a < 2:
        return 0
    before = kinds[b - 2]
    if kind & DOT:
        i = b - 1
        while i > a and kinds[i - 1] & DOT:
            i -= 1
        pair = kinds[b - 3] & before & UPPER if b - a > 2 else 0
        degrees = b - a > 2 and codes[b - 3] == _DEGREE
        return b - i if b - i > 1 or before & BEFORE_DOT or pair or degrees else 0
    if codes[b - 1] in (_SMALL_S, _LARGE_S) and codes[b - 2] in (_APOSTROPHE, _TYPOGRAPHIC):
        return 2
    if before & DIGIT and kind & (PLUS | CURRENCY):
        return 1
    for size in range(min(4, b - a - 1), 0, -1):
        if kinds[b - size - 1] & DIGIT and not kinds[b - size] & DIGIT:
            cut = _look_up(codes, b - size, b, table)
            if cut > 0 and cut & UNIT:
                return size
    return 0


@part
def _measure_joint(codes: Any, kinds: Any, i: Any, a: Any, b: Any) -> Any:
    """Return how many characters from `i` on stand apart between the parts of the word [a, b)."""
    kind = kinds[i]
    if kind & ICON:
        return 1
    dots = _measure_run(codes, i, b) if kind & DOT else 0
    if dots > 1:
        return dots
    if i == a or i + 1 >= b:
        return 0
    before, after = kinds[i - 1], kinds[i + 1]
    if (
        (kind & MATHS and before & DIGIT and after & (DIGIT | MINUS))
        or (kind & DOT and before & (LOWER | QUOTE) and after & (UPPER | QUOTE))
        or (kind & COMMA and before & after & ALPHA)
        or (kind & JOINT and before & _LETTER and after & ALPHA)
    ):
        return 1
    if kind & DASH and before & _LETTER:
        size = _measure_run(codes, i, b)
        if size <= (3 if kind & MINUS else 2) and i + size < b and kinds[i + size] & ALPHA:
            return size
    return 0


@part
def _is_host(codes: Any, kinds: Any, a: Any, b: Any) -> Any:
    """Tell whether [a, b) is a host name, perhaps with a port and a path: `docs.example.org:80/x`."""
    dot = a
    i = a
    while i < b and kinds[i] & HOST:
        if kinds[i] & DOT:
            if i == dot or not (kinds[i - 1] & _LETTER and kinds[dot if dot == a else dot + 1] & _LETTER):
                return False
            dot = i
        i += 1
    if dot == a or not 3 <= i - dot <= 64:
        return False
    for j in range(dot + 1, i):
        if not kinds[j] & LOWER:
            return False
    if i < b and codes[i] == _COLON:
        i += 1
        while i < b and kinds[i] & DIGIT:
            i += 1
        if kinds[i - 1] & JOINT:
            return False
    return i == b or codes[i] in (_SLASH, _QUESTION, _HASH)


@part
def _is_address(codes: Any, kinds: Any, a: Any, b: Any) -> Any:
    """Tell whether [a, b) is a web or mail address."""
    start = a
    while start < b and kinds[start] & (HOST | PLUS):
        start += 1
    if start - a > 1 and start + 2 < b and codes[start + 1] == _SLASH and codes[start + 2] == _SLASH:
        a = start + 3  # past the scheme
    if _is_host(codes, kinds, a, b):
        return True
    for i in range(a + 1, b):  # noqa: SIM110 (kernels know no generators)
        if codes[i] == _AT and _is_host(codes, kinds, i + 1, b):
            return True
    return False


@part
def _note(codes: Any, kinds: Any, a: Any, b: Any, words: Any, hashes: Any, n: Any) -> Any:
    """Write [a, b) as word n, if there is anything, and return the number of words."""
    if a >= b:
        return n
    have = kinds[a]
    for i in range(a + 1, b):
        have |= kinds[i]
    bits = 0 if have & _LETTER else IS_SIGN
    if have & ALPHA:
        bits |= HAS_ALPHA
    if have & SPOKEN:
        bits |= IS_SPOKEN
    if have & TERMINAL and b - a == 1:
        bits |= ENDS_SENTENCE
    words[0, n], words[1, n], words[2, n] = a, b, bits
    hashes[n] = _hash(codes, a, b)
    return n + 1


@part
def _split_middle(codes: Any, kinds: Any, a: Any, b: Any, cut: Any, words: Any, hashes: Any, n: Any) -> Any:
    """Split an exception by its cuts, any other word at the signs between its letters, unless it is an address."""
    while cut > 0 and cut & 0xFF:
        n = _note(codes, kinds, a, a + (cut & 0xFF), words, hashes, n)
        a += cut & 0xFF
        cut >>= 8
    first, i = a, a + 1 if cut < 0 else b
    while i < b:
        size = 0 if kinds[i] & (PLAIN | DIGIT) else _measure_joint(codes, kinds, i, first, b)
        if size and a == first and _is_address(codes, kinds, a, b):
            break
        if size:
            n = _note(codes, kinds, a, i, words, hashes, n)
            n = _note(codes, kinds, i, i + size, words, hashes, n)
            a = i + size
        i += max(size, 1)
    return _note(codes, kinds, a, b, words, hashes, n)


@part
def _split_run(codes: Any, kinds: Any, a: Any, b: Any, table: Any, words: Any, hashes: Any, n: Any, tail: Any) -> Any:
    """Split a run without spaces; `tail` is room for the ends of what stands apart at its end."""
    num_tail = 0
    cut = _find_exception(codes, a, b, table)
    while a < b and cut < 0:
        opening = _measure_opening(codes, kinds, a, b)
        cut = _find_exception(codes, a + opening, b, table)
        closing = _measure_closing(codes, kinds, a + opening, b, table) if cut < 0 and a + opening < b else 0
        if closing:
            tail[num_tail] = b
            num_tail += 1
            b -= closing
            cut = _find_exception(codes, a, b, table)
            opening = opening if cut < 0 else 0
        n = _note(codes, kinds, a, a + opening, words, hashes, n)
        a += opening
        if opening == 0 and closing == 0:
            break
        cut = _find_exception(codes, a, b, table)
    n = _split_middle(codes, kinds, a, b, cut, words, hashes, n)
    for i in range(num_tail - 1, -1, -1):
        n = _note(codes, kinds, b, tail[i], words, hashes, n)
        b = tail[i]
    return n


@part
def _merge(codes: Any, kinds: Any, first: Any, n: Any, table: Any, words: Any, hashes: Any) -> Any:
    """Join the words [first, n) of one run where some make an exception together, as `)` and `:` do."""
    kept = first
    i = first
    while i < n:
        a, last = np.int64(words[0, i]), i
        if words[1, i] - a == 1:
            for j in range(i + 1, min(n, i + 4)):
                cut = _find_exception(codes, a, np.int64(words[1, j]), table)
                if cut > 0 and cut & MERGED:
                    last = j
        kept = _note(codes, kinds, a, np.int64(words[1, last]), words, hashes, kept)
        i = last + 1
    return kept


@kernel
def _split(codes: Any, kinds: Any, text_offsets: Any, table: Any) -> Any:
    words = np.empty((3, len(codes)), np.int32)
    hashes = np.empty(len(codes), np.uint64)
    word_offsets = np.zeros(len(text_offsets), np.int64)
    tail = np.empty(len(codes) + 1, np.int64)
    n = np.int64(0)
    for t in range(len(text_offsets) - 1):
        i, end = text_offsets[t], text_offsets[t + 1]
        while i < end:
            if kinds[i] & SPACE:
                i += 1
                continue
            a = i
            plain = np.uint32(PLAIN)
            while i < end and not kinds[i] & SPACE:
                plain &= kinds[i]
                i += 1
            if plain and _find_exception(codes, a, i, table) < 0:
                n = _note(codes, kinds, a, i, words, hashes, n)
            else:
                first = n
                n = _split_run(codes, kinds, a, i, table, words, hashes, n, tail)
                if n - first > 1:
                    n = _merge(codes, kinds, first, n, table, words, hashes)
        word_offsets[t + 1] = n
    return word_offsets, words[:, :n], hashes[:n]
