"""Balances: what went into ingest and clean against what came out, by count and by id."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.checks.facts import hash_strings
from llm.data.schema import RAW_KINDS, iter_batches


def balance_sources(folders: Sequence[Path]) -> pd.DataFrame:
    """Return one row per source: what its ledger leaves unaccounted for, and where it and the files disagree."""
    rows = []
    for folder in folders:
        ledger = json.loads((folder / "ledger.json").read_text(encoding="utf8"))
        listed: Counter[str] = Counter()
        for batch in iter_batches(folder / "rejects.parquet", ["reason"]):
            listed.update(batch["reason"].to_pylist())
        told = Counter(ledger["reasons"])
        written = sum(pq.read_metadata(folder / f"{kind}.parquet").num_rows for kind in RAW_KINDS)
        rows.append(
            {
                "id": folder.name,
                "kept": ledger["kept"],
                "unaccounted": ledger["input"] - ledger["kept"] - ledger["rejected"],
                "unlisted": ((told - listed) + (listed - told)).total() + abs(ledger["rejected"] - told.total()),
                "unwritten": max(ledger["kept"] - written, 0),
                "reject_rate": ledger["rejected"] / max(ledger["input"], 1),
            }
        )
    return pd.DataFrame(rows)


def balance_kinds(raw: Sequence[Path], rejected: Path, records: Mapping[str, pa.Table]) -> pd.DataFrame:
    """Return one row that holds, for every kind, what is unaccounted for, the reject rate and the split sizes.

    Args: raw: folders.  rejected: the file of clean's rejects.  records: kind -> figures with `id_hash` and `split`.
    """
    row: dict[str, float | int | str] = {"id": "all sources"}
    for kind, table in records.items():
        num_inputs = sum(pq.read_metadata(folder / f"{kind}.parquet").num_rows for folder in raw)
        kept = table["id_hash"].to_numpy()
        dropped = [hash_strings(ids) for ids in _iter_rejected(rejected, kind)]
        row[f"{kind}_unaccounted"] = len(compare_ids(raw, kind, [kept, *dropped]))
        row[f"{kind}_reject_rate"] = sum(map(len, dropped)) / max(num_inputs, 1)
        for split in ("train", "val"):
            row[f"{kind}_{split}"] = pc.sum(pc.equal(table["split"], split)).as_py() or 0
    return pd.DataFrame([row])


def compare_ids(raw: Sequence[Path], kind: str, after: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return the hashed ids of one kind that went into clean and are not among those after, or the reverse."""
    before = [hash_strings(batch["id"]) for folder in raw for batch in iter_batches(folder / f"{kind}.parquet", ["id"])]
    ids = np.concatenate([np.zeros(0, np.uint64), *before, *after])
    signs = np.where(np.arange(len(ids)) < sum(map(len, before)), -1, 1).astype(np.int8)
    order = np.argsort(ids)
    ids, signs = ids[order], signs[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
    changes = np.add.reduceat(signs, starts, dtype=np.int64) if len(ids) else np.zeros(0, np.int64)
    return np.repeat(ids[starts], np.abs(changes))


def name_unaccounted(raw: Sequence[Path], clean: Path, rejected: Path, kind: str, limit: int) -> list[str]:
    """Return some ids of records of a kind that went into clean and did not come out, or the reverse."""
    kept = [batch["id"] for batch in iter_batches(clean / f"{kind}.parquet", ["id"])]
    dropped = list(_iter_rejected(rejected, kind))
    wanted = compare_ids(raw, kind, [hash_strings(ids) for ids in (*kept, *dropped)])
    found: dict[str, None] = {}
    before = (batch["id"] for folder in raw for batch in iter_batches(folder / f"{kind}.parquet", ["id"]))
    for ids in (*before, *kept, *dropped):
        places = np.flatnonzero(np.isin(hash_strings(ids), wanted))
        found.update((ids[int(place)].as_py() or "", None) for place in places)
    return list(found)[:limit]


def _iter_rejected(rejected: Path, kind: str) -> Iterator[pa.Array]:
    """Yield the ids of the rejects of a kind, batch by batch."""
    for batch in iter_batches(rejected, ["id", "kind"]):
        yield batch["id"].filter(pc.equal(batch["kind"], kind))
