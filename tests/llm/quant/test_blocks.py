"""The grids and their bytes, by hand and against the `gguf` package."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from llm.quant.blocks import pack_q4_0, pack_q8_0, round_q4_0, unpack

WEIGHTS = np.random.default_rng(7).standard_normal((16, 96)).astype(np.float32)
WEIGHTS[3, :32] = 0  # an all-zero block has scale 0


def test_q8_0_by_hand():
    row = np.zeros((1, 32), dtype=np.float32)
    row[0, :3] = [127.0, -63.4, 0.5]
    packed = pack_q8_0(row)
    assert packed.data.shape == (1, 34)
    assert packed.data[0, :2].view(np.float16)[0] == 1.0
    # 0.5 rounds away from zero, as C's roundf does.
    assert packed.data[0, 2:5].view(np.int8).tolist() == [127, -63, 1]


def test_q4_0_by_hand():
    row = np.zeros((1, 32), dtype=np.float32)
    row[0, :4] = [4.0, -3.5, 1.0, 0.24]
    scale, codes = round_q4_0(row)
    # The largest number, 4.0, becomes code 0: 4.0 = scale * (0 - 8) gives scale -0.5.
    assert scale[0, 0, 0] == -0.5
    assert codes[0, 0, :5].tolist() == [0, 15, 6, 8, 8]
    assert unpack(pack_q4_0(scale, codes))[0, :5].tolist() == [4.0, -3.5, 1.0, 0.0, 0.0]


def test_q4_0_nibbles_hold_first_and_second_half():
    codes = np.arange(32, dtype=np.uint8).reshape(1, 1, 32) % 16
    packed = pack_q4_0(np.ones((1, 1, 1), dtype=np.float32), codes)
    assert packed.data[0, 2:].tolist() == [n | n << 4 for n in range(16)]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_bytes_and_numbers_equal_the_reference(kind: str):
    packed = pack_q8_0(WEIGHTS) if kind == "q8_0" else pack_q4_0(*round_q4_0(WEIGHTS))
    qtype = GGMLQuantizationType[kind.upper()]
    np.testing.assert_array_equal(packed.data, quants.quantize(WEIGHTS, qtype))
    np.testing.assert_array_equal(unpack(packed), quants.dequantize(packed.data, qtype))


def test_row_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="rows of 40 numbers"):
        pack_q8_0(np.zeros((2, 40), dtype=np.float32))
