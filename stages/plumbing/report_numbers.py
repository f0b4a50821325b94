"""How the report reads figures and writes numbers and foreign text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Json = Mapping[str, Any]
PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")


class Figure(NamedTuple):
    """A measured value with its 95 % interval, which is the value itself where none was taken."""

    value: float
    low: float
    high: float
    n: int | None


def read_figure(found: object, key: str = "value", ends: str = "") -> Figure | None:
    """The figure of a JSON object's `key`, `low` and `high`, or of a bare number; None where there is no finite one."""
    if not isinstance(found, Mapping):
        found = {key: found}
    value = found.get(key)
    if not is_number(value):
        return None
    low, high = (found.get(f"{ends}{end}") for end in ("low", "high"))
    reach = (low, high) if is_number(low) and is_number(high) else (value, value)
    return Figure(value, *reach, n=found.get("n"))


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def section(metrics: Json, *names: str) -> Json:
    """The JSON object under these names, {} where there is none."""
    for name in names:
        found = metrics.get(name)
        metrics = found if isinstance(found, Mapping) else {}
    return metrics


def number(value: float | str | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    if value is None:
        return "not measured"
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)
    if value == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    shown = abs(float(f"{value:.{digits}g}"))  # rounded first: 0.00999 has as many places as 0.0100
    places = max(0, digits - 1 - math.floor(math.log10(shown)))
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


def energy(joules: float) -> str:
    """Joules, as kJ from a thousand and as kWh from one kWh on."""
    if joules >= 3.6e6:
        return f"{number(joules / 3.6e6)} kWh"
    return f"{number(joules / 1000)} kJ" if joules >= 1000 else f"{number(joules)} J"


def listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def show_controls(text: str) -> str:
    """Return a text in which what a browser would act on, such as a change of direction, is visible."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)
