"""Parquet: row group by row group, so that a damaged one costs no other."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from llm.data.rows.formats import SourceFormat
from llm.data.sources.containers import as_seekable
from llm.data.sources.items import Fault, Item, Stream
from llm.data.sources.readers.arrow import read_batch

BATCH_ROWS = 256


def sniff(head: bytes, name: str) -> int:
    return 3 if head.startswith(b"PAR1") else 2 * name.endswith((".parquet", ".pq"))


def read(stream: Stream, name: str, fmt: SourceFormat) -> Iterator[Item | Fault]:
    file = pq.ParquetFile(as_seekable(stream), pre_buffer=False, buffer_size=1 << 20)
    first = 0  # row of the group
    for group in range(file.num_row_groups):
        number = first
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                yield from read_batch(batch, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            rest = first + file.metadata.row_group(group).num_rows
            yield Fault(f"row {number + 1}", "corrupt_parquet", f"to row {rest}, the end of its row group: {error}")
        first += file.metadata.row_group(group).num_rows
