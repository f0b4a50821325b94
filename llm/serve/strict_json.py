"""JSON as its standard has it: no NaN, no key that stands twice, no half characters; and no endless nesting."""

import json
import math
from typing import Any

from pydantic_core import from_json


def read_json(text: str | bytes) -> Any:
    """Return a JSON value. Raises ValueError."""
    from_json(text, allow_inf_nan=False)  # refuses more than 200 levels, wrong UTF-8 and lone surrogates
    return json.loads(text, object_pairs_hook=_pairs, parse_float=_finite)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object holds the same key twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
