"""Find texts that stand on both sides of the split: the same words, or near-duplicates at the threshold.

Clean keeps one document of each cluster, so none should straddle. Other records carry text too: a conversation or
preference of the training side may repeat a held-out document, or its answer. Here every text of a record counts
that has enough words to say something: short answers are alike by nature.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.dedup.duplicates import exact_keys, find_first
from llm.data.dedup.minhash import NearDuplicateParams, sign_texts
from llm.data.dedup.signatures import SignatureStore
from llm.data.schema import iter_rows

MIN_WORDS = 20
BATCH_TEXTS = 4096
BATCH_PAIRS = 65_536
_COLUMNS = {
    "documents": ["id", "split", "text"],
    "conversations": ["id", "split", "messages"],
    "preferences": ["id", "split", "chosen", "rejected"],
}


@dataclass(frozen=True, slots=True)
class Straddle:
    """A training record and a held-out one with the same text or nearly so; `similarity` is 1 for the same words."""

    train_kind: str
    train_id: str
    val_kind: str
    val_id: str
    similarity: float
    exact: bool


def find_straddling(
    keys: NDArray[np.uint8], store: SignatureStore, held_out: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Return for each training text the held-out text that it repeats, -1 for none; how much; whether exactly.

    Args:    keys: of `exact_keys`, shape (n, 16).  store: the n signatures.  held_out: whether a text is held out.
    Returns: arrays of n; held-out texts have -1. Near pairs are those that share a band, as in dedup.
    """
    val, train = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    found = np.full(len(keys), -1, dtype=np.int64)
    similarity = np.zeros(len(keys), dtype=np.float32)
    first = find_first(keys, np.concatenate([val, train]))
    same = train[held_out[first[train]]]
    found[same], similarity[same] = first[same], 1
    exact = found >= 0
    for band in range(store.params.bands):
        band_keys = store.band(band)
        for some_train, some_val in _pair_rows(band_keys, train[~exact[train]], val):
            alike = _compare_pairs(store, some_train, some_val)
            better = (alike >= store.params.threshold) & (alike > similarity[some_train])
            # Ascending, so that of several pairs of one training text the most alike is written last.
            ranked = np.flatnonzero(better)[np.argsort(alike[better], kind="stable")]
            found[some_train[ranked]], similarity[some_train[ranked]] = some_val[ranked], alike[ranked]
    return found, similarity, exact


def _pair_rows(
    keys: NDArray[np.uint64], train: NDArray[np.int64], val: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of a training and a held-out row with the same key, in batches."""
    val = val[np.argsort(keys[val], kind="stable")]
    left = np.searchsorted(keys[val], keys[train], "left")
    counts = np.searchsorted(keys[val], keys[train], "right") - left
    train, left, counts = train[counts > 0], left[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    for start in range(0, int(counts.sum()), BATCH_PAIRS):
        number = np.arange(start, min(start + BATCH_PAIRS, int(ends[-1])))
        group = np.searchsorted(ends, number, "right")
        yield train[group], val[left[group] + number - (ends - counts)[group]]


def _compare_pairs(store: SignatureStore, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the share of equal signature entries of each pair of rows."""
    rows, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    signatures = store.read(rows)
    alike = [
        (signatures[a] == signatures[b]).mean(axis=1)
        for a, b in zip(
            np.array_split(places[: len(one)], 1 + len(one) // BATCH_TEXTS),
            np.array_split(places[len(one) :], 1 + len(one) // BATCH_TEXTS),
            strict=True,
        )
    ]
    return np.concatenate(alike).astype(np.float32)


def find_straddling_records(
    clean: Path, scratch: Path, params: NearDuplicateParams, min_words: int = MIN_WORDS
) -> list[Straddle]:
    """Return the training records of a folder of clean records that repeat a held-out text, the most alike of each.

    `scratch` takes the signatures, 700 bytes per text; nothing else grows with the texts but 80 bytes of ids.
    """
    names: list[tuple[str, str]] = []
    held_out: list[bool] = []
    keys = [np.zeros((0, 16), dtype=np.uint8)]
    with SignatureStore(scratch, params) as store:
        for batch in _batches(_read_texts(clean, min_words)):
            texts = pa.array([text for _, _, _, text in batch], pa.string())
            keys.append(exact_keys(texts))
            store.append(sign_texts(texts, params))
            names += [(kind, name) for kind, name, _, _ in batch]
            held_out += [split == "val" for _, _, split, _ in batch]
    found, similarity, exact = find_straddling(np.concatenate(keys), store, np.array(held_out, dtype=np.bool_))
    best: dict[tuple[str, str], Straddle] = {}
    for row in np.flatnonzero(found >= 0).tolist():
        mine, other = names[row], names[int(found[row])]
        pair = Straddle(mine[0], mine[1], other[0], other[1], float(similarity[row]), bool(exact[row]))
        if pair.similarity > getattr(best.get((pair.train_kind, pair.train_id)), "similarity", -1):
            best[pair.train_kind, pair.train_id] = pair
    return list(best.values())


def _read_texts(clean: Path, min_words: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield (kind, id, split, text) of the texts of `min_words` and more that a model may learn to write."""
    for kind, columns in _COLUMNS.items():
        for row in iter_rows(clean / f"{kind}.parquet", columns):
            for text in _texts_of(row):
                if text and len(text.split(None, min_words)) >= min_words:
                    yield kind, row["id"], row["split"], text


def _texts_of(row: dict[str, Any]) -> list[str | None]:
    if "messages" in row:
        return [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return [row["text"]] if "text" in row else [row["chosen"], row["rejected"]]


def _batches(rows: Iterable[tuple[str, str, str, str]]) -> Iterator[list[tuple[str, str, str, str]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) >= BATCH_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
