"""C4's rules: a text needs five sentences in lines that end as sentences do.

Lines without terminal punctuation, of fewer than three words, on JavaScript or on cookies are passed over; a text
with a curly bracket or `lorem ipsum` in a line that would stay is rejected whole. Source: Raffel et al. 2020,
arXiv:1910.10683, section 2.2, with datatrove 0.10's reading of it. Differs from C4: the text itself is not edited
(`keep_lines` gives the lines that stay), and the list of bad words is left out.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.verdicts import Verdict
from llm.data.text.kernel import kernel
from llm.data.text.words import ENDS_SENTENCE, IS_SIGN, split_words

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_TERMINAL = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class C4Params(BaseParams):
    """Thresholds and phrases of C4."""

    enabled: bool = Field(False, description="judge by these rules; they are meant for web pages in English")
    min_sentences: int = Field(5, ge=0, description="fewest sentences in the lines that stay")
    min_line_words: int = Field(3, ge=0, description="lines of fewer words are passed over")
    max_word_chars: int = Field(1000, ge=1, description="lines with a longer word are passed over")
    need_terminal: bool = Field(True, description="pass over lines that do not end in . ? ! or a quotation mark")
    no_javascript: bool = Field(True, description="pass over lines that speak of JavaScript")
    no_policies: bool = Field(True, description="pass over lines on cookies, privacy and terms of use")
    no_lorem_ipsum: bool = Field(True, description="reject texts with lorem ipsum")
    no_curly_brackets: bool = Field(True, description="reject texts with an opening curly bracket")


def judge_c4(texts: pa.StringArray, params: C4Params) -> list[Verdict]:
    """Return for each text (reason, what was measured and the bound), None for one to keep."""
    verdicts: list[Verdict] = []
    lines: list[str] = []
    owners: list[int] = []
    for place, text in enumerate(texts.to_pylist()):
        kept, reason = keep_lines(text, params)
        verdicts.append((f"c4.{reason}", "in a line that would stay") if reason else None)
        if not reason:
            lines += kept
            owners += [place] * len(kept)
    counts = np.bincount(owners, weights=count_sentences(lines), minlength=len(texts)).astype(int)
    for place, verdict in enumerate(verdicts):
        if verdict is None and counts[place] < params.min_sentences:
            verdicts[place] = ("c4.min_sentences", f"{counts[place]} < {params.min_sentences}")
    return verdicts


def keep_lines(text: str, params: C4Params) -> tuple[list[str], str]:
    """Return the lines that stay, and the reason to reject the whole text or ""."""
    kept = []
    for line in text.splitlines():
        words = line.split()
        line = _CITATION.sub("", line.strip())
        if params.need_terminal and (not line.endswith(_TERMINAL) or line.endswith("...")):
            continue
        if len(words) < params.min_line_words or any(len(word) > params.max_word_chars for word in words):
            continue
        lower = line.lower()
        if params.no_lorem_ipsum and "lorem ipsum" in lower:
            return [], "no_lorem_ipsum"
        if params.no_javascript and "javascript" in lower:
            continue
        if params.no_curly_brackets and "{" in line:
            return [], "no_curly_brackets"
        if not (params.no_policies and any(phrase in lower for phrase in _POLICIES)):
            kept.append(line)
    return kept, ""


def count_sentences(lines: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of sentences in each line: one more than the words that follow a full stop."""
    words = split_words(pa.array(lines, pa.string()))
    counts: NDArray[np.int64] = _count_sentences(words.bits, words.word_offsets, ENDS_SENTENCE, IS_SIGN)
    return counts


@kernel
def _count_sentences(bits, word_offsets, ends_sentence, is_sign):  # type: ignore[no-untyped-def]
    counts = np.ones(len(word_offsets) - 1, np.int64)
    for t in range(len(counts)):
        ended = False
        for w in range(word_offsets[t], word_offsets[t + 1]):
            if bits[w] & ends_sentence:
                ended = True
            elif ended and not bits[w] & is_sign:
                counts[t] += 1
                ended = False
    return counts
