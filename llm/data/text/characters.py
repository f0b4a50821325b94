"""Tables that say what each Unicode character is: a space, a letter, a sign that stands apart from a word.

One number per code point, a set of the bits below, so that a kernel needs one look per character.
"""

import string
import sys
import unicodedata
from functools import cache

import numpy as np
import regex
from numpy.typing import NDArray

SPACE = 1 << 0  # as str.isspace
ALPHA = 1 << 1  # as str.isalpha
LOWER = 1 << 2  # lower case, or of a script without case
UPPER = 1 << 3  # upper case, or of a script without case
DIGIT = 1 << 4  # 0-9
WORD = 1 << 5  # as \w
SPOKEN = 1 << 6  # not merely punctuation, as Gopher's word count wants
TERMINAL = 1 << 7  # ends a sentence
OPENS = 1 << 8  # stands apart at the beginning of a word
CLOSES = 1 << 9  # stands apart at the end of a word
ICON = 1 << 10  # stands apart everywhere
QUOTE = 1 << 11
CURRENCY = 1 << 12
BEFORE_DOT = 1 << 13  # a full stop after it stands apart
DOT = 1 << 14
COMMA = 1 << 15
PLUS = 1 << 16
MINUS = 1 << 17
MATHS = 1 << 18  # stands apart between digits
JOINT = 1 << 19  # stands apart between letters
DASH = 1 << 20  # the same, singly or as two or three
HOST = 1 << 21  # may be part of a host name
PLAIN = 1 << 22  # can be within a word only: a word of these needs no closer look

SIZE = sys.maxunicode + 1
NAMED = 0x20000  # beyond lie ideographs, and nothing else that matters
LAST_IDEOGRAPH = 0x323B0

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼" + "".join(map(chr, range(0x20A0, 0x20C0)))
# What datatrove counts as no word, beyond ASCII and marks that end a sentence: taken from its verdicts.
_UNSPOKEN = "—”：％１〈、━【「」，】；“《„’∶´．（–？！：～«〉》）。…►»"


@cache
def load_kinds() -> NDArray[np.uint32]:
    """Return the bits of every code point."""
    kinds = np.zeros(SIZE, dtype=np.uint32)
    characters = [chr(code) for code in range(NAMED)]
    for bit, test in ((SPACE, str.isspace), (ALPHA, str.isalpha), (WORD, str.isalnum)):
        kinds[:NAMED] |= np.where([test(one) for one in characters], np.uint32(bit), np.uint32(0))
    lower, upper = (np.array([test(one) for one in characters]) for test in (str.islower, str.isupper))
    alpha = (kinds[:NAMED] & ALPHA) != 0
    kinds[:NAMED][alpha & ~upper] |= LOWER
    kinds[:NAMED][alpha & ~lower] |= UPPER
    icons = [one for one in characters if unicodedata.category(one) == "So"]
    terminals = regex.findall(r"\p{Sentence_Terminal}", "".join(one for one in characters if one.isprintable()))
    controls = "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160))))
    spoken = np.ones(SIZE, np.bool_)
    spoken[[ord(one) for one in string.punctuation + controls + _UNSPOKEN + "".join(terminals)]] = False
    kinds[NAMED:LAST_IDEOGRAPH] = ALPHA | LOWER | UPPER | WORD
    kinds[spoken] |= SPOKEN
    signs = {
        DIGIT | BEFORE_DOT: "0123456789",
        WORD: "_",
        ICON | OPENS | CLOSES: "".join(icons) + "…",
        OPENS | CLOSES: _PUNCTUATION + _QUOTES,
        OPENS: "§%=—–" + _CURRENCY,
        CLOSES: "—–",
        CURRENCY: _CURRENCY,
        QUOTE: _QUOTES,
        BEFORE_DOT: "%²-+|?:()" + _PUNCTUATION + _QUOTES,
        TERMINAL: "".join(terminals),
        DOT: ".",
        COMMA: ",",
        PLUS: "+",
        MINUS: "-",
        MATHS: "+-*^",
        JOINT: ":<>=/",
        DASH: "-–—~",
        HOST: "-_.",
    }
    for bits, characters_of in signs.items():
        kinds[[ord(one) for one in characters_of]] |= np.uint32(bits)
    kinds[(kinds & LOWER) != 0] |= BEFORE_DOT
    kinds[0xA1:0x10000] |= HOST
    kinds[(kinds & (ALPHA | DIGIT)) != 0] |= HOST
    closer = SPACE | DIGIT | OPENS | CLOSES | ICON | DOT | COMMA | PLUS | MINUS | MATHS | JOINT | DASH
    kinds[(kinds & closer) == 0] |= PLAIN
    kinds.setflags(write=False)
    return kinds


@cache
def load_lower() -> NDArray[np.int32]:
    """Return the lower-case form of every code point: itself where there is none, or none of one character."""
    lower = np.arange(SIZE, dtype=np.int32)
    for code in range(NAMED):
        form = chr(code).lower()
        if len(form) == 1:
            lower[code] = ord(form)
    lower.setflags(write=False)
    return lower
