"""Error compensation: columns are rounded in turn, and those not yet rounded take up the error.

Only the codes and scales differ from plain rounding; the bytes stay q4_0 or q8_0.
Shapes: O output rows, I input columns, G = I / 32 blocks of a row, B = 32 columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm.quant.blocks import BLOCK, Floats, Kind, Packed, invert, join_q8_0, pack_q4_0, scale_q8_0
from llm.quant.search import search_q4_0

Doubles = npt.NDArray[np.float64]

# Share of the mean diagonal added to H: directions that calibration hardly saw would else be trusted.
DAMPING = 0.01


def compensate(kind: Kind, weight_OI: Floats, moment_II: Tensor, damping: float = DAMPING) -> Packed:
    """Return the matrix in one kind, as a file stores it."""
    if kind == "q8_0":
        return join_q8_0(*compensate_q8_0(weight_OI, moment_II, damping))
    return pack_q4_0(*compensate_q4_0(weight_OI, moment_II, damping))


def compensate_q4_0(
    weight_OI: Floats, moment_II: Tensor, damping: float = DAMPING
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Choose q4_0 scales and codes that keep the layer's outputs, not its weights, close.

    Minimised greedily, column by column:  tr((W - W') H (W - W')^T),  H = E[x x^T]. After column i is rounded,
    its error e_i = (w_i - w'_i) / U_ii moves into the later columns:  w_j -= e_i U_ij  for j > i, where U is
    the upper Cholesky factor of the inverse of H + damping * mean(diag H) * I.  A block's scales are searched
    (`search_q4_0`, weighted by the diagonal of H) on the weights as they stand when the block is reached.

    Args:    weight_OI: fp32, rows a multiple of 32.  moment_II: H, fp64.  damping: > 0.
    Returns: scale [O, G, 1] and codes [O, G, 32] in 0..15.
    Raises:  ValueError: shapes differ, or a row is no multiple of 32.
    Source:  GPTQ, arXiv:2210.17323, algorithm 1. Differs: q4_0 grid, columns in their own order (a block of
             the file is 32 neighbours), scales by search.
    """
    scale_OG1, steps_OGB = _compensate(weight_OI, moment_II, damping, lambda w, h: search_q4_0(w, h)[0], -8, 7)
    return scale_OG1, (steps_OGB + 8).astype(np.uint8)


def compensate_q8_0(
    weight_OI: Floats, moment_II: Tensor, damping: float = DAMPING
) -> tuple[Floats, npt.NDArray[np.int8]]:
    """Choose q8_0 scales and codes as `compensate_q4_0` does; a block's scale is its max|w| / 127.

    Returns: scale [O, G, 1] and codes [O, G, 32] in -127..127.
    """
    scale_OG1, steps_OGB = _compensate(weight_OI, moment_II, damping, lambda w, _: scale_q8_0(w), -127, 127)
    return scale_OG1, steps_OGB.astype(np.int8)


def _compensate(
    weight_OI: Floats,
    moment_II: Tensor,
    damping: float,
    choose_scale: Callable[[Floats, Floats], Floats],
    low: int,
    high: int,
) -> tuple[Floats, Doubles]:
    """Return scale [O, G, 1] and whole steps of it [O, G, 32] in low..high."""
    if moment_II.shape != (weight_OI.shape[1], weight_OI.shape[1]):
        raise ValueError(f"moments {tuple(moment_II.shape)} do not fit a matrix {weight_OI.shape}")
    factor_II = _inverse_factor(moment_II, damping).numpy()
    importance_I = moment_II.diagonal().float().numpy()
    rest_OI = weight_OI.astype(np.float64)
    scales: list[Floats] = []
    steps: list[Doubles] = []
    for start in range(0, weight_OI.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        chosen = choose_scale(rest_OI[:, block].astype(np.float32), importance_I[block])
        scale = chosen.astype(np.float16).astype(np.float32)  # what the file will hold
        block_steps, error_OB = _round_columns(rest_OI[:, block], factor_II[block, block], scale[:, 0, 0], low, high)
        rest_OI[:, block.stop :] -= error_OB @ factor_II[block, block.stop :]
        scales.append(scale)
        steps.append(block_steps[:, None, :])
    return np.concatenate(scales, axis=1), np.concatenate(steps, axis=1)


def _inverse_factor(moment_II: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of (H + damping * mean(diag H) * I)^-1."""
    ridge = damping * float(moment_II.diagonal().mean()) + 1e-12
    damped = moment_II + ridge * torch.eye(len(moment_II), dtype=moment_II.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _round_columns(
    block_OB: Doubles, factor_BB: Doubles, scale_O: Floats, low: int, high: int
) -> tuple[Doubles, Doubles]:
    """Round the 32 columns of a block in turn; return steps [O, B] and scaled errors [O, B].

    Columns are rows in here, so that each lies in one piece; numpy, because threads only cost at this size.
    """
    work_BO = np.ascontiguousarray(block_OB.T)
    steps_BO = np.empty_like(work_BO)
    error_BO = np.empty_like(work_BO)
    scale = scale_O.astype(np.float64)
    inverse = invert(scale_O).astype(np.float64)
    for i in range(BLOCK):
        step = np.floor(work_BO[i] * inverse + 0.5).clip(low, high)
        error_BO[i] = (work_BO[i] - scale * step) / factor_BB[i, i]
        work_BO[i + 1 :] -= factor_BB[i, i + 1 :, None] * error_BO[i]
        steps_BO[i] = step
    return np.ascontiguousarray(steps_BO.T), np.ascontiguousarray(error_BO.T)
