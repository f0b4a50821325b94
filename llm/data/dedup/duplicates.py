"""Find texts that were seen before: the same words exactly, or nearly the same by MinHash.

Texts are taken in a given order; the first of its kind is kept, and each later text is compared with the kept
ones only, so that no two kept texts are near-duplicates as far as the estimate sees. Candidates are texts that
share a band of their signatures; a candidate counts when the share of equal entries, which estimates the
Jaccard similarity of the word shingles, reaches the threshold (llm/data/dedup/banding.py has the arithmetic).

The corpus is never held. Memory for n texts, with b bands: the group of each text in each band, 4nb bytes; the
kept texts of each group, 4 bytes for each band that a text shares, at most 4nb; 20 bytes per group; one band's keys
with the arrays that sort them, about 60n. With n = 2 million and b = 25 that is 200 + 120 MB and what is shared.
Measured on 2 million signatures of which 30 % are copies: 622 MB resident at the peak, 161 of them before it began.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.dedup.signatures import SignatureStore
from llm.data.schema import hash_id
from llm.data.text.kernel import kernel
from llm.progress import track

_WORD = re.compile(r"\w+")
CHUNK_TEXTS = 8192  # texts whose candidates' signatures are read together


@dataclass(frozen=True)
class Duplicates:
    """For each text the text that is kept in its place, -1 for one that is kept; how alike they are, and how so."""

    kept_by: NDArray[np.int64]
    similarity: NDArray[np.float32]  # 1 for exact copies, the estimate for near ones, 0 for kept texts
    exact: NDArray[np.bool_]


def key_words(text: str) -> str:
    """Return the words alone, lower-case: what two texts must share to be exact duplicates."""
    return " ".join(_WORD.findall(text.lower()))


def exact_keys(texts: pa.StringArray) -> NDArray[np.uint8]:
    """Return 16 bytes per text that are equal for texts of the same words, shape (texts, 16).

    Texts without any word are compared as they are.
    """
    keys = b"".join(bytes.fromhex(hash_id(key_words(text) or text)) for text in texts.to_pylist())
    return np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16)


def find_duplicates(keys: NDArray[np.uint8], store: SignatureStore, order: NDArray[np.int64]) -> Duplicates:
    """Return which texts repeat another one, exactly or nearly.

    Args:    keys: of `exact_keys`, shape (n, 16).  store: the n signatures, in the same order as the keys.
             order: rows (0 to n - 1) in order of preference, each once; rows left out are neither kept nor compared.
    Returns: arrays of n. The text that is named is always one that is kept: an exact copy of a near copy names
             what stays of both, with the near copy's similarity.
    """
    assert len(keys) == store.num_texts, f"{len(keys)} keys, {store.num_texts} signatures"
    first = find_first(keys, order)
    kept_by, similarity = find_alike(store, order[first[order] == order])
    rows = np.arange(len(keys))
    via = kept_by[first]
    exact = (first != rows) & (via < 0)
    return Duplicates(
        kept_by=np.where(via >= 0, via, np.where(exact, first, -1)),
        similarity=np.where(via >= 0, similarity[first], exact).astype(np.float32),
        exact=exact,
    )


def find_first(keys: NDArray[np.uint8], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row the first row in the given order with the same 16-byte key, itself where it is the first."""
    first = np.arange(len(keys))
    if len(order):
        halves = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)[order]
        by_key = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal keys the first in order comes first
        halves = halves[by_key]
        starts = np.concatenate(([True], (halves[1:] != halves[:-1]).any(axis=1)))
        leaders = by_key[starts][np.cumsum(starts) - 1]
        first[order[by_key]] = order[leaders]
    return first


def find_alike(store: SignatureStore, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each text the earlier kept one that it is most like (-1 for a kept text) and how much.

    Args:    store: signatures of n texts.  order: rows in order of preference; rows left out are not compared.
    Returns: (row of the kept text, estimated Jaccard similarity in [threshold, 1]; 0 for a kept text), n each.
             Of kept texts that are equally alike the first in order is named.
    Source:  Broder 1997; banding as in Leskovec et al., Mining of Massive Datasets, section 3.4.
    """
    kept_by = np.full(store.num_texts, -1, dtype=np.int64)
    similarity = np.zeros(store.num_texts, dtype=np.float32)
    groups, sizes = group_bands(store, order)
    starts = np.cumsum(sizes) - sizes  # where in `members` the kept texts of a group are listed
    filled = np.zeros(len(sizes), dtype=np.int32)
    members = np.zeros(int(sizes.sum()), dtype=np.int32)
    seen = np.full(len(order), -1, dtype=np.int32)
    held_at = np.zeros(store.num_texts, dtype=np.int32)
    num_perm = store.params.num_perm
    needed = next(equal for equal in range(num_perm + 1) if equal / num_perm >= store.params.threshold)
    for start in track(range(0, len(order), CHUNK_TEXTS), "comparing texts"):
        chunk = slice(start, start + CHUNK_TEXTS)
        rows = np.sort(order[_list_candidates(groups[chunk], start, starts, filled, members)])
        held_at[rows] = np.arange(len(rows))
        lists = starts, filled, members, seen
        found, equal = _compare(store.read(rows), held_at, order, groups[chunk], start, *lists, needed)
        kept_by[order[chunk]] = np.where(found >= 0, order[found], -1)
        similarity[order[chunk]] = equal / num_perm
    return kept_by, similarity


def _list_candidates(
    groups: NDArray[np.int32],
    start: int,
    starts: NDArray[np.int64],
    filled: NDArray[np.int32],
    members: NDArray[np.int32],
) -> NDArray[np.int64]:
    """Return the places of a chunk's texts that share a band, and of the kept texts that they share it with."""
    shared = groups >= 0
    own = np.flatnonzero(shared.any(axis=1)) + start
    touched = np.unique(groups[shared])
    counts = filled[touched]
    first = np.repeat(starts[touched] - (np.cumsum(counts) - counts), counts)
    return np.unique(np.concatenate([own, members[first + np.arange(len(first))]]))


def _compare_chunk(
    signatures: NDArray[np.uint32],
    held_at: NDArray[np.int32],
    order: NDArray[np.int64],
    groups: NDArray[np.int32],
    start: int,
    starts: NDArray[np.int64],
    filled: NDArray[np.int32],
    members: NDArray[np.int32],
    seen: NDArray[np.int32],
    needed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each place of a chunk the most alike kept place (-1: none) and how many entries are equal.

    Texts are named by their place in the order; the signature of row r is held at `held_at[r]`. A kept text enters
    its groups: `filled`, `members` and `seen` (the last place that looked at a text, so that it does so once) are
    carried from chunk to chunk.
    """
    found = np.full(len(groups), -1, dtype=np.int64)
    counts = np.zeros(len(groups), dtype=np.int64)
    for offset in range(len(groups)):
        mine, best, best_place = held_at[order[start + offset]], needed - 1, -1
        for group in groups[offset]:
            if group < 0:
                continue
            for slot in range(starts[group], starts[group] + filled[group]):
                place = members[slot]
                if seen[place] == start + offset:
                    continue
                seen[place] = start + offset
                other, equal = held_at[order[place]], 0
                for entry in range(signatures.shape[1]):
                    equal += signatures[mine, entry] == signatures[other, entry]
                if equal > best or (equal == best and place < best_place):
                    best, best_place = equal, place
        if best_place >= 0:
            found[offset], counts[offset] = best_place, best
            continue
        for group in groups[offset]:
            if group >= 0:
                members[starts[group] + filled[group]] = start + offset
                filled[group] += 1
    return found, counts


_compare = kernel(_compare_chunk)


def group_bands(store: SignatureStore, order: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the group of each text in each band, -1 where it has the band to itself, and the groups' sizes.

    Groups are numbered through all bands; shape (len(order), bands).
    """
    groups = np.full((len(order), store.params.bands), -1, dtype=np.int32)
    sizes = [np.zeros(0, dtype=np.int64)]
    count = 0
    for band in range(store.params.bands):
        _, inverse, counts = np.unique(store.band(band)[order], return_inverse=True, return_counts=True)
        shared = counts > 1
        numbers = np.where(shared, np.cumsum(shared) - 1 + count, -1).astype(np.int32)
        groups[:, band] = numbers[inverse]
        sizes.append(counts[shared])
        count += int(shared.sum())
    return groups, np.concatenate(sizes)
