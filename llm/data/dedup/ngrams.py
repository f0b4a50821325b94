"""Hashes of words and of runs of words, computed on whole Arrow arrays.

A word is a run of letters, digits and underscores, lower-case; in scripts that are written without spaces each
character is a word. Hashes depend on the words alone, so that they agree between processes and runs.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex
from numpy.typing import NDArray

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_GAP = r"[^\p{L}\p{N}_]+"
_WORD = regex.compile(rf"[{_UNSPACED}]|[\p{{L}}\p{{N}}_--[{_UNSPACED}]]+", regex.VERSION1)
# First bytes in UTF-8 of characters of the scripts above; the dashes and quotes of other text begin with E2.
_UNSPACED_BYTES = np.array([byte in (0xE0, 0xE1, *range(0xE3, 0xEE), 0xF0) for byte in range(256)])
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def split_words(texts: pa.StringArray) -> tuple[pa.StringArray, NDArray[np.int64]]:
    """Return the words of all texts one after another, and where each text's begin (n + 1 numbers)."""
    lower = pc.utf8_lower(texts)
    if _may_be_unspaced(lower):
        lower = pc.replace_substring_regex(lower, rf"([{_UNSPACED}])", r" \1 ")
    parts = pc.split_pattern_regex(lower, _GAP)
    words, owners = parts.flatten(), pc.list_parent_indices(parts)
    filled = pc.not_equal(words, "")  # text that begins or ends with a sign has an empty part there
    counts = np.bincount(owners.filter(filled).to_numpy(), minlength=len(texts))
    return words.filter(filled), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def hash_words(texts: pa.StringArray) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return a 64-bit hash of each word of all texts, and where each text's begin (n + 1 numbers)."""
    words, offsets = split_words(texts)
    encoded = words.dictionary_encode()
    hashes = np.frombuffer(
        b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in encoded.dictionary.to_pylist()),
        dtype=np.uint64,
    )
    return hashes[encoded.indices.to_numpy()] if len(hashes) else np.zeros(0, np.uint64), offsets


def hash_ngrams(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Return a hash of each run of `size` words: one number for each word that such a run can begin at."""
    count = max(len(hashes) - size + 1, 0)
    grams = np.full(count, size, dtype=np.uint64)
    for word in range(size):
        grams *= _MULTIPLIER  # wraps at 2**64
        grams += hashes[word : word + count]
    grams ^= grams >> np.uint64(32)
    grams *= _MULTIPLIER
    return grams ^ (grams >> np.uint64(29))


def find_inside(offsets: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where runs of `size` words begin that lie within one text, and the number of that text."""
    counts = np.maximum(np.diff(offsets) - size + 1, 0)
    owners = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(owners)) + (offsets[:-1] - (np.cumsum(counts) - counts))[owners], owners


def cut_words(text: str, start: int, count: int, max_chars: int) -> str:
    """Return the passage of a text from its word number `start` on, of `count` words and at most `max_chars`."""
    spans = [match.span() for match in _WORD.finditer(text)][start : start + count]
    passage = text[spans[0][0] : spans[-1][1]] if spans else ""
    return passage if len(passage) <= max_chars else passage[: max_chars - 1] + "…"


def _may_be_unspaced(texts: pa.StringArray) -> bool:
    data = texts.buffers()[2]
    return data is not None and bool(_UNSPACED_BYTES[np.frombuffer(data, dtype=np.uint8)].any())
