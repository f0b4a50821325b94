"""Kneser-Ney against hand-worked counts, a plain dictionary implementation, and the sum to one."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from llm.evals.ngram import (
    FALLBACK_DISCOUNTS,
    MAX_ORDER,
    MIN_ORDER,
    Span,
    Windows,
    estimate_discounts,
    measure_ngram,
    order_probabilities,
)

WORDS = [b"the ", b"cat ", b"sat ", b"on ", b"a ", b"mat, ", b"then ", b"returns ", b"array\n", b"x = 1; "]


def make_text(seed: int, num_words: int) -> bytes:
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return b"".join(WORDS[i] for i in random.choice(len(WORDS), num_words, p=weights / weights.sum()))


def predict(train: bytes, text: bytes) -> dict[int, np.ndarray]:
    span = Span(len(train), len(train), len(train) + len(text))
    return {order: found[0] for order, found in order_probabilities(Windows(train + text), [span])}


def test_sums_to_one_over_all_bytes_after_seen_and_unseen_contexts() -> None:
    train = make_text(0, 3000)
    random = np.random.default_rng(1)
    seen = [train[i : i + MAX_ORDER - 1] for i in random.integers(0, len(train) - MAX_ORDER, 6)]
    unseen = [bytes(random.integers(0, 256, MAX_ORDER - 1, dtype=np.uint8)) for _ in range(4)]
    half_seen = [bytes(random.integers(128, 256, 5, dtype=np.uint8)) + s[-4:] for s in seen[:3]]
    contexts = seen + unseen + half_seen
    text = b"".join(context + bytes([byte]) for context in contexts for byte in range(256))
    for order, probability in predict(train, text).items():
        last = probability[MAX_ORDER - 1 :: MAX_ORDER].reshape(len(contexts), 256)
        assert (last > 0).all()
        np.testing.assert_allclose(last.sum(axis=1), 1.0, atol=1e-9, err_msg=f"order {order}")


def test_hand_worked_trigram() -> None:
    """After "abcabd": P(c | ab) by hand.

    Every n-gram here occurs so rarely that the discounts are the fall-back ones: 0.5, 1, 1.5.
    Text starts after NULs, written 0. Trigrams ending in the text: 00a 0ab abc bca cab abd, once each.
    Order 1, by different bytes before: a {0, c} 2, b {a} 1, c {b} 1, d {b} 1, total 5; taken 1 + 3 x 0.5 = 2.5.
      P1(c) = (1 - 0.5)/5 + 2.5/5 x 1/256 = 0.1 + 0.5/256
    Order 2 after b, by different bytes before: bc {a} 1, bd {a} 1, total 2, taken 2 x 0.5 = 1.
      P2(c|b) = 0.5/2 + 1/2 P1(c) = 0.25 + 0.5 P1(c)
    Order 3 after ab, by occurrences: abc 1, abd 1, total 2, taken 1.
      P3(c|ab) = 0.5/2 + 1/2 P2(c|b)
    """
    p1 = 0.1 + 0.5 / 256
    p2 = 0.25 + 0.5 * p1
    expected = 0.25 + 0.5 * p2
    assert predict(b"abcabd", b"abc")[3][2] == pytest.approx(expected, abs=1e-12)


def test_a_context_never_seen_falls_back_to_the_shorter_one() -> None:
    # After "zz": P3 = P2 = P1(a), with the counts above: (2 - 1)/5 + 2.5/5/256.
    assert predict(b"abcabd", b"zza")[3][2] == pytest.approx(0.2 + 0.5 / 256, abs=1e-12)


def reference(train: bytes, text: bytes, order: int) -> list[float]:
    """The formula with dictionaries, one byte at a time."""
    stream = bytes(order - 1) + train + text
    stop = order - 1 + len(train)

    def grams(k: int) -> set[bytes]:
        return {stream[e - k + 1 : e + 1] for e in range(order - 1, stop)}

    tables: dict[int, Counter[bytes]] = {order: Counter(stream[e - order + 1 : e + 1] for e in range(order - 1, stop))}
    for k in range(1, order):
        tables[k] = Counter(gram[1:] for gram in grams(k + 1))
    discounts = {k: (0.0, *estimate_discounts(np.array(list(t.values()), np.int32))) for k, t in tables.items()}
    followers: dict[int, dict[bytes, list[int]]] = {k: defaultdict(list) for k in tables}
    for k, table in tables.items():
        for gram, count in table.items():
            followers[k][gram[:-1]].append(count)

    def probability(context: bytes, byte: bytes, k: int) -> float:
        if k == 0:
            return 1 / 256
        context = context[len(context) - (k - 1) :]
        lower = probability(context[1:], byte, k - 1)
        counts = followers[k].get(context)
        if counts is None:
            return lower
        take = discounts[k]
        count = tables[k][context + byte]
        given = sum(take[min(c, 3)] for c in counts)
        return (count - take[min(count, 3)] + given * lower) / sum(counts)

    return [probability(stream[e - order + 1 : e], stream[e : e + 1], order) for e in range(stop, len(stream))]


def test_equals_a_plain_implementation_at_every_order() -> None:
    train, text = make_text(2, 400), make_text(3, 25)
    for order, found in predict(train, text).items():
        np.testing.assert_allclose(found, reference(train, text, order), rtol=1e-10, err_msg=f"order {order}")


def test_discounts_by_hand_and_when_counts_are_too_few() -> None:
    # n1..n4 = 10, 5, 3, 2: Y = 10/20; D1 = 1 - 2 Y 5/10, D2 = 2 - 3 Y 3/5, D3 = 3 - 4 Y 2/3.
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 4]).astype(np.int32)
    assert estimate_discounts(counts) == pytest.approx((0.5, 1.1, 3 - 4 / 3), abs=1e-12)
    assert estimate_discounts(np.array([0, 1, 1, 2], np.int32)) == FALLBACK_DISCOUNTS


def test_tunes_the_order_on_the_training_text_alone() -> None:
    train, text = make_text(4, 6000), make_text(5, 300)
    found = measure_ngram(train, text)
    assert set(found.development_bits) == set(range(MIN_ORDER, MAX_ORDER + 1))
    assert found.order == min(found.development_bits, key=lambda k: found.development_bits[k])
    assert 0.5 < found.bits_per_byte < 2.0
    assert measure_ngram(train, text[::-1]).order == found.order


def test_never_worse_than_a_guess_by_more_than_the_counts_allow() -> None:
    noise = bytes(np.random.default_rng(8).integers(0, 256, 20_000, dtype=np.uint8))
    assert measure_ngram(noise[:16_000], noise[16_000:]).bits_per_byte == pytest.approx(math.log2(256), abs=0.3)


def test_refuses_too_little_text() -> None:
    with pytest.raises(ValueError, match="too few"):
        measure_ngram(b"abc", b"abc")
