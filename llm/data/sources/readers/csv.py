"""CSV and TSV: rows named by the first line. The delimiter is the one that divides the first lines alike."""

import csv
from collections.abc import Iterator

from llm.data.rows.formats import SourceFormat
from llm.data.sources.items import Fault, Item, Stream
from llm.data.sources.lines import read_lines
from llm.data.sources.locations import HEAD_BYTES
from llm.data.sources.readers.text import SUFFIXES as TEXTS

SUFFIXES = (".csv", ".tsv", ".tab")
DELIMITERS = "\t,;|"


def sniff(head: bytes, name: str) -> int:
    if name.endswith(SUFFIXES):
        return 2
    looks = not name.endswith(TEXTS) and b"\0" not in head and find_delimiter(head, at_least=3, alike=0.8)
    return 2 if looks else 0


def find_delimiter(head: bytes, at_least: int = 1, alike: float = 0.5) -> str:
    """Return the delimiter by which a share of the first rows is as wide as the header; of several, the widest."""
    lines = head.replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff").splitlines(keepends=True)[:-1][:50]
    best, most = "", 1
    for delimiter in DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if len(widths) >= at_least and widths[0] > most and widths.count(widths[0]) > alike * len(widths):
            best, most = delimiter, widths[0]
    return best


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    delimiter = find_delimiter(stream.peek(HEAD_BYTES)) or ("\t" if name.endswith((".tsv", ".tab")) else ",")
    csv.field_size_limit(max(csv.field_size_limit(), fmt.max_record_bytes))  # 131,072 is too little for a text
    faults: list[Fault] = []
    numbers = [0]
    rows = csv.reader(_take_texts(stream, fmt, faults, numbers), delimiter=delimiter)
    header: list[str] = []
    while True:
        first = numbers[-1] + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            row = []
            faults.append(Fault(f"line {first}", "bad_csv", str(error)))
        yield from faults
        faults.clear()
        if row is None:
            return
        if row and not header:
            header = [one.strip() for one in row]
        elif len(row) == len(header):
            yield Item(f"line {first}", dict(zip(header, row, strict=True)))
        elif row:
            yield Fault(f"line {first}", "wrong_columns", f"{len(row)} columns; the first line has {len(header)}")


def _take_texts(stream: Stream, fmt: SourceFormat, faults: list[Fault], numbers: list[int]) -> Iterator[str]:
    """Yield lines; put aside the faults of those that are too long, and the number of the last line."""
    for number, line in read_lines(stream, fmt.max_record_bytes):
        numbers[:] = [number]
        if isinstance(line, Fault):
            faults.append(line)
        else:
            yield line
