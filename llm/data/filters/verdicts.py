"""What filters say of a batch of texts: the first rule that a text breaks, what was measured, and the bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Verdict = tuple[str, str] | None  # (reason, what was measured and the bound), or None for a text to keep


@dataclass(frozen=True, slots=True)
class Rule:
    """A measure of every text and the bounds that it must keep."""

    name: str
    measured: NDArray[np.float64]
    least: float = -np.inf
    most: float = np.inf

    def find_broken(self) -> NDArray[np.bool_]:
        """Tell which texts are out of bounds."""
        return (self.measured < self.least) | (self.measured > self.most)

    def describe(self, place: int) -> str:
        """Return what was measured in one text, and the bound that it breaks."""
        value = self.measured[place]
        shown = f"{value:.0f}" if value == int(value) and abs(value) >= 2 else f"{value:.3f}"
        return f"{shown} < {self.least:g}" if value < self.least else f"{shown} > {self.most:g}"


def judge_rules(rules: Sequence[Rule], prefix: str = "") -> list[Verdict]:
    """Return for each text the first rule that it breaks."""
    num_texts = len(rules[0].measured)
    first = np.full(num_texts, len(rules))
    for i in range(len(rules) - 1, -1, -1):
        first[rules[i].find_broken()] = i
    verdicts: list[Verdict] = [None] * num_texts
    for place in np.flatnonzero(first < len(rules)).tolist():
        rule = rules[first[place]]
        verdicts[place] = (prefix + rule.name, rule.describe(place))
    return verdicts
