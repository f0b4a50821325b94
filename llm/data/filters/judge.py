"""Decide by what a text measures whether it is worth training on: the rules that the params switch on, in turn."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field

from llm.config import BaseParams
from llm.data.filters.c4 import C4Params, judge_c4
from llm.data.filters.quality import GopherQualityParams, measure_quality
from llm.data.filters.repetition import GopherRepetitionParams, measure_repetition
from llm.data.filters.simple import SimpleParams, measure_simple
from llm.data.filters.verdicts import Verdict, judge_rules
from llm.data.text.language import LanguageParams, judge_language
from llm.data.text.words import split_words

CHUNK_CHARS = 4_000_000  # texts are measured so many at a time: what a kernel needs grows with it


class FilterParams(BaseParams):
    """Which rules apply, and their thresholds; a text is rejected under the first rule that it breaks."""

    simple: SimpleParams = Field(default_factory=SimpleParams, description="rules for any text")
    gopher_quality: GopherQualityParams = Field(
        default_factory=GopherQualityParams, description="Gopher's rules on words, signs and stop words"
    )
    gopher_repetition: GopherRepetitionParams = Field(
        default_factory=GopherRepetitionParams, description="Gopher's rules on what comes again in a text"
    )
    c4: C4Params = Field(default_factory=C4Params, description="C4's rules on lines and sentences")
    language: LanguageParams = Field(default_factory=LanguageParams, description="which languages are kept")


def judge_texts(texts: pa.StringArray, params: FilterParams) -> list[Verdict]:
    """Return for each text (reason, what was measured and the bound), None for one to keep.

    Reasons of Gopher's, C4's and the language rules carry the name of their section: `gopher_quality.min_words`.
    """
    verdicts: list[Verdict] = []
    for chunk in _cut(texts):
        verdicts += _judge_chunk(chunk, params)
    return verdicts


def _cut(texts: pa.StringArray) -> list[pa.StringArray]:
    """Cut the array where about CHUNK_CHARS bytes are full."""
    if len(texts) == 0:
        return []
    sizes = np.diff(np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1])
    parts = np.cumsum(sizes) // CHUNK_CHARS
    bounds = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(texts)]
    return [texts[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _judge_chunk(texts: pa.StringArray, params: FilterParams) -> list[Verdict]:
    verdicts: list[Verdict] = [None] * len(texts)
    for judge in _list_judges(params):
        left = [i for i, verdict in enumerate(verdicts) if verdict is None]
        if not left:
            break
        chosen = texts if len(left) == len(texts) else texts.take(pa.array(left))
        for place, verdict in zip(left, judge(chosen), strict=True):
            verdicts[place] = verdict
    return verdicts


def _list_judges(params: FilterParams) -> list[Callable[[pa.StringArray], Sequence[Verdict]]]:
    """Return what the params switch on, the cheapest first."""
    judges: list[Callable[[pa.StringArray], Sequence[Verdict]]] = []
    if params.simple.enabled:
        judges.append(lambda texts: judge_rules(measure_simple(texts, params.simple)))
    if params.language.enabled:
        judges.append(lambda texts: judge_language(texts, params.language))
    if params.gopher_quality.enabled or params.gopher_repetition.enabled:
        judges.append(lambda texts: _judge_gopher(texts, params))
    if params.c4.enabled:
        judges.append(lambda texts: judge_c4(texts, params.c4))
    return judges


def _judge_gopher(texts: pa.StringArray, params: FilterParams) -> Sequence[Verdict]:
    """Judge by the quality rules, then by those on repetition, on words that are split once."""
    words = split_words(texts)
    verdicts: list[Verdict] = [None] * len(texts)
    if params.gopher_quality.enabled:
        verdicts = judge_rules(measure_quality(words, params.gopher_quality), "gopher_quality.")
    if params.gopher_repetition.enabled:
        chosen = np.array([verdict is None for verdict in verdicts])
        rules = measure_repetition(words, params.gopher_repetition, chosen)
        repeated = judge_rules(rules, "gopher_repetition.")
        verdicts = [one or other for one, other in zip(verdicts, repeated, strict=True)]
    return verdicts
