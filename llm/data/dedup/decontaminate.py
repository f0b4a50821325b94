"""Find training texts that hold a passage of an evaluation set, by word n-grams, and say which passage.

A text counts when a stretch of its words stands in one evaluation item too, and the stretch is long enough: in words,
and as a share of the item. Much that two texts have in common is no leak, so an n-gram does not count when
- more than `max_items` items hold it (instructions and templates of an evaluation set, licence headers),
- it stands alone and has fewer than `min_content_words` different words besides numbers and English function words,
- more than `max_texts` training texts hold it after dedup (licences, set phrases: GPT-3, arXiv:2005.14165,
  appendix C, took 13-grams in more than ten texts for common ones), unless the whole item stands there.
What this does not see: paraphrases, translations, and items shorter than `min_item_words`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex
from llm.data.dedup.ngrams import cut_words, hash_ngrams, hash_words

WHOLE = 0.9  # share of an item's words from which it counts as whole


@dataclass(frozen=True)
class Hits:
    """Where texts share an n-gram with an item: text, first word, the n-gram's length and number in the index."""

    texts: NDArray[np.int64]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]
    grams: NDArray[np.int64]


class Hit(NamedTuple):
    """One of a text's hits: the first word, the n-gram's length and item; has it content words, is it common?"""

    place: int
    size: int
    item: int
    content: bool
    common: bool


class Match(NamedTuple):
    """A stretch of a text that stands in an item too: `num_words` words from `start` on, of which some may differ."""

    item: int
    start: int
    num_words: int
    matched_words: int


class Contamination(NamedTuple):
    """A match in words: which item of which evaluation source, how much of it, and the passage."""

    id: str
    source: str
    matched_words: int
    share: float
    passage: str


def find_hits(texts: pa.StringArray, index: EvaluationIndex) -> Hits:
    """Return every place of the texts at which an n-gram of the index stands."""
    hashes, offsets = hash_words(texts)
    found = []
    for size, (table, _, _) in index.grams.items():
        grams = hash_ngrams(hashes, size)
        # Most n-grams are in no item: a table of the low bits says so in one look, without a binary search.
        bits = np.uint64(max(1 << 16, 1 << (8 * len(table)).bit_length()) - 1)
        table_bits = np.zeros(int(bits) + 1, dtype=np.bool_)
        table_bits[table & bits] = True
        starts = np.flatnonzero(table_bits[grams & bits])
        numbers = np.searchsorted(table, grams[starts])
        owners = np.searchsorted(offsets, starts, "right") - 1
        inside = (table[np.minimum(numbers, len(table) - 1)] == grams[starts]) if len(table) else starts < 0
        inside &= starts + size <= offsets[owners + 1]
        starts, numbers, owners = starts[inside], numbers[inside], owners[inside]
        found.append((owners, starts - offsets[owners], np.full(len(owners), size), numbers))
    none = np.zeros(0, dtype=np.int64)
    return (
        Hits(*(np.concatenate([none, *arrays]) for arrays in zip(*found, strict=True))) if found else Hits(*[none] * 4)
    )


class HitLedger:
    """Collects the hits of all texts, batch by batch, and judges them when it is known which texts stay."""

    def __init__(self, index: EvaluationIndex, params: DecontaminateParams) -> None:
        self.index, self.params = index, params
        self._hits: list[Hits] = []
        self._counts = {size: np.zeros(len(table.hashes), dtype=np.int64) for size, table in index.grams.items()}

    def add(self, hits: Hits, first_text: int) -> None:
        """Note the hits of a batch whose first text has this number.

        What came a hundred times more often than a common phrase is dropped at once: memory stays bounded.
        """
        limit = 100 * self.params.max_texts
        for size, counts in self._counts.items():
            mine = hits.sizes == size
            pairs = np.unique(np.stack([hits.texts[mine], hits.grams[mine]]), axis=1)
            few = mine & (counts[np.where(mine, hits.grams, 0)] <= limit if len(counts) else mine)
            np.add.at(counts, pairs[1], 1)
            if few.any():
                self._hits.append(
                    Hits(hits.texts[few] + first_text, hits.places[few], hits.sizes[few], hits.grams[few])
                )

    def find_matches(self, kept: NDArray[np.bool_]) -> dict[int, Match]:
        """Return for each text that would be kept, and holds a passage of an item, the longest one."""
        if not self._hits:
            return {}
        texts, places, sizes, grams = (
            np.concatenate([getattr(hits, name) for hits in self._hits])
            for name in ("texts", "places", "sizes", "grams")
        )
        use = kept[texts]
        common = np.zeros(len(texts), dtype=np.bool_)
        for size, table in self.index.grams.items():
            mine = use & (sizes == size)
            pairs = np.unique(np.stack([texts[mine], grams[mine]]), axis=1)
            common[mine] = np.bincount(pairs[1], minlength=len(table.hashes))[grams[mine]] > self.params.max_texts
        rows: dict[int, list[Hit]] = {}
        for number in np.flatnonzero(use)[np.lexsort((places[use], texts[use]))].tolist():
            size = int(sizes[number])
            _, items, content = self.index.grams[size]
            about = int(items[grams[number]]), bool(content[grams[number]]), bool(common[number])
            rows.setdefault(int(texts[number]), []).append(Hit(int(places[number]), size, *about))
        found = {text: self._find_longest(hits) for text, hits in rows.items()}
        return {text: match for text, match in found.items() if match is not None}

    def _find_longest(self, hits: Sequence[Hit]) -> Match | None:
        """Return the stretch of one text with the most matched words of those that are long enough."""
        passages = self._measure_all([hit for hit in hits if not hit.common])
        enough = [match for match in passages if match.matched_words >= self._needed_words(match.item)]
        for match in self._measure_all(hits):  # a whole item is no phrase, however often it stands there
            length = int(self.index.num_words[match.item])
            if match.matched_words >= max(WHOLE * length, self.params.min_matched_words):
                enough.append(match)
        return max(enough, key=lambda match: match.matched_words, default=None)

    def _measure_all(self, hits: Sequence[Hit]) -> list[Match]:
        stretches = _cut_stretches(hits, self.params.max_gap_words)
        return [self._measure(stretch) for stretch in stretches if any(hit.content for hit in stretch)]

    def _measure(self, stretch: Sequence[Hit]) -> Match:
        item = Counter(hit.item for hit in stretch).most_common(1)[0][0]
        matched = len({word for hit in stretch for word in range(hit.place, hit.place + hit.size)})
        start, end = stretch[0].place, max(hit.place + hit.size for hit in stretch)
        return Match(item, start, end - start, matched)

    def _needed_words(self, item: int) -> float:
        length, params = int(self.index.num_words[item]), self.params
        return min(length, max(params.min_matched_words, min(params.min_share * length, params.enough_words)))


def _cut_stretches(hits: Sequence[Hit], max_gap: int) -> Iterator[list[Hit]]:
    """Yield runs of hits, ascending by place, with at most `max_gap` other words between."""
    stretch: list[Hit] = []
    end = 0
    for hit in hits:
        if stretch and hit.place > end + max_gap:
            yield stretch
            stretch = []
        stretch.append(hit)
        end = max(end, hit.place + hit.size)
    if stretch:
        yield stretch


def describe_match(match: Match, text: str, index: EvaluationIndex, params: DecontaminateParams) -> Contamination:
    """Return a match in words, with the passage as it stands in the text."""
    passage = cut_words(text, match.start, match.num_words, params.max_passage_chars)
    share = match.matched_words / max(int(index.num_words[match.item]), 1)
    return Contamination(*index.items[match.item], match.matched_words, round(min(share, 1), 3), passage)
