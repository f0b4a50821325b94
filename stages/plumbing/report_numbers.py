"""How the report writes numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | str | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    if value is None:
        return "not measured"
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, minus being U+2212."""
    return ("+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "") + number(abs(value), digits)


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f} %"


def size(count: float) -> str:
    """Bytes in decimal units."""
    unit = min(3, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{number(count / 1000**unit)} {('B', 'kB', 'MB', 'GB')[unit]}"


def duration(seconds: float) -> str:
    """Seconds as m:ss from one minute on."""
    return f"{number(seconds, 2)} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def in_order(items: Mapping[str, Any], known: Sequence[str]) -> list[tuple[str, Any]]:
    """The items of a JSON object, whose keys are sorted by letter, in a better order."""
    return sorted(items.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known))
