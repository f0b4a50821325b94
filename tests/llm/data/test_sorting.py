"""The external sort, and the ordered map over processes: neither the buckets nor the processes change a row."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.data.parallel import map_ordered
from llm.data.sorting import iter_sorted


@pytest.mark.parametrize("bucket_bytes", [1 << 30, 40_000, 3_000])
def test_rows_come_by_rank_and_dropped_ones_do_not(tmp_path: Path, bucket_bytes: int) -> None:
    generator = np.random.default_rng(3)
    num_rows = 5000
    texts = [f"{i} " + "x" * int(generator.integers(0, 40)) for i in range(num_rows)]
    talks = [[{"role": "user", "content": text}] for text in texts]
    pq.write_table(pa.table({"text": texts, "messages": talks}), tmp_path / "rows.parquet", row_group_size=700)
    rank = np.full(num_rows, -1, np.int64)
    kept = generator.permutation(num_rows)[:3000]
    rank[kept] = np.arange(3000)
    tables = list(iter_sorted(tmp_path / "rows.parquet", rank, tmp_path, bucket_bytes))
    assert (len(tables) > 1) == (bucket_bytes < 1 << 30)
    rows = pa.concat_tables(tables).to_pylist()
    assert rows == [{"text": texts[i], "messages": talks[i]} for i in kept]
    assert [one.name for one in tmp_path.iterdir()] == ["rows.parquet"]


def test_nothing_kept_yields_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "rows.parquet")
    assert list(iter_sorted(tmp_path / "rows.parquet", np.full(2, -1, np.int64), tmp_path)) == []


def _square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def test_the_number_of_processes_changes_the_time_only() -> None:
    one = list(map_ordered(_square, range(50), 1))
    two = list(map_ordered(_square, range(50), 2))
    assert [value for value, _ in one] == [value for value, _ in two] == [i * i for i in range(50)]
    assert {pid for _, pid in one} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in two}


def test_items_are_read_only_a_little_ahead() -> None:
    taken = 0

    def items() -> "object":
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    results = map_ordered(_square, items(), 2)  # type: ignore[arg-type]
    next(results)
    assert taken <= 6
    results.close()  # type: ignore[attr-defined]
