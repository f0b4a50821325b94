"""JSON: a list of rows or texts, read one by one; an object that holds one list of rows; or an object, a single row."""

import io
import re
from collections.abc import Iterator

from llm.data.elements import judge_value, parse_row, read_elements
from llm.data.rows.formats import TALK, SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.items import Fault, Item, Stream
from llm.data.sources.lines import Recoded
from llm.data.sources.locations import HEAD_BYTES
from llm.data.sources.readers.jsonl import SUFFIXES as LINES
from llm.data.sources.readers.text import SUFFIXES as TEXTS
from llm.data.text.encoding import detect_encoding

# Lists of objects that are a column of one row, not the rows of a file.
_COLUMNS = {*TALK, "prompt", "chosen", "rejected", "completion", "instances"}
_START = re.compile(rb"\s*(\[\s*(\{\s*[\"}]|\[|\")|\{\s*\"(\\.|[^\"\\]){0,200}\"\s*:)")


def sniff(head: bytes, name: str) -> int:
    if name.endswith(".json"):
        return 2
    plain = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")
    return 2 if _START.match(plain) and not name.endswith((*TEXTS, *LINES)) else 0


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    recoded = Recoded(stream, detect_encoding(stream.peek(HEAD_BYTES)))
    text = io.TextIOWrapper(io.BufferedReader(recoded), "utf-8")
    buffer = text.read(HEAD_BYTES).lstrip("\ufeff \t\r\n")
    if buffer.startswith("["):
        yield from read_elements(buffer[1:], text, fmt.max_record_bytes)
        return
    buffer += text.read(fmt.max_record_bytes)
    if text.read(1):
        raise BadRecord("too_long", f"an object of over {fmt.max_record_bytes} bytes")
    whole = parse_row(buffer, 0)
    rows = _find_rows(whole.value) if isinstance(whole, Item) else None
    yield from [whole] if rows is None else (judge_value(row, f"row {n}") for n, row in enumerate(rows, 1))


def _find_rows(value: object) -> list[object] | None:
    """Return the rows in an object that holds one list of objects, such as {"version": 1, "examples": [...]}."""
    fields = value if isinstance(value, dict) else {}
    lists = {key: one for key, one in fields.items() if isinstance(one, list) and one and isinstance(one[0], dict)}
    return next(iter(lists.values())) if len(lists) == 1 and not _COLUMNS & set(lists) else None
