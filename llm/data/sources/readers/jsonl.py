"""JSON Lines: a row, or a text, on each line. Blank lines are none."""

from collections.abc import Iterator

from llm.data.elements import parse_row
from llm.data.rows.formats import SourceFormat
from llm.data.sources.items import Fault, Item, Stream
from llm.data.sources.lines import read_lines

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
