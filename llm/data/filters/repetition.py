"""Gopher's repetition rules: lines and paragraphs that come again, and n-grams that make up too much of a text.

Source: Rae et al. 2021, arXiv:2112.11446, table A1. Shares are of the text's characters, spaces included, as in
datatrove 0.10. Differs from it: n-grams are told apart by 64-bit hashes of their words, where it compares the words
joined without a space.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.verdicts import Rule
from llm.data.text.kernel import kernel, part
from llm.data.text.words import Words

_NEWLINE, _SPACE = ord("\n"), ord(" ")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)


class GopherRepetitionParams(BaseParams):
    """Thresholds of Gopher, table A1; all are shares of lines, paragraphs or characters."""

    enabled: bool = Field(False, description="judge by these rules; they are meant for pages of prose")
    max_duplicate_paragraphs: float = Field(0.3, ge=0, le=1, description="share of paragraphs seen before in the text")
    max_duplicate_paragraph_chars: float = Field(0.2, ge=0, le=1, description="share of characters in these")
    max_duplicate_lines: float = Field(0.3, ge=0, le=1, description="share of lines seen before in the text")
    max_duplicate_line_chars: float = Field(0.2, ge=0, le=1, description="share of characters in these")
    max_top_2_gram: float = Field(0.2, ge=0, description="share of characters in the most frequent run of 2 words")
    max_top_3_gram: float = Field(0.18, ge=0, description="the same for 3 words")
    max_top_4_gram: float = Field(0.16, ge=0, description="the same for 4 words")
    max_duplicate_5_grams: float = Field(
        0.15, ge=0, le=1, description="share of characters in repeated runs of 5 words"
    )
    max_duplicate_6_grams: float = Field(0.14, ge=0, le=1, description="the same for 6 words")
    max_duplicate_7_grams: float = Field(0.13, ge=0, le=1, description="the same for 7 words")
    max_duplicate_8_grams: float = Field(0.12, ge=0, le=1, description="the same for 8 words")
    max_duplicate_9_grams: float = Field(0.11, ge=0, le=1, description="the same for 9 words")
    max_duplicate_10_grams: float = Field(0.1, ge=0, le=1, description="the same for 10 words")


def measure_repetition(
    words: Words, params: GopherRepetitionParams, chosen: NDArray[np.bool_] | None = None
) -> list[Rule]:
    """Return each rule with what every chosen text measures, 0 for the others."""
    chosen = np.ones(len(words.text_offsets) - 1, np.bool_) if chosen is None else chosen
    inner = (words.text_offsets, words.word_offsets, words.starts, words.ends, words.hashes)
    measured = _measure(words.codes, *inner, chosen)
    names = [name for name in GopherRepetitionParams.model_fields if name != "enabled"]
    empty = Rule("empty", (np.diff(words.text_offsets) == 0).astype(np.float64), most=0)
    return [empty, *(Rule(name, measured[:, i], most=getattr(params, name)) for i, name in enumerate(names))]


@part
def _find(keys: Any, key: Any, mask: Any) -> Any:
    """Return the place of the key, or of the gap where it belongs."""
    place = (key ^ (key >> _SHIFT)) & mask
    while keys[place] != 0 and keys[place] != key:
        place = (place + _ONE) & mask
    return place


@part
def _clear(keys: Any, size: Any) -> Any:
    """Empty as many places as twice the size needs, and return their mask."""
    room = 4
    while room < 2 * size:
        room *= 2
    for i in range(room):
        keys[i] = 0
    return np.uint64(room - 1)


@part
def _measure_pieces(codes: Any, start: Any, end: Any, gap: Any, keys: Any) -> Any:
    """Return (pieces, repeated ones, their characters) of a text cut at `gap` line ends in a row, or more."""
    mask = _clear(keys, end - start)
    pieces, repeated, chars = 0, 0, 0
    i = start
    while i <= end:
        a = i
        newlines = 0
        h = np.uint64(0)
        while i < end:
            if codes[i] == _NEWLINE:
                newlines = 1
                while i + newlines < end and codes[i + newlines] == _NEWLINE:
                    newlines += 1
                if newlines >= gap:
                    break
            h = (h ^ np.uint64(codes[i])) * _MULTIPLIER
            i += 1
        h = (h ^ (h >> _SHIFT)) | _ONE
        place = _find(keys, h, mask)
        pieces += 1
        if keys[place] != 0:
            repeated += 1
            chars += i - a
        keys[place] = h
        i = i + newlines if i < end else end + 1
    return pieces, repeated, chars


@part
def _measure_top(grams: Any, starts: Any, ends: Any, first: Any, n: Any, size: Any, keys: Any, counts: Any) -> Any:
    """Return (characters of all runs like the most frequent one, how often it comes)."""
    mask = _clear(keys, size)
    most, best = 0, 0
    for i in range(size):
        place = _find(keys, grams[i], mask)
        if keys[place] == 0:
            keys[place] = grams[i]
            counts[0, place], counts[1, place] = 0, i
        counts[0, place] += 1
        if counts[0, place] > most or (counts[0, place] == most and counts[1, place] < best):
            most, best = counts[0, place], counts[1, place]
    chars = n - 1
    for j in range(first + best, first + best + n):
        chars += ends[j] - starts[j]
    return chars * most, most


@part
def _measure_repeats(grams: Any, starts: Any, ends: Any, first: Any, n: Any, size: Any, keys: Any) -> Any:
    """Return the characters of runs seen before, each word counted once."""
    mask = _clear(keys, size)
    chars, i = 0, 0
    while i < size:
        place = _find(keys, grams[i], mask)
        if keys[place] != 0:
            for j in range(first + i, first + i + n):
                chars += ends[j] - starts[j]
            i += n
        else:
            keys[place] = grams[i]
            i += 1
    return chars


@kernel
def _measure(codes: Any, text_offsets: Any, word_offsets: Any, starts: Any, ends: Any, hashes: Any, chosen: Any) -> Any:
    num_texts = len(text_offsets) - 1
    out = np.zeros((num_texts, 13))
    longest = 0
    for t in range(num_texts):
        longest = max(longest, text_offsets[t + 1] - text_offsets[t])
    room = 4
    while room < 2 * longest + 2:
        room *= 2
    keys = np.zeros(room, np.uint64)
    counts = np.empty((2, room), np.int64)
    grams = np.empty(longest, np.uint64)
    for t in range(num_texts):
        if not chosen[t]:
            continue
        start, end = text_offsets[t], text_offsets[t + 1]
        total = max(end - start, 1)
        first, size = word_offsets[t], word_offsets[t + 1] - word_offsets[t]
        lines = _measure_pieces(codes, start, end, 1, keys)
        paragraphs = lines
        if size > 0:  # cut to what stands between the first and the last word: the text without spaces around it
            a, b = np.int64(starts[first]), np.int64(ends[first + size - 1])
            paragraphs = _measure_pieces(codes, a, b, 2, keys)
        out[t, 0], out[t, 1] = paragraphs[1] / paragraphs[0], paragraphs[2] / total
        out[t, 2], out[t, 3] = lines[1] / lines[0], lines[2] / total
        for i in range(size):
            grams[i] = hashes[first + i]
        most = 2
        for n in range(2, 11):
            size -= 1
            if size <= 0:
                break
            for i in range(size):
                h = (grams[i] * _MULTIPLIER ^ hashes[first + i + n - 1]) * _MULTIPLIER  # in this order only
                grams[i] = (h ^ (h >> _SHIFT)) | _ONE
            if n <= 4:
                chars, most = _measure_top(grams, starts, ends, first, n, size, keys, counts)
                out[t, n + 2] = chars / total
            elif most > 1:  # where no shorter run comes twice, no longer one does
                chars = _measure_repeats(grams, starts, ends, first, n, size, keys)
                most = 2 if chars else 0
                out[t, n + 2] = chars / total
    return out
