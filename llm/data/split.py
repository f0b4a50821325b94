"""Divide groups into training and held-out text by the hash of their names.

A group (a package, or a passage of a file) is held out whole or not at all, and stays where it is when other
groups come or go. Near-duplicates cannot straddle: one of each pair was dropped before.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llm.config import require
from llm.data.dedup import key_words
from llm.data.docstrings import split_sentences
from llm.data.schema import Document, hash_id, hash_share
from llm.progress import track

TRAIN, VAL = "train", "val"
PLACE = ("file", "offset", "passage", "module", "name")  # what meta may say of where in its group a document stands


def assign_splits(groups: Iterable[str], holdout: float, needed: Iterable[str] = ()) -> dict[str, str]:
    """Return group -> `train` or `val`; both occur among the `needed` groups, whatever the hashes say.

    Args:    groups: every name.  holdout: share of hash values that is held out, in (0, 1).
             needed: groups of which at least one must be on each side, such as those that hold documents.
    Raises:  ConfigError: fewer than two needed groups.
    """
    splits = {group: VAL if hash_share("split", group) < holdout else TRAIN for group in groups}
    ranked = sorted(set(needed), key=lambda group: (hash_share("split", group), group))
    if ranked:
        require(
            len(ranked) > 1,
            "ingest.sources: all text is one single document or package, so none can be held out; add text",
        )
        splits[ranked[0]], splits[ranked[-1]] = VAL, TRAIN
    return splits


def find_seen(texts: Iterable[str], sentences: Iterable[str]) -> set[str]:
    """Return the key words of those sentences that stand as a sentence in one of the texts."""
    wanted = {key_words(sentence) for sentence in sentences}
    seen: set[str] = set()
    if wanted:
        for text in track(texts, "looking for held-out sentences"):
            for paragraph in re.split(r"\n\s*\n", text):
                seen.update(wanted.intersection(map(key_words, split_sentences(paragraph))))
    return seen


def choose_surplus(documents: Sequence[Document], max_bytes: int, share: float = 0.1) -> set[str]:
    """Return the ids of held-out documents beyond `max_bytes`, in the given order; the first one always stays.

    No group gives more than `share` of the bytes, so that one talkative package does not become the measure.
    """
    surplus: set[str] = set()
    used: Counter[str] = Counter()
    for i, document in enumerate(documents):
        size = len(document.text.encode())
        crowded = used[document.group] and used[document.group] + size > share * max_bytes
        if i and (crowded or used.total() + size > max_bytes):
            surplus.add(document.id)
        else:
            used[document.group] += size
    return surplus


def reading_order(document: Document) -> tuple[str, ...]:
    """Return a sort key: groups by hash, so that a prefix is a fair sample of them; within one, as one would read.

    Neighbours then speak of the same module, and a model can learn to use what it has just read.
    """
    meta = json.loads(document.meta or "{}")
    place = [f"{meta.get(key, ''):>12}" if key in ("offset", "passage") else str(meta.get(key, "")) for key in PLACE]
    return hash_id("order", document.group), *place, document.id
