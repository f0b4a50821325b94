"""Arrow: an IPC file (also called Feather) or an IPC stream."""

import io
from collections.abc import Iterator

import pyarrow as pa

from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.containers import MAX_BUFFER_BYTES, as_seekable
from llm.data.sources.items import Fault, Item, Stream

SUFFIXES = (".arrow", ".arrows", ".feather", ".ipc")
SLICE_ROWS = 64


def sniff(head: bytes, name: str) -> int:
    return 3 if head.startswith(b"ARROW1") else 2 * name.endswith(SUFFIXES)


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    if stream.peek(8).startswith(b"ARROW1"):
        file = pa.ipc.open_file(as_seekable(stream))
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(pa.PythonFile(_Messages(stream), "r")))
    number = 0
    for batch in batches:
        yield from read_batch(batch, number)
        number += batch.num_rows


class _Messages(io.RawIOBase):
    """A stream of messages; a damaged length would ask for more memory than there is."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > MAX_BUFFER_BYTES:
            raise BadRecord("too_large", f"a message of {size} bytes; at most {MAX_BUFFER_BYTES}")
        return self.stream.read(size)


def read_batch(batch: pa.RecordBatch, before: int) -> Iterator[Item | Fault]:
    """Yield the rows of a batch, few at a time; a value that is damaged, or too great for Python, rejects its row."""
    for start in range(0, batch.num_rows, SLICE_ROWS):
        part = batch.slice(start, SLICE_ROWS)
        for index, row in enumerate(_to_rows(part), before + start + 1):
            yield Item(f"row {index}", row) if isinstance(row, dict) else Fault(f"row {index}", "bad_value", row)


def _to_rows(part: pa.RecordBatch) -> list[dict[str, object] | str]:
    try:
        part.validate(full=True)  # Arrow trusts a file's offsets: a damaged one would end the process
        return list(part.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if part.num_rows == 1:
            return [f"{type(error).__name__}: {error}"]
        return [_to_rows(part.slice(i, 1))[0] for i in range(part.num_rows)]
