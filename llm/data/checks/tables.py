"""Tables about the corpus that expectations can be written on: one row per file, source, record, group, or corpus.

Small ones name their rows in the column `id`, large ones number them in the column `row`. The other columns are
figures: texts are read batch by batch and turned into figures at once, so that a corpus larger than memory can be
judged. Ids, groups and texts are compared by 64 bits of hash. Nothing is judged here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.checks.balance import balance_kinds, balance_sources
from llm.data.checks.expectations import NUM_EXAMPLES, Namer
from llm.data.checks.facts import MEASURES, hash_strings, measure_documents
from llm.data.checks.profile import (
    COMPARED_WORDS,
    Counts,
    count_batch,
    list_bins,
    list_languages,
    sample_share,
    summarise,
)
from llm.data.pii.residue import PATTERNS
from llm.data.schema import RAW_KINDS, Reject, iter_batches
from llm.progress import track

LEDGER_KEYS = "input, kept, reasons, rejected"
BATCH_ROWS = 1024
SPLIT = pa.field("split", pa.string())


@dataclass(frozen=True)
class Folders:
    """Where the corpus lies: the sources that clean reads, those that evaluation alone reads, and what clean wrote."""

    raw: Sequence[Path]
    evaluation: Sequence[Path]
    clean: Path
    rejects: Path


@dataclass
class Tables:
    """The tables by name, how the rows of the large ones are called, and the profile of the documents."""

    frames: dict[str, pd.DataFrame]
    namers: dict[str, Namer]
    profile: dict[str, Any]


def compare_schemas(folders: Folders) -> pd.DataFrame:
    """Return one row per file: the columns that it has, and those that it should have."""
    rows, raw = [], [*folders.raw, *folders.evaluation]
    for folder in [*raw, folders.clean]:
        for kind, record in RAW_KINDS.items():
            expected = record.schema.append(SPLIT) if folder == folders.clean else record.schema
            rows.append((folder / f"{kind}.parquet", _describe(expected)))
    rows += [(folder / "rejects.parquet", _describe(Reject.schema)) for folder in [*raw, folders.rejects]]
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


def read_tables(folders: Folders) -> Tables:
    """Return the tables that expectations speak of, and the profile of the documents."""
    files = {kind: folders.clean / f"{kind}.parquet" for kind in RAW_KINDS}
    rejected = folders.rejects / "rejects.parquet"
    documents, profile = read_documents(files["documents"])
    records = {"documents": documents}
    del documents  # each table is given up when its frame is made
    for kind, measure in MEASURES.items():
        records[kind] = pa.concat_tables(map(measure, _iter_batches(files[kind])))
    names = pq.read_table(rejected, columns=["kind", "reason"], read_dictionary=["kind", "reason"], pre_buffer=False)
    frames = {"groups": count_splits(records), "rejects": names.to_pandas()}
    frames["ingest"] = balance_sources([*folders.raw, *folders.evaluation])
    frames["ledger"] = balance_kinds(folders.raw, rejected, records)
    texts = [records[kind].select(["has_blank", *PATTERNS]).to_pandas() for kind in MEASURES]
    frames["texts"] = pd.concat(texts, ignore_index=True)
    for kind in RAW_KINDS:
        frames[kind] = to_frame(records.pop(kind))
    for name in (*RAW_KINDS, "texts", "rejects"):
        frames[name]["row"] = np.arange(len(frames[name]))
    namers = {kind: _name_rows([path]) for kind, path in files.items()}
    namers |= {"texts": _name_rows([files[kind] for kind in MEASURES]), "rejects": _name_rows([rejected])}
    namers["groups"] = lambda hashes: name_hashes(list(files.values()), "group", np.array(hashes, np.uint64))
    return Tables(frames, namers, profile)


def read_documents(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return one row of figures per document, and the profile of all of them.

    `is_copy`: an earlier document has the same text, apart from case; `is_leak`: it is held out, and a training
    document has the same text.
    """
    counts, share = Counts(), sample_share(pq.read_metadata(path).num_rows)
    parts = []
    for batch in track(_iter_batches(path), "measuring documents"):
        languages, are_objects = list_languages(batch["meta"])
        parts.append(measure_documents(batch, are_objects))
        sampled = parts[-1]["id_hash"].to_numpy() <= share * 2.0**64
        counts.add(count_batch(batch["text"], batch["source"], languages, sampled))
    table = pa.concat_tables(parts)
    parts.clear()
    key, held = table["text_hash"].to_numpy(), pc.equal(table["split"], "val").to_numpy()
    copies = np.ones(len(key), dtype=np.int8)
    copies[np.unique(key, return_index=True)[1]] = 0
    copies[table["is_blank"].to_numpy() == 1] = 0  # blank texts are alike, but found fault with elsewhere
    leaks = (held & np.isin(key, key[~held])).astype(np.int8)
    lengths = pc.fill_null(table["num_chars"], 0).to_numpy()
    table = table.drop_columns(["text_hash"]).append_column("is_copy", pa.array(copies))
    return table.append_column("is_leak", pa.array(leaks)), summarise(counts, lengths)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a kind's figures with `is_repeated`, whether another record has the same id, instead of the hashes."""
    _, place, counts = np.unique(table["id_hash"].to_numpy(), return_inverse=True, return_counts=True)
    frame = table.drop_columns(["id_hash", "group_hash"]).to_pandas(split_blocks=True)
    frame["is_repeated"] = (counts > 1)[place].astype(np.int8)
    return frame


def count_splits(records: Mapping[str, pa.Table]) -> pd.DataFrame:
    """Return each group, of any kind, by its hash, with the number of splits that it occurs in."""
    sides = ("train", "val")
    groups = np.concatenate([table["group_hash"].to_numpy() for table in records.values()])
    splits = [pc.index_in(table["split"], pa.array(sides)).fill_null(len(sides)) for table in records.values()]
    hashes, place = np.unique(groups, return_inverse=True)
    seen = np.zeros((len(hashes), len(sides) + 1), dtype=np.int8)
    seen[place, np.concatenate([one.to_numpy() for one in splits])] = 1
    return pd.DataFrame({"row": hashes, "num_splits": seen.sum(axis=1, dtype=np.int8)})


def _name_rows(files: Sequence[Path]) -> Namer:
    """Return the function that gives the ids of rows, which are numbered through all files."""

    def name(rows: Sequence[int]) -> list[str]:
        found, start = dict.fromkeys(rows, ""), 0
        for path in files:
            for batch in iter_batches(path, ["id"]):
                inside = [row for row in found if start <= row < start + len(batch)]
                found.update((row, batch["id"][row - start].as_py() or "") for row in inside)
                start += len(batch)
        return list(found.values())

    return name


def name_hashes(files: Sequence[Path], column: str, wanted: NDArray[np.uint64]) -> list[str]:
    """Return the strings of a column whose hashes are wanted, in order of appearance."""
    found: dict[str, None] = {}
    for path in files:
        for batch in iter_batches(path, [column]):
            places = np.flatnonzero(np.isin(hash_strings(batch[column]), wanted))
            found.update((batch[column][int(place)].as_py() or "", None) for place in places)
    return list(found)


def name_documents(path: Path, feature: str, name: str, reference: Mapping[str, Any]) -> list[str]:
    """Return the first ids of documents in a bin of a feature of the profile (llm/data/checks/profile.py)."""
    known = set(dict(reference.get("words", [])[:COMPARED_WORDS]))
    found: list[str] = []
    for batch in _iter_batches(path):
        languages, _ = list_languages(batch["meta"])
        texts = pc.fill_null(batch["text"], "").to_pylist()
        rows = zip(batch["id"].to_pylist(), texts, batch["source"].to_pylist(), languages, strict=True)
        found += [one for one, text, source, code in rows if name in list_bins(feature, text, source, code, known)]
        if len(found) >= NUM_EXAMPLES:
            break
    return found[:NUM_EXAMPLES]


def _iter_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a parquet file, and an empty one at the end: figures of no record have types too."""
    yield from iter_batches(path, num_rows=BATCH_ROWS)
    yield pa.RecordBatch.from_pylist([], schema=pq.read_schema(path))
