"""Read the elements of a JSON list one by one, and judge what a JSON value can be: a row, a text, or neither."""

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import TextIO

from llm.data.sources.items import Fault, Item
from llm.data.sources.locations import HEAD_BYTES

_BETWEEN = re.compile(r"[\s,]*")


def read_elements(buffer: str, text: TextIO, max_chars: int) -> Iterator[Item | Fault]:
    """Decode element after element, so that little more than one is held."""
    decode, number, start = JSONDecoder().raw_decode, 1, 0
    while True:
        start = _BETWEEN.match(buffer, start).end()  # type: ignore[union-attr]
        if buffer.startswith("]", start):
            if (buffer[start + 1 :] + text.read(HEAD_BYTES)).strip():
                yield Fault(f"row {number}", "bad_json", "something follows the list")
            return
        try:
            value, end = decode(buffer, start)
            cut = end == len(buffer)
        except (ValueError, RecursionError) as error:
            fault = Fault(f"row {number}", "bad_json", f"{error}; the rest of the list cannot be read")
            # A fault near the end of what was read may be but the end of what was read.
            at = error.pos if isinstance(error, JSONDecodeError) else 0
            cut = at > len(buffer) - 10 or str(error).startswith("Unterminated")
            value, end = fault, start
        more = text.read(max(HEAD_BYTES, len(buffer) - start)) if cut and len(buffer) - start <= max_chars else ""
        if more:
            buffer, start = buffer[start:] + more, 0
            continue
        if value is not None and isinstance(value, Fault):
            yield value
            return
        yield judge_value(value, f"row {number}")
        number, start = number + 1, end


def parse_row(text: str, offset: int | str) -> Item | Fault:
    """Return the row or text that one JSON value is, or what is wrong with it."""
    try:
        return judge_value(json.loads(text), offset)
    except (ValueError, RecursionError) as error:
        return Fault(offset, "bad_json", str(error))


def judge_value(value: object, offset: int | str) -> Item | Fault:
    """Return a row or a text as an item; other JSON values are none."""
    if isinstance(value, dict | str):
        return Item(offset, value)
    return Fault(offset, "wrong_type", f"{type(value).__name__}; expected an object or a string")
