"""Yield the rows of a parquet file in another order without holding them all: a bucketed external sort."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.schema import iter_batches

BUCKET_BYTES = 128_000_000  # of rows that are sorted in memory at a time


def iter_sorted(
    path: Path, rank_N: NDArray[np.int64], scratch: Path, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[pa.Table]:
    """Yield the rows of a parquet file by rank, in tables of about `bucket_bytes`.

    Args:    rank_N: for each row its place in the result, 0..M-1 each once, or -1 for a row to leave out.
             scratch: a folder for the buckets, which are removed as they are used up.
    """
    metadata = pq.read_metadata(path)
    size_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    num_kept = int((rank_N >= 0).sum())
    num_buckets = max(1, -(-size_bytes // bucket_bytes))
    if num_kept == 0:
        return
    width = -(-num_kept // num_buckets)
    schema = pq.read_schema(path).append(pa.field("rank", pa.int64()))
    names = [scratch / f"{path.stem}.bucket-{i}.parquet" for i in range(num_buckets)]
    writers = [pq.ParquetWriter(name, schema, compression="lz4") for name in names]
    start = 0
    for batch in iter_batches(path):
        rank = rank_N[start : start + batch.num_rows]
        start += batch.num_rows
        table = pa.Table.from_batches([batch]).append_column("rank", pa.array(rank))
        for i in np.unique(rank[rank >= 0] // width):
            writers[i].write_table(table.filter(pa.array((rank >= 0) & (rank // width == i))))
    for writer in writers:
        writer.close()
    for name in names:
        table = pq.read_table(name)
        name.unlink()
        yield table.sort_by("rank").drop_columns("rank")
