"""Divide groups into training and held-out text by the hash of their names.

A group (a package, or a passage of a file) is held out whole or not at all, and stays where it is when other
groups come or go. Near-duplicates cannot straddle: one of each pair was dropped before.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable

from llm.config import require
from llm.data.builtin.docstrings import split_sentences
from llm.data.dedup.duplicates import key_words
from llm.data.schema import hash_id, hash_share

TRAIN, VAL = "train", "val"
PLACE = ("file", "offset", "passage", "module", "name")  # what meta may say of where in its group a document stands


class Splits:
    """Says on which side a group is: by the hash of its name, so that no list of groups is held."""

    def __init__(self, holdout: float, needed: Iterable[str] = ()) -> None:
        """Take the share of hash values that is held out, in (0, 1), and groups of which both sides need one.

        Raises ConfigError: there is but one needed group.
        """
        self.holdout = holdout
        ranked = {(hash_share("split", group), group) for group in needed}
        first, last = min(ranked, default=(0.0, "")), max(ranked, default=(0.0, ""))
        require(
            not ranked or first != last,
            "ingest.sources: all text is one single document or package, so none can be held out; add text",
        )
        # Whatever the hashes say, the extremes are on either side.
        self._forced = {first[1]: VAL, last[1]: TRAIN} if ranked else {}

    def __call__(self, group: str) -> str:
        """Return `train` or `val`."""
        return self._forced.get(group) or (VAL if hash_share("split", group) < self.holdout else TRAIN)


def find_seen(texts: Iterable[str], wanted: frozenset[str]) -> set[str]:
    """Return those of the key words of sentences that stand as a sentence in one of the texts."""
    seen: set[str] = set()
    if wanted:
        for text in texts:
            for paragraph in re.split(r"\n\s*\n", text):
                seen.update(wanted.intersection(map(key_words, split_sentences(paragraph))))
    return seen


class Surplus:
    """Says of held-out documents, one after the other, which are beyond `max_bytes`; the first one always stays.

    No group gives more than `share` of the bytes, so that one talkative package does not become the measure.
    """

    def __init__(self, max_bytes: int, share: float = 0.1) -> None:
        self.max_bytes, self.share = max_bytes, share
        self.used: Counter[str] = Counter()

    def drops(self, group: str, size_bytes: int) -> bool:
        """Say whether to drop the next document; count it if not."""
        crowded = self.used[group] and self.used[group] + size_bytes > self.share * self.max_bytes
        total = self.used.total()
        if total and (crowded or total + size_bytes > self.max_bytes):
            return True
        self.used[group] += size_bytes
        return False


def reading_key(group: str, meta: str, name: str) -> str:
    """Return a sort key: groups by hash, so that a prefix is a fair sample of them; within one, as one would read.

    Neighbours then speak of the same module, and a model can learn to use what it has just read.
    """
    where = json.loads(meta or "{}")
    place = [f"{where.get(key, ''):>12}" if key == "offset" else str(where.get(key, "")) for key in PLACE]
    return "\0".join([hash_id("order", group), *place, name])
