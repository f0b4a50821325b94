"""Tables about the corpus that expectations can be written on: one row per file, source, record, group, or corpus.

Every table has a column `id` that names a row in a message; the others are figures. Texts are read batch by batch
and turned into figures at once, so that a corpus larger than memory can be judged. Nothing is judged here.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.facts import MEASURES, hash_strings, measure_documents
from llm.data.profile import (
    COMPARED_WORDS,
    Counts,
    count_batch,
    list_bins,
    list_languages,
    sample_share,
    summarise,
)
from llm.data.residue import PATTERNS
from llm.data.schema import RAW_KINDS, Reject, iter_batches
from llm.progress import track

LEDGER_KEYS = "input, kept, reasons, rejected"
BATCH_ROWS = 1024
NUM_EXAMPLES = 3
SPLIT = pa.field("split", pa.string())


def compare_schemas(raw: Sequence[Path], clean: Path, rejects: Path) -> pd.DataFrame:
    """Return one row per file: the columns that it has, and those that it should have."""
    rows = []
    for folder in [*raw, clean]:
        for kind, record in RAW_KINDS.items():
            expected = record.schema.append(SPLIT) if folder == clean else record.schema
            rows.append((folder / f"{kind}.parquet", _describe(expected)))
    rows += [(folder / "rejects.parquet", _describe(Reject.schema)) for folder in [*raw, rejects]]
    rows += [(folder / "ledger.json", LEDGER_KEYS) for folder in raw]
    return pd.DataFrame(
        {
            "id": [f"{path.parent.name}/{path.name}" for path, _ in rows],
            "found": [_find_columns(path) for path, _ in rows],
            "expected": [expected for _, expected in rows],
        }
    )


def _find_columns(path: Path) -> str:
    """Return the columns of a parquet file, or the keys of a ledger."""
    if not path.exists():
        return "no file"
    if path.suffix == ".parquet":
        return _describe(pq.read_schema(path))
    return ", ".join(sorted(json.loads(path.read_text(encoding="utf8"))))


def _describe(schema: pa.Schema) -> str:
    """Return names and types; parquet calls a list's element `element`, Arrow `item`, and both are the same."""
    return ", ".join(f"{one.name} {one.type}".replace("<element: ", "<item: ") for one in schema)


def read_tables(raw: Sequence[Path], clean: Path, rejects: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables that expectations speak of, and the profile of the documents."""
    files = {kind: clean / f"{kind}.parquet" for kind in RAW_KINDS}
    documents, profile = read_documents(files["documents"])
    tables = {"documents": documents}
    for kind, measure in MEASURES.items():
        tables[kind] = pa.concat_tables(map(measure, _iter_batches(files[kind]))).to_pandas()
    tables["texts"] = pd.concat([tables[kind][["id", "has_blank", *PATTERNS]] for kind in MEASURES], ignore_index=True)
    tables["groups"] = count_splits(files.values())
    columns = ["id", "kind", "reason"]
    names = pq.read_table(rejects / "rejects.parquet", columns=columns, read_dictionary=columns[1:])
    tables["rejects"] = names.to_pandas()
    tables["ingest"] = balance_sources(raw)
    tables["ledger"] = balance_kinds(raw, clean, rejects, tables)
    return tables, profile


def read_documents(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return one row of figures per document, and the profile of all of them.

    `is_copy`: an earlier document has the same text, apart from case; `is_leak`: it is held out, and a training
    document has the same text.
    """
    counts, share = Counts(), sample_share(pq.read_metadata(path).num_rows)
    parts, lengths = [], []
    for batch in track(_iter_batches(path), "measuring documents"):
        languages, are_objects = list_languages(batch["meta"])
        sampled = hash_strings(batch["id"]) <= share * 2.0**64
        counts.add(count_batch(batch["text"], batch["source"], languages, sampled))
        parts.append(measure_documents(batch, are_objects))
        lengths.append(pc.fill_null(parts[-1]["num_chars"], 0).to_numpy())
    table = pa.concat_tables(parts)
    parts.clear()
    key = table["text_hash"].to_numpy()
    frame = table.drop_columns(["text_hash"]).to_pandas(split_blocks=True)
    held, copies = (frame["split"] == "val").to_numpy(dtype=bool), np.ones(len(key), dtype=np.int8)
    copies[np.unique(key, return_index=True)[1]] = 0
    frame["is_copy"] = copies * (frame["is_blank"] == 0)  # blank texts are alike, but found fault with elsewhere
    frame["is_leak"] = (held & np.isin(key, key[~held])).astype(np.int8)
    return frame, summarise(counts, np.concatenate(lengths).astype(np.int64))


def name_documents(path: Path, feature: str, name: str, reference: Mapping[str, Any]) -> list[str]:
    """Return the first ids of documents that belong to a bin of a feature of the profile (llm/data/profile.py)."""
    known = set(dict(reference.get("words", [])[:COMPARED_WORDS]))
    found: list[str] = []
    for batch in _iter_batches(path):
        languages, _ = list_languages(batch["meta"])
        rows = zip(
            batch["id"].to_pylist(), batch["text"].to_pylist(), batch["source"].to_pylist(), languages, strict=True
        )
        found += [
            one for one, text, source, code in rows if name in list_bins(feature, text or "", source, code, known)
        ]
        if len(found) >= NUM_EXAMPLES:
            break
    return found[:NUM_EXAMPLES]


def _iter_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a parquet file, and an empty one at the end: figures of no record have types too."""
    yield from iter_batches(path, num_rows=BATCH_ROWS)
    yield pa.RecordBatch.from_pylist([], schema=pq.read_schema(path))


def count_splits(files: Iterable[Path]) -> pd.DataFrame:
    """Return each group, of any kind, with the number of splits that it occurs in; `id` is the group."""
    seen = pa.schema([pa.field("group", pa.string()), SPLIT]).empty_table()
    for path in files:
        for batch in iter_batches(path, seen.column_names):
            pairs = pa.Table.from_batches([batch]).select(seen.column_names)
            seen = pa.concat_tables([seen, pairs.group_by(seen.column_names).aggregate([])])
        seen = seen.group_by(seen.column_names).aggregate([])
    counts = seen.group_by("group", use_threads=False).aggregate([("split", "count")]).sort_by("group")
    return counts.rename_columns({"group": "id", "split_count": "num_splits"}).to_pandas()


def balance_sources(raw: Sequence[Path]) -> pd.DataFrame:
    """Return one row per source: what its ledger leaves unaccounted for, and where it and the files disagree."""
    rows = []
    for folder in raw:
        ledger = json.loads((folder / "ledger.json").read_text(encoding="utf8"))
        listed = Counter(pq.read_table(folder / "rejects.parquet", columns=["reason"])["reason"].to_pylist())
        written = sum(pq.read_metadata(folder / f"{kind}.parquet").num_rows for kind in RAW_KINDS)
        told = Counter(ledger["reasons"])
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


def balance_kinds(raw: Sequence[Path], clean: Path, rejects: Path, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row that holds, for every kind, what is unaccounted for, the reject rate and the split sizes."""
    row: dict[str, float | int | str] = {"id": "all sources"}
    for kind in RAW_KINDS:
        inputs = sum(pq.read_metadata(folder / f"{kind}.parquet").num_rows for folder in raw)
        row[f"{kind}_unaccounted"] = len(compare_ids(raw, clean, rejects, kind))
        row[f"{kind}_reject_rate"] = int((tables["rejects"]["kind"] == kind).sum()) / max(inputs, 1)
        for split in ("train", "val"):
            row[f"{kind}_{split}"] = int((tables[kind]["split"] == split).sum())
    return pd.DataFrame([row])


def compare_ids(raw: Sequence[Path], clean: Path, rejects: Path, kind: str) -> NDArray[np.uint64]:
    """Return the hashed ids of one kind that went into clean and did not come out, or the reverse, each time."""
    before = [hash_strings(ids) for ids in _iter_ids(raw, kind)]
    after = [hash_strings(ids) for ids in _iter_ids([clean, rejects], kind)]
    ids = np.concatenate([np.zeros(0, np.uint64), *before, *after])
    signs = np.where(np.arange(len(ids)) < sum(map(len, before)), -1, 1).astype(np.int8)
    order = np.argsort(ids)
    ids, signs = ids[order], signs[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
    changes = np.add.reduceat(signs, starts, dtype=np.int64) if len(ids) else np.zeros(0, np.int64)
    return np.repeat(ids[starts], np.abs(changes))


def name_unaccounted(raw: Sequence[Path], clean: Path, rejects: Path, kind: str) -> list[str]:
    """Return some ids of records of a kind that went into clean and did not come out, or the reverse."""
    wanted = compare_ids(raw, clean, rejects, kind)
    found: dict[str, None] = {}
    for ids in _iter_ids([*raw, clean, rejects], kind):
        found.update((ids[int(place)].as_py(), None) for place in np.flatnonzero(np.isin(hash_strings(ids), wanted)))
    return list(found)[:NUM_EXAMPLES]


def _iter_ids(folders: Sequence[Path], kind: str) -> Iterator[pa.Array]:
    """Yield the ids of one kind of every folder, batch by batch; of the rejects, those of this kind."""
    for folder in folders:
        if (folder / f"{kind}.parquet").exists():
            for batch in iter_batches(folder / f"{kind}.parquet", ["id"]):
                yield batch["id"]
        else:
            for batch in iter_batches(folder / "rejects.parquet", ["id", "kind"]):
                yield batch["id"].filter(pc.equal(batch["kind"], kind))
