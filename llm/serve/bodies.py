"""From the bytes of a body to the request that they hold.

JSON is read as its standard has it: no NaN, no key that stands twice, no half characters; and no endless nesting.
"""

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from llm.serve.errors import ApiError, from_validation, join_location

R = TypeVar("R", bound=BaseModel)

MAX_CHARS = 1_000_000  # of one text, unless the server has another limit


def parse(kind: type[R], body: bytes, max_chars: int = MAX_CHARS) -> R:
    """Return the request of a body. Raises ApiError(400) that names the field at fault."""
    try:
        tree = read_json(body)
        if len(body) > max_chars:
            _require_short(tree, max_chars, ())
        return kind.model_validate(tree)
    except ValidationError as error:
        raise from_validation(error) from None
    except ValueError as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _require_short(value: object, max_chars: int, loc: tuple[int | str, ...]) -> None:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _require_short(part, max_chars, (*loc, name))
    if isinstance(value, str) and len(value) > max_chars:
        field = join_location(loc)
        message = f"{field}: holds {len(value)} characters; at most {max_chars} are read"
        raise ApiError(message, param=field, code="invalid_value")


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
