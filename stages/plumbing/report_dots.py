"""Figures of the report as dots with whiskers: places in per cent of a plot's width, and the words beside them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stages.plumbing.report_numbers import Figure, number, percent

ROOM = 30  # per cent of the width of a plot in a card that the label of a mark takes; a limit nearer to it has no label


class Row(NamedTuple):
    """One dot; `ours` is drawn in colour."""

    name: str
    figure: Figure
    ours: bool = False


class Mark(NamedTuple):
    """A dashed line across all rows."""

    value: float
    name: str


def plot_dots(
    rows: Sequence[Row],
    mark: Mark | None = None,
    limits: tuple[float, float] | None = None,
    show: Callable[[float], str] = number,
) -> dict[str, Any]:
    """Rows on one scale, which holds every whisker and the mark, with labels that do not collide."""
    low, high = limits or find_limits([v for _, f, _ in rows for v in f[:3]] + ([mark.value] if mark else []))

    def place(value: float) -> float:
        return min(100.0, max(0.0, 100 * (value - low) / (high - low)))

    at = place(mark.value) if mark else None
    ticks = [(0.0, show(low)), (100.0, show(high))]
    if mark and at is not None:
        ticks = [(at, mark.name), *((end, text) for end, text in ticks if abs(end - at) > ROOM)]
    placed = [
        {
            "name": name,
            "ours": ours,
            "low": place(figure.low),
            "value": place(figure.value),
            "high": place(figure.high),
            "text": show(figure.value),
            "reach": f"{show(figure.low)} to {show(figure.high)}" if figure.low < figure.high else "",
        }
        for name, figure, ours in rows
    ]
    anchored = [{"at": at, "text": text, "shift": 0 if at < 12 else -100 if at > 88 else -50} for at, text in ticks]
    return {"rows": placed, "mark": at, "ticks": anchored}


def find_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold all values with some air."""
    low, high = min(values), max(values)
    air = 0.12 * ((high - low) or 1.0)
    return low - air, high + air


def show_short(value: float) -> str:
    """A number with two significant digits."""
    return number(value, 2)


def show_share(share: float) -> str:
    """A share in whole per cent, but one that is nearly none or nearly all with a decimal."""
    return percent(share, 0 if 0.05 <= share <= 0.95 or share in (0, 1) else 1)
