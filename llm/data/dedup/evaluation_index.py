"""Index the word n-grams of evaluation texts, so that training texts can be searched for them.

Compact: 13 bytes per n-gram (600,000 for the 7,473 questions and answers of gsm8k). Equal texts enter once, and
n-grams that many items hold do not enter: they are the set's template.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from llm.config import BaseParams
from llm.data.dedup.ngrams import find_inside, hash_ngrams, hash_words, split_words

BATCH_ITEMS = 4096
_FUNCTION_WORDS = (
    "a about after all also an and any are as at be because been before but by can could did do does each else few "
    "first for from get give given had has have he her here him his how i if in into is it its let like make many "
    "may more most much must my no not now of on one only or other our out over she should so some such than that "
    "the their them then there these they this those to too two under up use used using very was we were what when "
    "where which while who why will with would you your"
)
_STOPWORDS = frozenset(_FUNCTION_WORDS.split())


class DecontaminateParams(BaseParams):
    """When a training text holds an evaluation item."""

    ngram_words: int = Field(13, ge=5, le=50, description="words of the n-grams that are looked up (GPT-3 took 13)")
    min_matched_words: int = Field(20, ge=5, description="words that a passage must have in common with an item")
    min_share: float = Field(0.25, ge=0, le=1, description="share of the item's words that it must have in common")
    enough_words: int = Field(50, ge=5, description="words in common that count whatever their share of the item")
    max_gap_words: int = Field(3, ge=0, description="words that may differ between two stretches of one passage")
    max_items: int = Field(10, ge=1, description="n-grams of more evaluation items than this are templates")
    max_texts: int = Field(10, ge=1, description="n-grams of more training texts than this are common phrases")
    min_content_words: int = Field(
        3, ge=0, description="words, no numbers or function words, that one n-gram of a passage must have"
    )
    min_item_words: int = Field(8, ge=2, description="shorter items are not looked for; up to ngram_words, whole ones")
    max_passage_chars: int = Field(400, ge=20, description="the passage in a reject is cut to this length")

    @model_validator(mode="after")
    def _check_lengths(self) -> "DecontaminateParams":
        if self.min_item_words > self.ngram_words:
            raise ValueError(f"min_item_words ({self.min_item_words}) must not exceed ngram_words ({self.ngram_words})")
        return self


class EvaluationText(NamedTuple):
    """A text that must not be trained on: a question, or an answer, of an evaluation set."""

    id: str
    source: str
    text: str


class GramTable(NamedTuple):
    """N-grams of one length: sorted hashes, the first item that holds each, and whether it has content words."""

    hashes: NDArray[np.uint64]
    items: NDArray[np.int32]
    content: NDArray[np.bool_]


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of evaluation items, without those of templates."""

    items: list[tuple[str, str]]  # id and source of each
    num_words: NDArray[np.int32]  # of each item
    grams: dict[int, GramTable]  # by length; an item that is shorter than ngram_words is one n-gram of its length


def build_index(texts: Iterable[EvaluationText], params: DecontaminateParams) -> EvaluationIndex:
    """Return the index of evaluation texts, read batch by batch; a text that came before is left out."""
    seen: set[str] = set()
    items: list[tuple[str, str]] = []
    num_words: list[int] = []
    found: dict[int, list[GramTable]] = {}
    rest = iter(texts)
    while batch := list(islice(rest, BATCH_ITEMS)):
        batch = list({one.text: one for one in reversed(batch) if one.text not in seen}.values())[::-1]
        seen.update(one.text for one in batch)
        array = pa.array([one.text for one in batch], pa.string())
        hashes, offsets = hash_words(array)
        lengths = np.diff(offsets)
        content = _number_content(array)
        short = {int(n) for n in lengths if params.min_item_words <= n < params.ngram_words}
        for size in sorted({params.ngram_words, *short}):
            starts, owners = find_inside(offsets, size)
            whole = np.flatnonzero((size == params.ngram_words) | (lengths[owners] == size))
            starts, owners = starts[whole], owners[whole]
            enough = _count_content(content, starts, size) >= params.min_content_words
            part = GramTable(hash_ngrams(hashes, size)[starts], (owners + len(items)).astype(np.int32), enough)
            found.setdefault(size, []).append(part)
        items += [(one.id, one.source) for one in batch]
        num_words += lengths.tolist()
    grams_of = {size: _merge(parts, params.max_items) for size, parts in sorted(found.items())}
    return EvaluationIndex(items, np.array(num_words, dtype=np.int32), grams_of)


def _number_content(texts: pa.StringArray) -> NDArray[np.int64]:
    """Return a number for each word of all texts, -1 for numbers and function words."""
    words = split_words(texts)[0].dictionary_encode()
    content = [not (word.isdigit() or word in _STOPWORDS) for word in words.dictionary.to_pylist()]
    codes = words.indices.to_numpy()
    return np.where(np.array(content, dtype=np.bool_)[codes], codes, -1) if len(codes) else np.zeros(0, np.int64)


def _count_content(content: NDArray[np.int64], starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return how many different content words the n-grams that begin at `starts` have."""
    if not len(starts):
        return np.zeros(0, dtype=np.int64)
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(content, size)[starts], axis=1)
    different = (windows[:, 1:] != windows[:, :-1]).sum(axis=1) + 1
    return np.asarray(different - (windows[:, 0] < 0))


def _merge(parts: list[GramTable], max_items: int) -> GramTable:
    """Return the sorted n-grams that at most `max_items` items hold, each with the first of these."""
    grams, items, content = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((items, grams))
    grams, items, content = grams[order], items[order], content[order]
    again = np.flatnonzero((grams[1:] == grams[:-1]) & (items[1:] == items[:-1])) + 1
    grams, items, content = np.delete(grams, again), np.delete(items, again), np.delete(content, again)
    unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
    few = counts <= max_items
    return GramTable(unique[few], items[first[few]], content[first[few]])
