"""MinHash signatures of texts, from which the similarity of any two of them is estimated.

A text is the set of its runs of words (\\w+, lower case). The share of equal places in two signatures estimates the
Jaccard similarity of their sets, with a deviation of sqrt(J (1 - J) / num_perm). Same text and params, same
signature, on every machine. Source: Broder 1997; hash functions by multiply-shift (Dietzfelbinger et al. 1997).
"""

import re
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from llm.config import BaseParams
from llm.data.text.characters import WORD, load_kinds, load_lower
from llm.data.text.kernel import kernel, part
from llm.data.text.words import decode_texts

SEED = 1
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_LARGEST = np.uint32(0xFFFFFFFF)


class NearDuplicateParams(BaseParams):
    """How alike two texts must be for the later one to go."""

    threshold: float = Field(0.7, gt=0, le=1, description="estimated Jaccard similarity from which a text is a copy")
    num_perm: int = Field(128, ge=16, le=1024, description="length of a MinHash signature")
    bands: int = Field(
        25, ge=1, description="bands of a signature; with 5 rows each, pairs of similarity 0.7 meet in 0.99"
    )
    shingle_words: int = Field(3, ge=1, le=20, description="words per shingle")

    @model_validator(mode="after")
    def _check_bands(self) -> "NearDuplicateParams":
        if self.bands > self.num_perm:
            raise ValueError(f"bands ({self.bands}) must not exceed num_perm ({self.num_perm})")
        return self

    @property
    def rows(self) -> int:
        """Return how many entries of a signature make a band; entries left over count for the estimate alone."""
        return self.num_perm // self.bands


def shingle(text: str, size: int) -> list[str]:
    """Return the runs of `size` words, or all words as one run where there are fewer."""
    words = _WORD.findall(text.lower())
    if len(words) <= size:
        return [" ".join(words) or text]
    return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]


def sign_texts(texts: pa.StringArray, params: NearDuplicateParams) -> NDArray[np.uint32]:
    """Return the MinHash signatures, one row of `num_perm` entries per text.

    A text of fewer words than a shingle is one shingle; a text without words counts by its characters.
    """
    codes, offsets = decode_texts(texts)
    is_word = (load_kinds()[codes] & WORD) != 0
    functions = _draw_functions(params.num_perm)
    signatures: NDArray[np.uint32] = _sign(load_lower()[codes], is_word, offsets, params.shingle_words, *functions)
    return signatures


@cache
def _draw_functions(num_perm: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the factors, all odd, and the addends of the hash functions."""
    drawn = np.random.Generator(np.random.PCG64(SEED)).integers(0, 2**32, (2, num_perm), dtype=np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


@part
def _add_shingle(row: Any, words: Any, last: Any, size: Any, multipliers: Any, addends: Any) -> Any:
    """Take the shingle of the `size` words before word `last` into the signature."""
    h = np.uint64(0)
    for w in range(last - size, last):
        h = (h ^ words[w]) * _MIXER
    x = np.uint32((h ^ (h >> _SHIFT)) * _MULTIPLIER >> _SHIFT)
    for p in range(len(row)):
        row[p] = min(row[p], np.uint32(multipliers[p] * x + addends[p]))


@kernel
def _sign(codes: Any, is_word: Any, offsets: Any, size: Any, multipliers: Any, addends: Any) -> Any:
    signatures = np.full((len(offsets) - 1, len(multipliers)), _LARGEST)
    words = np.empty(len(codes) + 1, np.uint64)  # of one text, and then of the next
    for t in range(len(offsets) - 1):
        num_words = 0
        word, whole = np.uint64(0), np.uint64(0)
        for i in range(offsets[t], offsets[t + 1]):
            whole = (whole ^ np.uint64(codes[i])) * _MULTIPLIER
            if not is_word[i]:
                continue
            word = (word ^ np.uint64(codes[i])) * _MULTIPLIER
            if i + 1 == offsets[t + 1] or not is_word[i + 1]:
                words[num_words] = word ^ (word >> _SHIFT)
                word = np.uint64(0)
                num_words += 1
        if num_words == 0:
            words[0] = whole
            num_words = 1
        row = signatures[t]
        for last in range(min(size, num_words), num_words + 1):
            _add_shingle(row, words, last, min(size, num_words), multipliers, addends)
    return signatures
