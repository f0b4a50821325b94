"""A mixed plan: which matrices get eight bits and which four, so that a size budget loses least.

The losses of matrices are taken to add up: each is measured alone (`sensitivity`), and rounding errors of
different matrices are nearly independent. What the mixed file really loses is then measured like any other's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from llm.config import require
from llm.quant.blocks import BITS, Kind


def plan_kinds(
    losses: Mapping[str, float], counts: Mapping[str, int], budget_bits: float, num_other: int = 0
) -> dict[str, Kind]:
    """Return the kind of each matrix: least sum of losses within the budget, and among equals the smallest file.

    Minimised:  sum of losses[m] over the matrices m in q4_0,  subject to
    32 * num_other + sum_m bits(kind of m) * counts[m]  <=  budget_bits * (num_other + sum_m counts[m]).

    Args:    losses: what a matrix alone loses in q4_0, in any one unit; it loses nothing in q8_0, and less than
             nothing (noise) counts as nothing.  counts: weights of each matrix.
             budget_bits: bits per weight, scales included.  num_other: weights that stay fp32 (norms).
    Raises:  ConfigError: not even q4_0 throughout fits.
    Source:  0/1 knapsack, solved exactly by its Pareto front (Nemhauser and Ullmann 1969): (size, gain) pairs that no
             other pair beats in both. Matrices come in few sizes, so the front stays short.
    """
    smallest = BITS["q4_0"] * sum(counts.values()) + 32 * num_other
    total = sum(counts.values()) + num_other
    budget = budget_bits * total - smallest
    require(
        budget >= 0,
        f"quantize.budget_bits is {budget_bits}: q4_0 throughout takes {smallest / total:.4f} bits per weight here; "
        "allow at least that",
    )
    extra = int(BITS["q8_0"] - BITS["q4_0"])
    size_P, gain_P = np.zeros(1, dtype=np.int64), np.zeros(1)
    taken_MP: list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]] = []
    for name, loss in losses.items():
        sizes = np.concatenate([size_P, size_P + extra * counts[name]])
        gains = np.concatenate([gain_P, gain_P + max(loss, 0.0)])
        order = np.lexsort((-gains, sizes))
        order = order[sizes[order] <= budget]
        best = np.maximum.accumulate(gains[order])
        kept = order[np.concatenate([[True], best[1:] > best[:-1]])]
        taken_MP.append((kept >= len(size_P), kept % len(size_P)))
        size_P, gain_P = sizes[kept], gains[kept]
    place = len(size_P) - 1
    kinds: dict[str, Kind] = {}
    for name, (is_taken, before) in zip(reversed(list(losses)), reversed(taken_MP), strict=True):
        kinds[name] = "q8_0" if is_taken[place] else "q4_0"
        place = int(before[place])
    return {name: kinds[name] for name in losses}
