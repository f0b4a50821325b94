"""JSON Lines: a row, or a text, on each line. Blank lines are none."""

import json
from collections.abc import Iterator

from llm.data.formats import SourceFormat
from llm.data.items import Fault, Item, Stream
from llm.data.lines import read_lines

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")


def sniff(head: bytes, name: str) -> int:
    lines = [line for line in head.replace(b"\0", b"").split(b"\n")[:-1] if line.strip()][:20]
    if len(lines) < 2 or not lines[0].lstrip(b"\xef\xbb\xbf\xff\xfe \t").startswith(b"{"):
        return 2 * name.endswith(SUFFIXES)
    rows = sum(isinstance(parse_row(line.decode("utf-8", "replace"), 0), Item) for line in lines[1:])
    return 3 if 2 * rows >= len(lines) - 1 else 2 * name.endswith(SUFFIXES)


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    for number, line in read_lines(stream, fmt.max_record_bytes):
        if isinstance(line, Fault):
            yield line
        elif text := line.strip():
            yield parse_row(text, f"line {number}")


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
