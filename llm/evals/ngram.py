"""Byte n-gram baseline: interpolated modified Kneser-Ney, order tuned on a development split.

Every byte of the training text is counted; nothing is pruned, hashed or sampled. The probabilities of
one order sum to one over the 256 bytes for every context, seen or not. No table of n-grams is kept:
training and held-out text are sorted together once by their first `MAX_ORDER` bytes, the windows of every
shorter length are then contiguous runs of that order, and a run's number serves as the n-gram's id.

The model, for byte w after context h (k-1 bytes), h' being h without its first byte:

    P_k(w|h) = (max(c(hw) - D(c(hw)), 0) + sum_v D(c(hv)) P_{k-1}(w|h')) / sum_v c(hv)

and P_k(w|h) = P_{k-1}(w|h') when h was never seen; P_0 = 1/256. At the top order c counts occurrences,
below it c counts the different bytes seen before the window. D takes three values, for counts of one, two
and more, estimated from the counts of counts.

Source: Kneser and Ney, ICASSP 1995; Chen and Goodman, TR-10-98 (Harvard), section 3, eq. 26 (discounts).
Differs: bytes instead of words, and text starts after NULs instead of a start symbol.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
MIN_ORDER, MAX_ORDER = 3, 10
# KenLM's choice where the counts of counts are too few to estimate discounts from.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class NgramResult:
    """Bits per byte at every order: of the development split, which chose `order`, and of the held-out text."""

    order: int
    development_bits: dict[int, float]
    held_out_bits: dict[int, float]

    @property
    def bits_per_byte(self) -> float:
        """Of the held-out text, at the order that was chosen without it."""
        return self.held_out_bits[self.order]


def measure_ngram(
    train: bytes, text: bytes, development_share: float = 0.05, max_development_bytes: int = 500_000
) -> NgramResult:
    """Bits per byte of `text` under the order (3-10) that codes the end of `train` best.

    The development split is the last share of the training text, coded by a model of the rest; the model
    that codes `text` counts all of `train`.
    """
    held_back = min(int(len(train) * development_share), max_development_bytes)
    if not text or not held_back:
        raise ValueError(f"{len(train)} bytes to train on and {len(text)} to code are too few for an n-gram")
    windows = Windows(train + text)
    development = Span(len(train) - held_back, len(train) - held_back, len(train))
    held_out = Span(len(train), len(train), len(train) + len(text))
    bits: list[dict[int, float]] = [{}, {}]
    for order, probabilities in order_probabilities(windows, [development, held_out]):
        for found, probability in zip(bits, probabilities, strict=True):
            found[order] = float(-np.log2(probability).mean())
    order = min(bits[0], key=lambda k: bits[0][k])
    return NgramResult(order, bits[0], bits[1])


@dataclass(frozen=True)
class Span:
    """Counts are taken from bytes [0, train_stop); bytes [start, stop) are predicted."""

    train_stop: int
    start: int
    stop: int


class Windows:
    """All windows of MAX_ORDER bytes in sorted order, in which those that share a prefix are neighbours."""

    def __init__(self, text: bytes) -> None:
        padded = np.frombuffer(bytes(MAX_ORDER - 1) + text + bytes(MAX_ORDER), dtype=np.uint8)
        count = len(padded) - MAX_ORDER
        # Two sorts of one machine word each: by eight bytes, then by (rank of those, the last two bytes).
        head = np.zeros(count, dtype=np.uint64)
        for i in range(8):
            head = (head << np.uint64(8)) | padded[i : i + count]
        by_head = np.argsort(head)
        key = np.empty(count, dtype=np.uint64)
        key[by_head] = np.cumsum(~_repeats(head[by_head]), dtype=np.uint64) << np.uint64(16)
        key |= (padded[8 : 8 + count].astype(np.uint64) << np.uint64(8)) | padded[9 : 9 + count]
        order = np.argsort(key)
        head, key = head[order], key[order]
        self.start_W: Ints = order.astype(np.int32)
        # How many leading bytes a window shares with the one sorted before it.
        self.shared_W = np.zeros(count, dtype=np.int8)
        for length in range(1, 9):
            self.shared_W += _repeats(head >> np.uint64(8 * (8 - length)))
        self.shared_W += _repeats(key >> np.uint64(8))
        self.shared_W += _repeats(key)
        self.shared_W[0] = -1  # it begins a run at every length, that of the empty context too

    def grams(self, length: int) -> "Grams":
        """The different n-grams of `length` bytes."""
        begins_W = self.shared_W < length
        first_G = np.flatnonzero(begins_W)
        id_W = np.empty(len(begins_W), dtype=np.int32)
        id_W[self.start_W] = np.cumsum(begins_W, dtype=np.int32) - 1
        begins_G = self.shared_W[first_G] < length - 1
        context_G = np.cumsum(begins_G, dtype=np.int32) - 1
        return Grams(length, first_G, id_W, context_G, np.flatnonzero(begins_G))

    def count(self, grams: "Grams", train_stop: int) -> npt.NDArray[np.int32]:
        """How often each n-gram ends within the first `train_stop` bytes."""
        low = MAX_ORDER - grams.length
        counted_W = (self.start_W >= low) & (self.start_W < low + train_stop)
        return np.add.reduceat(counted_W, grams.first_G, dtype=np.int32)


@dataclass(frozen=True)
class Grams:
    """The n-grams of one length, numbered in sorted order, so that those of one context are neighbours.

    first_G: the first sorted window of each.  id_W: the n-gram's number by where a window starts.
    context_G: the number of its context.  context_first_C: the first n-gram of each context.
    """

    length: int
    first_G: npt.NDArray[np.int64]
    id_W: Ints
    context_G: Ints
    context_first_C: npt.NDArray[np.int64]

    def of_bytes(self, start: int, stop: int) -> Ints:
        """The n-grams whose last byte lies at [start, stop) of the text."""
        shift = MAX_ORDER - self.length
        return self.id_W[start + shift : stop + shift]


def order_probabilities(windows: Windows, spans: list[Span]) -> Iterator[tuple[int, list[Floats]]]:
    """For each order 3..10: the probability of every predicted byte of each span."""
    lower = [np.full(span.stop - span.start, 1 / 256) for span in spans]
    grams = windows.grams(1)
    counts = [windows.count(grams, span.train_stop) for span in spans]
    for order in range(1, MAX_ORDER + 1):
        if order >= MIN_ORDER:
            top = [interpolate(grams, c, span, below) for c, span, below in zip(counts, spans, lower, strict=True)]
            yield order, top
        if order == MAX_ORDER:
            return
        longer = windows.grams(order + 1)
        longer_start_G = windows.start_W[longer.first_G]
        longer_counts = [windows.count(longer, span.train_stop) for span in spans]
        for i, span in enumerate(spans):
            seen = longer_start_G[longer_counts[i] > 0]
            continuations = np.bincount(grams.id_W[seen + 1], minlength=len(grams.first_G))
            lower[i] = interpolate(grams, continuations.astype(np.int32), span, lower[i])
        grams, counts = longer, longer_counts


def interpolate(grams: Grams, count_G: Ints, span: Span, lower_N: Floats) -> Floats:
    """Return the probability of the bytes of a span at one order.

    Args:    count_G: occurrences or continuations of each n-gram.  lower_N: probability of the N bytes of
             the span [start, stop) at the order below, each in (0, 1].
    Returns: N probabilities; over the 256 bytes after one context they sum to one if `lower_N` do.
    Source:  Chen and Goodman, TR-10-98, eq. 23-26.
    """
    discount_4 = np.array([0.0, *estimate_discounts(count_G)])
    taken_G = discount_4[np.minimum(count_G, 3)]
    total_C = np.add.reduceat(count_G, grams.context_first_C, dtype=np.int64)
    given_C = np.add.reduceat(taken_G, grams.context_first_C)
    gram_N = grams.of_bytes(span.start, span.stop)
    context_N = grams.context_G[gram_N]
    kept_N = count_G[gram_N] - taken_G[gram_N]
    total_N = total_C[context_N]
    mixed_N = (kept_N + given_C[context_N] * lower_N) / np.maximum(total_N, 1)
    return np.where(total_N > 0, mixed_N, lower_N)


def estimate_discounts(count_G: Ints) -> tuple[float, float, float]:
    """Return what is taken from n-grams counted once, twice, and more often.

    Args:    count_G: non-negative counts; zeros are ignored.
    Returns: (D1, D2, D3) with 0 <= D_i <= i: Y = n1 / (n1 + 2 n2), D_i = i - (i + 1) Y n_{i+1} / n_i;
             KenLM's (0.5, 1, 1.5) when some n_1..n_4 is zero or an estimate is out of range.
    Source:  Chen and Goodman, TR-10-98, eq. 26.
    """
    _, n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(count_G, 5), minlength=6)[:5])
    if 0 in (n1, n2, n3, n4):
        return FALLBACK_DISCOUNTS
    share = n1 / (n1 + 2 * n2)
    found = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
    return found if all(0 <= d <= i for i, d in enumerate(found, 1)) else FALLBACK_DISCOUNTS


def _repeats(sorted_W: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """True where an entry equals the one before it."""
    return np.concatenate([[False], sorted_W[1:] == sorted_W[:-1]])
