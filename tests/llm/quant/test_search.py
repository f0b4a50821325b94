"""Scale search: worked by hand, never worse than plain rounding, and it heeds importance."""

import numpy as np
import pytest

from llm.quant.blocks import pack_q4_0, round_q4_0, split_blocks, unpack
from llm.quant.search import fit_scale, nearest_codes, search_q4_0, weighted_error

ONES = np.ones(64, dtype=np.float32)


def test_fit_scale_by_hand():
    block = np.zeros((1, 1, 32), dtype=np.float32)
    block[0, 0, :2] = [2.0, 5.0]
    codes = np.full((1, 1, 32), 8, dtype=np.uint8)
    codes[0, 0, :2] = [9, 10]  # q = 1, 2
    h = np.ones((1, 32), dtype=np.float32)
    # d = (2*1 + 5*2) / (1 + 4) = 2.4; with importance 3 on the first: (3*2 + 10) / (3 + 4) = 16/7
    assert fit_scale(block, codes, h)[0, 0, 0] == pytest.approx(2.4, rel=1e-3)
    h[0, 0] = 3
    assert fit_scale(block, codes, h)[0, 0, 0] == pytest.approx(16 / 7, rel=1e-3)


def test_exact_grid_is_found():
    row = (np.arange(64, dtype=np.float32) % 16 - 8).reshape(1, 64) * 0.25
    scale, codes = search_q4_0(row, ONES)
    np.testing.assert_array_equal(unpack(pack_q4_0(scale, codes)), row)


def test_one_outlier_does_not_coarsen_the_block():
    row = np.tile(np.linspace(-1, 1, 32, dtype=np.float32), 2).reshape(1, 64)
    row[0, 5] = -3.0
    h = ONES.copy()
    h[5] = 0.0  # an input that is never there
    error = {}
    for name, chosen in (("plain", round_q4_0(row)), ("search", search_q4_0(row, h))):
        gap = unpack(pack_q4_0(*chosen)) - row
        error[name] = float((h * gap**2)[0, :32].sum())
    assert error["search"] < 0.3 * error["plain"]


def test_no_block_is_worse_than_plain_rounding():
    random = np.random.default_rng(3)
    weight = random.standard_t(4, (40, 64)).astype(np.float32)
    h = random.uniform(0.1, 5, 64).astype(np.float32)
    blocks, h_GB = split_blocks(weight), h.reshape(-1, 32)
    scale, codes = round_q4_0(weight)
    plain = weighted_error(blocks, scale.astype(np.float16).astype(np.float32), codes, h_GB)
    found = weighted_error(blocks, *search_q4_0(weight, h), h_GB)
    assert (found <= plain).all()
    assert found.sum() < 0.9 * plain.sum()


def test_codes_clip_at_both_ends():
    blocks = np.full((1, 1, 32), 100.0, dtype=np.float32)
    blocks[0, 0, 0] = -100.0
    codes = nearest_codes(blocks, np.ones((1, 1, 1), dtype=np.float32))
    assert codes[0, 0, :2].tolist() == [0, 15]


def test_importance_of_another_length_is_refused():
    with pytest.raises(ValueError, match="64 columns"):
        search_q4_0(np.zeros((1, 64), dtype=np.float32), ONES[:32])
