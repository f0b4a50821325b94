"""The two block grids that the release uses, as numpy arrays and as the bytes of a GGUF file.

A row of a weight matrix is cut into blocks of 32 numbers with one half-precision scale each:

    q8_0: w = scale * code,        code in [-128, 127]   34 bytes a block, 8.5 bits a weight
    q4_0: w = scale * (code - 8),  code in [0, 15]       18 bytes a block, 4.5 bits a weight

Shapes: O output rows, I input columns, G = I / 32 blocks of a row, 32 numbers of a block.
This module knows the grids and the bytes; how codes and scales are chosen for q4_0 is in `search`
and `compensate`. It needs numpy alone, so that it runs where the `gguf` package is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

BLOCK = 32

Kind = Literal["q8_0", "q4_0"]
BITS: dict[Kind, float] = {"q8_0": 8.5, "q4_0": 4.5}  # a weight, its share of the scale included
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Packed:
    """A quantized matrix as GGUF stores it: bytes [O, bytes of a row] of one kind."""

    kind: Kind
    data: Bytes


def split_blocks(weight_OI: Floats) -> Floats:
    """Return the matrix as blocks [O, G, 32], or say which row length does not fit."""
    num_columns = weight_OI.shape[-1]
    if num_columns % BLOCK:
        raise ValueError(
            f"rows of {num_columns} numbers cannot be quantized: q8_0 and q4_0 need a multiple of {BLOCK} "
            "(choose such a hidden_size, mlp_size and num_heads * head_size)"
        )
    return np.ascontiguousarray(weight_OI, dtype=np.float32).reshape(weight_OI.shape[0], -1, BLOCK)


def round_half_away(x: Floats) -> Floats:
    """Round to the nearest integer, halves away from zero, as C's roundf does."""
    return np.asarray(np.trunc(x + np.copysign(np.float32(0.5), x)), dtype=np.float32)


def invert(scale: Floats) -> Floats:
    """Return 1 / scale, and 0 where the scale is 0, so that an all-zero block gets zero codes."""
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.where(scale == 0, np.float32(0), np.float32(1) / safe).astype(np.float32)


def pack_q8_0(weight_OI: Floats) -> Packed:
    """Round a matrix to q8_0.

    Args:    weight_OI: fp32, rows a multiple of 32.
    Returns: bytes [O, I / 32 * 34]: for each block the fp16 scale max|w| / 127, then 32 signed codes.
    Raises:  ValueError: a row is no multiple of 32.
    Source:  ggml `quantize_row_q8_0_ref`. Same bytes (tested against the `gguf` package).
    """
    scale_OG1 = scale_q8_0(weight_OI)
    return join_q8_0(scale_OG1, round_half_away(split_blocks(weight_OI) * invert(scale_OG1)).astype(np.int8))


def scale_q8_0(weight_OI: Floats) -> Floats:
    """Return max|w| / 127 of each block, [O, G, 1]."""
    return np.asarray(np.abs(split_blocks(weight_OI)).max(axis=-1, keepdims=True) / np.float32(127))


def join_q8_0(scale_OG1: Floats, codes_OGB: npt.NDArray[np.int8]) -> Packed:
    """Store scales and signed codes as q8_0."""
    return Packed("q8_0", _join(scale_OG1, codes_OGB.view(np.uint8)))


def pack_q4_0(scale_OG1: Floats, codes_OGB: npt.NDArray[np.uint8]) -> Packed:
    """Store scales and codes (0..15) as q4_0: low nibbles hold numbers 0..15 of a block, high 16..31."""
    assert codes_OGB.max(initial=0) <= 15, f"a q4_0 code is {codes_OGB.max()}, the largest is 15"
    nibbles = codes_OGB[..., : BLOCK // 2] | (codes_OGB[..., BLOCK // 2 :] << np.uint8(4))
    return Packed("q4_0", _join(scale_OG1, nibbles))


def round_q4_0(weight_OI: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Choose q4_0 scales and codes by llama.cpp's own rule: the number of largest magnitude becomes code 0.

    Args:    weight_OI: fp32, rows a multiple of 32.
    Returns: scale [O, G, 1] = (signed number of largest magnitude) / -8; codes [O, G, 32] in 0..15.
    Raises:  ValueError: a row is no multiple of 32.
    Source:  ggml `quantize_row_q4_0_ref`. Same bytes (tested against the `gguf` package).
    """
    blocks_OGB = split_blocks(weight_OI)
    largest = np.abs(blocks_OGB).argmax(axis=-1, keepdims=True)
    scale_OG1 = np.take_along_axis(blocks_OGB, largest, axis=-1) / np.float32(-8)
    codes = np.trunc(blocks_OGB * invert(scale_OG1) + np.float32(8.5))
    return scale_OG1, codes.clip(0, 15).astype(np.uint8)


def unpack(packed: Packed) -> Floats:
    """Return the numbers [O, I] that an engine reads back from the bytes, fp32."""
    half = BLOCK // 2
    row_bytes = 2 + (BLOCK if packed.kind == "q8_0" else half)
    blocks = packed.data.reshape(packed.data.shape[0], -1, row_bytes)
    scale_OG1 = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    body = np.ascontiguousarray(blocks[..., 2:])
    if packed.kind == "q8_0":
        numbers = body.view(np.int8).astype(np.float32)
    else:
        numbers = np.concatenate([body & 15, body >> 4], axis=-1).astype(np.float32) - 8
    return np.asarray((scale_OG1 * numbers).reshape(packed.data.shape[0], -1), dtype=np.float32)


def _join(scale_OG1: Floats, body: Bytes) -> Bytes:
    """Return scales as fp16 bytes in front of their blocks, rows flattened."""
    scales = np.ascontiguousarray(scale_OG1.astype(np.float16)).view(np.uint8)
    return np.concatenate([scales, body], axis=-1).reshape(body.shape[0], -1)
