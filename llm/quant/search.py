"""Scale search for q4_0: the scale and codes of least weighted squared error, block by block.

llama.cpp's rule takes the scale from the one largest number, so one outlier coarsens its whole block.
Here several scales of both signs are tried, each is refined by least squares, and the best is kept.
The bytes stay plain q4_0: every reader of the format profits, none needs to know.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm.quant.blocks import BLOCK, Floats, invert, round_q4_0, split_blocks

# The outlier rule maps the largest number to 8 steps. Fewer steps clip less and round coarser, more steps
# clip the outlier and round the rest finer.
STEPS = (7.0, 7.5, 8.0, 8.5, 9.0, 10.0, 11.5, 14.0, 20.0)


def search_q4_0(weight_OI: Floats, importance_I: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Choose q4_0 scales and codes that minimise the weighted squared error of each block.

    Minimised:  sum_i h_i (w_i - d (c_i - 8))^2  over the scale d (fp16) and the codes c_i in 0..15,
    by trying d = +-max|w| / k for k in STEPS, rounding, then d = sum h w q / sum h q^2 with q = c - 8
    (least squares for fixed codes), and rounding again.

    Args:    weight_OI: fp32, rows a multiple of 32.
             importance_I: h, fp32, >= 0: mean squared input of each column; ones give plain squared error.
    Returns: scale [O, G, 1] and codes [O, G, 32]; the error of each block is at most that of `round_q4_0`.
    Raises:  ValueError: a row is no multiple of 32, or importance has another length.
    Source:  the weighted search that llama.cpp makes for its K-quants (`make_qx_quants`). Differs: q4_0
             grid, both signs, importance from calibration inputs.
    """
    if importance_I.shape != (weight_OI.shape[1],):
        raise ValueError(f"importance has shape {importance_I.shape}, the matrix {weight_OI.shape[1]} columns")
    blocks_OGB = split_blocks(weight_OI)
    # A column that calibration never saw still has to be stored: floor its importance at a small share.
    floor = np.float32(1e-4) * max(float(importance_I.mean()), 1e-12)
    h_GB = np.maximum(importance_I.astype(np.float32), floor).reshape(-1, BLOCK)
    best_scale, best_codes = round_q4_0(weight_OI)
    best_scale = best_scale.astype(np.float16).astype(np.float32)
    best_error = weighted_error(blocks_OGB, best_scale, best_codes, h_GB)
    largest_OG1 = np.abs(blocks_OGB).max(axis=-1, keepdims=True)
    for steps in STEPS:
        for sign in (1.0, -1.0):
            codes = nearest_codes(blocks_OGB, largest_OG1 * np.float32(sign / steps))
            scale = fit_scale(blocks_OGB, codes, h_GB)
            codes = nearest_codes(blocks_OGB, scale)
            error = weighted_error(blocks_OGB, scale, codes, h_GB)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale = np.where(better, scale, best_scale)
            best_codes = np.where(better, codes, best_codes)
    return best_scale, best_codes


def nearest_codes(blocks_OGB: Floats, scale_OG1: Floats) -> npt.NDArray[np.uint8]:
    """Return the codes whose grid points lie nearest for the given scales."""
    steps = blocks_OGB * invert(scale_OG1)
    return np.asarray(np.floor(steps + np.float32(8.5)).clip(0, 15), dtype=np.uint8)


def fit_scale(blocks_OGB: Floats, codes_OGB: npt.NDArray[np.uint8], h_GB: Floats) -> Floats:
    """Return the least-squares scale of each block for fixed codes, as fp16 will hold it."""
    q_OGB = codes_OGB.astype(np.float32) - 8
    hq_OGB = h_GB * q_OGB
    power = (hq_OGB * q_OGB).sum(axis=-1, keepdims=True)
    product = (hq_OGB * blocks_OGB).sum(axis=-1, keepdims=True)
    return np.asarray((product * invert(power)).astype(np.float16), dtype=np.float32)


def weighted_error(blocks_OGB: Floats, scale_OG1: Floats, codes_OGB: npt.NDArray[np.uint8], h_GB: Floats) -> Floats:
    """Return sum h (w - d q)^2 of each block, [O, G, 1]."""
    gap = blocks_OGB - scale_OG1 * (codes_OGB.astype(np.float32) - 8)
    return np.asarray((h_GB * gap * gap).sum(axis=-1, keepdims=True), dtype=np.float32)
