"""Gopher's quality rules: the length of a text and of its words, signs, bullets, letters, stop words.

Source: Rae et al. 2021, arXiv:2112.11446, section A1.1. Words are counted as datatrove 0.10 counts them, whose
verdicts these are (benchmarks/clean.py measures how often).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.verdicts import Rule
from llm.data.text.kernel import kernel
from llm.data.text.words import HAS_ALPHA, IS_SPOKEN, Words, hash_words

_DOT, _ELLIPSIS, _HASH, _BULLET, _MINUS, _NEWLINE = (ord(one) for one in ".…#•-\n")


class GopherQualityParams(BaseParams):
    """Thresholds of Gopher, table A1; a text beyond any of them is rejected under its name."""

    enabled: bool = Field(False, description="judge by these rules; they are meant for pages of English prose")
    min_words: int = Field(50, ge=0, description="fewest words that are not punctuation alone")
    max_words: int = Field(100_000, ge=1, description="most words that are not punctuation alone")
    min_mean_word_chars: float = Field(3.0, ge=0, description="least mean length of a word")
    max_mean_word_chars: float = Field(10.0, ge=1, description="largest mean length of a word")
    max_hash_ratio: float = Field(0.1, ge=0, description="most hash signs per word")
    max_ellipsis_ratio: float = Field(0.1, ge=0, description="most ellipses per word")
    max_bullet_lines: float = Field(0.9, ge=0, le=1, description="largest share of lines that open with a bullet")
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1, description="largest share of lines that end in an ellipsis")
    min_alpha_words: float = Field(0.8, ge=0, le=1, description="least share of words with a letter in them")
    min_stop_words: int = Field(2, ge=0, description="fewest different stop words in the text")
    stop_words: tuple[str, ...] = Field(
        ("the", "be", "to", "of", "and", "that", "have", "with"), max_length=64, description="the stop words"
    )


def measure_quality(words: Words, params: GopherQualityParams) -> list[Rule]:
    """Return each rule with what every text measures."""
    inner = (words.text_offsets, words.word_offsets, words.starts, words.ends, words.hashes, words.bits)
    m = _measure(words.codes, *inner, hash_words(list(params.stop_words))).T.astype(np.float64)
    num_words, spoken, spoken_chars, alpha, stops, hashes, ellipses, lines, bullets, ellipsis_lines = m

    def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return part / np.maximum(whole, 1)

    return [
        Rule("min_words", spoken, least=params.min_words),
        Rule("max_words", spoken, most=params.max_words),
        Rule("min_mean_word_chars", share(spoken_chars, spoken), least=params.min_mean_word_chars),
        Rule("max_mean_word_chars", share(spoken_chars, spoken), most=params.max_mean_word_chars),
        Rule("max_hash_ratio", share(hashes, num_words), most=params.max_hash_ratio),
        Rule("max_ellipsis_ratio", share(ellipses, num_words), most=params.max_ellipsis_ratio),
        Rule("max_bullet_lines", share(bullets, lines), most=params.max_bullet_lines),
        Rule("max_ellipsis_lines", share(ellipsis_lines, lines), most=params.max_ellipsis_lines),
        Rule("min_alpha_words", share(alpha, num_words), least=params.min_alpha_words),
        Rule("min_stop_words", stops, least=params.min_stop_words),
    ]


@kernel
def _measure(codes: Any, text_offsets: Any, word_offsets: Any, starts: Any, ends: Any, hashes: Any, bits: Any,
             stop_words: Any) -> Any:  # fmt: skip
    n = len(text_offsets) - 1
    out = np.zeros((n, 10), np.int64)
    for t in range(n):
        row = out[t]
        stops = 0
        row[0] = word_offsets[t + 1] - word_offsets[t]
        for w in range(word_offsets[t], word_offsets[t + 1]):
            if bits[w] & IS_SPOKEN:
                row[1] += 1
                row[2] += ends[w] - starts[w]
            if bits[w] & HAS_ALPHA:
                row[3] += 1
                for s in range(len(stop_words)):
                    if hashes[w] == stop_words[s]:
                        stops |= 1 << s
        while stops:
            row[4] += stops & 1
            stops >>= 1
        dots, opened = 0, False
        for i in range(text_offsets[t], text_offsets[t + 1]):
            c = codes[i]
            if c == _NEWLINE:
                row[7] += 1
                row[9] += dots >= 3
                dots, opened = 0, False
                continue
            if c == _HASH:
                row[5] += 1
            if c == _DOT:
                dots = dots + 1 if i > text_offsets[t] and codes[i - 1] == _DOT else 1
                row[6] += dots % 3 == 0
            elif c == _ELLIPSIS:
                dots = 3
                row[6] += 1
            elif c > 32 and c != 0xA0:
                dots = 0
            if not opened and c > 32 and c != 0xA0:
                opened = True
                row[8] += c in (_BULLET, _MINUS)
        if text_offsets[t + 1] > text_offsets[t] and codes[text_offsets[t + 1] - 1] != _NEWLINE:
            row[7] += 1
            row[9] += dots >= 3
    return out
