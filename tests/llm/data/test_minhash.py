"""Signatures estimate the exact Jaccard similarity, no worse than another implementation does."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rensa import RMinHash

from llm.data.dedup.minhash import NearDuplicateParams, shingle, sign_texts

PARAMS = NearDuplicateParams()


def jaccard(one: str, other: str) -> float:
    a, b = (set(shingle(text, PARAMS.shingle_words)) for text in (one, other))
    return len(a & b) / len(a | b)


def make_pairs(count: int) -> list[tuple[str, str]]:
    """Return pairs of texts of 30 to 500 words of which up to a third differ."""
    generator = random.Random(4)
    stock = [f"word{i}" for i in range(3000)]
    pairs = []
    for _ in range(count):
        base = generator.choices(stock, k=generator.choice((30, 60, 200, 500)))
        copy = list(base)
        for place in generator.sample(range(len(base)), generator.randint(0, len(base) // 3)):
            copy[place] = generator.choice(stock)
        pairs.append((" ".join(base), " ".join(copy)))
    return pairs


def test_estimates_are_as_close_as_theory_says_and_as_rensas() -> None:
    pairs = make_pairs(300)
    exact = np.array([jaccard(*pair) for pair in pairs])
    texts = [text for pair in pairs for text in pair]
    theirs = RMinHash.digest_matrix_from_token_sets([shingle(text, 3) for text in texts], PARAMS.num_perm, 1)
    deviation = np.sqrt(np.maximum(exact * (1 - exact), 0.001) / PARAMS.num_perm)
    spread = []
    for signatures in (sign_texts(pa.array(texts), PARAMS), np.array(theirs.to_rows())):
        errors = (signatures[::2] == signatures[1::2]).mean(axis=1) - exact
        assert abs(errors.mean()) < 4 * deviation.mean() / np.sqrt(len(pairs))  # no bias
        assert np.abs(errors / deviation).max() < 4.5
        spread.append(np.sqrt(np.mean((errors / deviation) ** 2)))
    assert spread[0] == pytest.approx(1, abs=0.15)
    assert spread[0] < 1.3 * spread[1]


def test_a_signature_is_of_the_words_alone_and_always_the_same() -> None:
    texts = pa.array(["The mill; turns!", "the  MILL\nturns", "the mill turned", "?!", "!?", "", "mill"])
    signatures = sign_texts(texts, PARAMS)
    assert signatures.shape == (7, 128)
    assert signatures.dtype == np.uint32
    equal = (signatures[:, None] == signatures[None]).all(axis=2)
    assert np.argwhere(np.triu(equal, 1)).tolist() == [[0, 1]]
    # Pinned: stored signatures of one release must be comparable with another's.
    assert signatures[0, :3].tolist() == [2977760556, 2231964250, 2531363516]
    assert np.array_equal(sign_texts(texts[2:5], PARAMS), signatures[2:5])
    assert sign_texts(texts[:0], PARAMS).shape == (0, 128)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.integers(1, 5))
def test_hostile_text_has_signatures(texts: list[str], size: int) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    params = NearDuplicateParams(num_perm=16, bands=4, shingle_words=size)
    signatures = sign_texts(pa.array([*texts, *texts], pa.string()), params)
    assert np.array_equal(signatures[: len(texts)], signatures[len(texts) :])
