"""Simple rules for texts of any length and language: what short docstrings are judged by.

After the quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1). Differs: thresholds are wider, for
docstrings are short; the rule on English stop words is left out, for text may be in any language.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.verdicts import Rule
from llm.data.text.characters import ALPHA, SPACE, WORD, load_kinds, load_lower
from llm.data.text.kernel import kernel, part
from llm.data.text.words import decode_texts

MIN_LINES = 4  # fewer say nothing of repetition
MIN_WORDS = 20  # as above, of the same word
_NEWLINE = ord("\n")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
_LINE = np.uint64(0x5851F42D4C957F2D)  # keeps a line apart from the same word


class SimpleParams(BaseParams):
    """Thresholds; a text outside of any is rejected under the threshold's name."""

    enabled: bool = Field(True, description="judge by these rules")
    min_chars: int = Field(40, ge=1, description="shorter texts are rejected")
    max_chars: int = Field(100_000, ge=100, description="longer texts are rejected")
    min_words: int = Field(5, ge=1, description="texts of fewer words are rejected")
    min_alphabetic: float = Field(0.5, ge=0, le=1, description="least share of letters among visible characters")
    max_mean_word_chars: float = Field(
        20.0, ge=3, description="a longer mean word means encoded data, not prose; wide for scripts without spaces"
    )
    max_same_word: float = Field(0.4, ge=0, le=1, description="largest share that one word has of all words")
    max_repeated_lines: float = Field(
        0.4, ge=0, le=1, description="largest share of characters in lines seen before in the same text"
    )


def measure_simple(texts: pa.StringArray, params: SimpleParams) -> list[Rule]:
    """Return each rule with what every text measures."""
    codes, offsets = decode_texts(texts)
    measured = _measure(codes, offsets, load_kinds(), load_lower()).T.astype(np.float64)
    chars, visible, letters, wide, words, word_chars, most, lines, line_chars, repeated = measured
    same = np.where(words >= MIN_WORDS, most / np.maximum(words, 1), 0.0)
    return [
        Rule("too_short", chars, least=params.min_chars),
        Rule("too_long", chars, most=params.max_chars),
        # In scripts without spaces a run of letters counts as one word, so their letters stand in for words.
        Rule("too_few_words", words + wide / 3, least=params.min_words),
        Rule("few_letters", letters / np.maximum(visible, 1), least=params.min_alphabetic),
        Rule("long_words", word_chars / np.maximum(words, 1), most=params.max_mean_word_chars),
        Rule("same_word", same, most=params.max_same_word),
        Rule(
            "repeated_lines",
            np.where(lines >= MIN_LINES, repeated / np.maximum(line_chars, 1), 0.0),
            most=params.max_repeated_lines,
        ),
    ]


@part
def _find(keys: Any, key: Any, mask: Any) -> Any:
    """Return the place of the key, or of the gap where it belongs."""
    place = (key >> _SHIFT) & mask
    while keys[place] != 0 and keys[place] != key:
        place = (place + _ONE) & mask
    return place


@kernel
def _measure(codes: Any, offsets: Any, kinds: Any, lower: Any) -> Any:
    out = np.zeros((len(offsets) - 1, 10), np.int64)
    room = 4
    for t in range(len(offsets) - 1):
        while room < 2 * (offsets[t + 1] - offsets[t]) + 2:
            room *= 2
    keys, counts = np.zeros(room, np.uint64), np.zeros(room, np.int32)
    for t in range(len(offsets) - 1):
        row = out[t]
        start, end = offsets[t], offsets[t + 1]
        row[0] = end - start
        room = 4
        while room < 2 * (end - start) + 2:
            room *= 2
        mask = np.uint64(room - 1)
        keys[:room] = 0
        word, line = np.uint64(0), np.uint64(0)
        word_size, line_size, line_gap = 0, 0, 0
        for i in range(start, end + 1):
            c = codes[i] if i < end else _NEWLINE
            kind = kinds[c]
            if kind & ALPHA:
                row[2] += 1
                row[3] += c > 127
            if kind & WORD:
                word = (word ^ np.uint64(lower[c])) * _MULTIPLIER
                word_size += 1
            elif word_size:
                key = (word ^ (word >> _SHIFT)) | _ONE
                place = _find(keys, key, mask)
                if keys[place] == 0:
                    keys[place], counts[place] = key, 0
                counts[place] += 1
                row[6] = max(row[6], counts[place])
                row[4] += 1
                row[5] += word_size
                word, word_size = np.uint64(0), 0
            if not kind & SPACE:
                row[1] += 1
                line = (line ^ np.uint64(c + (line_gap << 32))) * _MULTIPLIER
                line_size += 1 + line_gap
                line_gap = 0
            elif c != _NEWLINE:
                line_gap += line_size > 0
            elif line_size:
                key = ((line + _LINE) ^ (line >> _SHIFT)) | _ONE
                place = _find(keys, key, mask)
                row[7] += 1
                row[8] += line_size
                row[9] += line_size if keys[place] != 0 else 0
                keys[place] = key
                line, line_size, line_gap = np.uint64(0), 0, 0
    return out
