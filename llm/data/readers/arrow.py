"""Arrow: an IPC file (also called Feather) or an IPC stream."""

from collections.abc import Iterator

import pyarrow as pa

from llm.data.containers import as_seekable
from llm.data.formats import SourceFormat
from llm.data.items import Fault, Item, Stream

SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
SLICE_ROWS = 64


def sniff(head: bytes, name: str) -> int:
    return 3 if head.startswith(b"ARROW1") else 2 * name.endswith(SUFFIXES)


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    if stream.peek(8).startswith(b"ARROW1"):
        file = pa.ipc.open_file(as_seekable(stream))
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    number = 0
    for batch in batches:
        yield from read_batch(batch, number)
        number += batch.num_rows


def read_batch(batch: pa.RecordBatch, before: int) -> Iterator[Item | Fault]:
    """Yield the rows of a batch, few at a time; a value that Python cannot hold rejects its row alone."""
    for start in range(0, batch.num_rows, SLICE_ROWS):
        part = batch.slice(start, SLICE_ROWS)
        for index, row in enumerate(_to_rows(part), before + start + 1):
            yield Item(f"row {index}", row) if isinstance(row, dict) else Fault(f"row {index}", "bad_value", row)


def _to_rows(part: pa.RecordBatch) -> list[dict[str, object] | str]:
    try:
        return list(part.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if part.num_rows == 1:
            return [f"{type(error).__name__}: {error}"]
        return [_to_rows(part.slice(i, 1))[0] for i in range(part.num_rows)]
