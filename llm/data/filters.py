"""Decide by simple measures of a text whether it is worth training on.

After the quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1). Differs: thresholds are
params and wider, for docstrings are short; the rule on English stop words is left out, for text may be in any
language.
"""

import re
from collections import Counter

from pydantic import Field

from llm.config import BaseParams

_WORD = re.compile(r"\w+")
MIN_LINES = 4


class FilterParams(BaseParams):
    """Thresholds; a text outside of any is rejected under the threshold's name."""

    min_chars: int = Field(40, ge=1, description="shorter texts are rejected")
    max_chars: int = Field(100_000, ge=100, description="longer texts are rejected")
    min_words: int = Field(5, ge=1, description="texts of fewer words are rejected")
    max_mean_word_chars: float = Field(
        20.0, ge=3, description="a longer mean word means encoded data, not prose; wide for scripts without spaces"
    )
    min_alphabetic: float = Field(0.5, ge=0, le=1, description="least share of letters among visible characters")
    max_repeated_lines: float = Field(
        0.4, ge=0, le=1, description="largest share of characters in lines seen before in the same text"
    )
    max_same_word: float = Field(0.4, ge=0, le=1, description="largest share that one word has of all words")


def judge_text(text: str, params: FilterParams) -> tuple[str, str] | None:
    """Return (reason, what was measured) for a text to reject, None for one to keep."""
    if len(text) < params.min_chars:
        return "too_short", f"{len(text)} characters"
    if len(text) > params.max_chars:
        return "too_long", f"{len(text)} characters"
    words = _WORD.findall(text.lower())
    letters = sum(map(str.isalpha, text))
    # In scripts without spaces a run of letters counts as one word, so their letters stand in for words.
    wide = sum(character.isalpha() and not character.isascii() for character in text)
    if len(words) + wide / 3 < params.min_words:
        return "too_few_words", f"{len(words)} words"
    visible = len("".join(text.split()))
    if letters < params.min_alphabetic * visible:
        return "few_letters", f"{letters / visible:.2f} of the characters"
    mean = sum(map(len, words)) / max(len(words), 1)
    if mean > params.max_mean_word_chars:
        return "long_words", f"mean of {mean:.1f} characters"
    if len(words) >= 20:
        most = Counter(words).most_common(1)[0][1]
        if most > params.max_same_word * len(words):
            return "same_word", f"{most / len(words):.2f} of the words"
    repeated = measure_repeated_lines(text)
    if repeated > params.max_repeated_lines:
        return "repeated_lines", f"{repeated:.2f} of the characters"
    return None


def measure_repeated_lines(text: str) -> float:
    """Return the share of characters that stand in lines seen before in the text; 0 for fewer than four lines."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < MIN_LINES:
        return 0.0
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / sum(map(len, lines))
