"""Fertility: how many tokens a tokenizer needs for text of each source and each script.

Measured on a sample of every source, weighted by the source's share of the corpus. A script is named by its letters;
what stands between letters belongs to the script before it. Scripts are encoded apart, so sums may differ by a token
from that of the whole text. A word is a run of letters and digits; where words are not spaced, each letter is one.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from llm.data.tokenizer import Tokenizer

SCRIPTS = frozenset((
    "latin", "greek", "cyrillic", "armenian", "hebrew", "arabic", "syriac", "thaana", "devanagari", "bengali",
    "gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "tibetan",
    "myanmar", "georgian", "hangul", "ethiopic", "cherokee", "khmer", "mongolian", "hiragana", "katakana",
    "bopomofo", "han", "yi", "runic", "ogham", "gothic", "deseret", "coptic",
))  # fmt: skip
UNSPACED = frozenset(("han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar", "tibetan", "yi"))
_WORD = re.compile(r"[^\W_]+")
_ASCII_LETTER = re.compile("[A-Za-z]")
BATCH = 512


def measure_fertility(
    sample: Iterable[tuple[str, str]], totals: Mapping[str, int], tokenizer: Tokenizer
) -> dict[str, dict[str, dict[str, float]]]:
    """Return {"source", "script"} -> name -> {"bytes_per_token", "tokens_per_word", "share"}.

    Args:    sample: (source, text).  totals: bytes of each source in the whole corpus.
    Returns: share: the part of the corpus's bytes, for scripts estimated from the sample; in order of share.
    """
    sums: dict[tuple[str, str], Counter[str]] = {}
    for batch in _batched((source, *piece) for source, text in sample for piece in split_scripts(text)):
        for (source, script, piece), ids in zip(batch, tokenizer.encode_batch([one[2] for one in batch]), strict=True):
            sums.setdefault((source, script), Counter()).update(
                bytes=len(piece.encode()), tokens=len(ids), words=count_words(piece, script)
            )
    sampled: Counter[str] = Counter()
    for (source, _), one in sums.items():
        sampled[source] += one["bytes"]
    weights = {source: totals[source] / max(1, size) for source, size in sampled.items()}
    return {
        kind: _rate(
            ((key[place], {name: count * weights[key[0]] for name, count in one.items()}) for key, one in sums.items()),
            sum(totals.values()),
        )
        for place, kind in enumerate(("source", "script"))
    }


def _rate(sums: Iterable[tuple[str, Mapping[str, float]]], total: int) -> dict[str, dict[str, float]]:
    by_name: dict[str, dict[str, float]] = {}
    for name, counts in sums:
        one = by_name.setdefault(name, {"bytes": 0.0, "tokens": 0.0, "words": 0.0})
        for key, count in counts.items():
            one[key] += count
    return {
        name: {
            "bytes_per_token": round(one["bytes"] / max(1.0, one["tokens"]), 4),
            "tokens_per_word": round(one["tokens"] / max(1.0, one["words"]), 4),
            "share": round(one["bytes"] / max(1, total), 6),
        }
        for name, one in sorted(by_name.items(), key=lambda item: (-item[1]["bytes"], item[0]))
    }


def split_scripts(text: str) -> list[tuple[str, str]]:
    """Return (script, piece) in order; the pieces joined are the text. Without a letter the script is `none`."""
    if text.isascii():
        return [("latin" if _ASCII_LETTER.search(text) else "none", text)]
    pieces, start, current = [], 0, ""
    for place, char in enumerate(text):
        if char.isalpha() and (script := name_script(char)) != current:
            if current:
                cut = place - (text[place - 1] == " ")  # the tokenizer joins a space to what follows
                pieces.append((current, text[start:cut]))
                start = cut
            current = script
    return [*pieces, (current or "none", text[start:])]


@lru_cache(maxsize=1 << 14)
def name_script(letter: str) -> str:
    """Return the script of a letter, from its Unicode name; `other` for rare scripts and letter-like symbols."""
    name = unicodedata.name(letter, "").partition(" ")[0].lower().replace("cjk", "han")
    return name if name in SCRIPTS else "other"


def count_words(piece: str, script: str) -> int:
    """Return the number of words."""
    words = _WORD.findall(piece)
    return sum(map(len, words)) if script in UNSPACED else len(words)


def _batched(rows: Iterable[tuple[str, str, str]]) -> Iterator[Sequence[tuple[str, str, str]]]:
    batch: list[tuple[str, str, str]] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
