"""The whole of one kind of record: what passed the rules, on disk; only what decides is held in memory.

Two passes: `collect` writes what the rules let through and keeps per record its id, group, order and keys;
duplicates are dropped by those; `emit` writes what is left in its final order. So memory grows by about 300
bytes per record, not with the text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm.data.cleaner import KEY_BYTES, Rules, clean_batch, list_texts
from llm.data.dedup.decontaminate import HitLedger, describe_match
from llm.data.dedup.duplicates import Duplicates, find_duplicates, find_first
from llm.data.dedup.signatures import SignatureStore
from llm.data.parallel import map_ordered
from llm.data.schema import RAW_KINDS, Reject, hash_id, iter_batches, to_json
from llm.data.sorting import iter_sorted
from llm.data.split import reading_key
from llm.progress import track

BATCH_ROWS = 1024


@dataclass
class Ledger:
    """Counts what came in, and holds the rejects and the number of placeholders."""

    rejects: list[Reject] = field(default_factory=list)
    inputs: Counter[str] = field(default_factory=Counter)
    placeholders: Counter[str] = field(default_factory=Counter)


class Corpus:
    """The records of one kind that passed the rules."""

    def __init__(self, kind: str, scratch: Path, rules: Rules):
        self.kind, self.scratch, self.rules = kind, scratch, rules
        self.path = scratch / f"{kind}.parquet"
        self.schema = RAW_KINDS[kind].schema
        self.signatures = SignatureStore(scratch / "signatures", rules.near) if kind == "documents" else None
        self.hits = HitLedger(rules.evaluation, rules.decontaminate) if rules.evaluation is not None else None
        self.ids = self.groups = self.sources = self.places = pa.chunked_array([], pa.string())
        self.keep_N = np.zeros(0, bool)

    def collect(self, files: Iterable[Path], processes: int, ledger: Ledger) -> None:
        """Clean the records of raw files, and drop exact and near duplicates."""
        ids: list[pa.Array] = []
        groups: list[pa.Array] = []
        sources: list[pa.Array] = []
        places: list[pa.Array] = []
        keys: list[NDArray[np.uint8]] = []
        raw = (batch for file in files for batch in iter_batches(file, num_rows=BATCH_ROWS))
        batches = track(_count(raw, self.kind, ledger), f"cleaning {self.kind}")
        num_kept = 0
        with pq.ParquetWriter(self.path, self.schema, compression="lz4") as writer:
            for cleaned in map_ordered(partial(clean_batch, self.kind, rules=self.rules), batches, processes):
                writer.write_table(cleaned.kept)
                for column, name in ((ids, "id"), (groups, "group"), (sources, "source")):
                    column += cleaned.kept[name].chunks
                places += reading_keys(cleaned.kept).chunks if self.kind == "documents" else cleaned.kept["id"].chunks
                keys.append(cleaned.keys_NK)
                if self.signatures is not None and cleaned.signatures_NP is not None:
                    self.signatures.append(cleaned.signatures_NP)
                if self.hits is not None and cleaned.hits is not None:
                    self.hits.add(cleaned.hits, num_kept)
                num_kept += len(cleaned.kept)
                ledger.rejects += cleaned.rejects
                ledger.placeholders += cleaned.placeholders
        self.ids, self.groups, self.sources = (pa.chunked_array(one, pa.string()) for one in (ids, groups, sources))
        self.places = pa.chunked_array(places, pa.string())
        self.keep_N = np.ones(len(self.ids), bool)
        self._drop_duplicates(np.concatenate([np.zeros((0, KEY_BYTES), np.uint8), *keys]), ledger)
        self._drop_excluded(ledger)
        self._drop_contaminated(ledger)

    def _drop_duplicates(self, keys_NK: NDArray[np.uint8], ledger: Ledger) -> None:
        """Keep the first of each kind, in an order that neither names of sources nor lengths decide."""
        names, excluded = self.ids.to_pylist(), self.rules.excluded
        documents = self.kind == "documents"
        # Excluded records come first: their copies are dropped as such, and do not take their place.
        ranked = [(name not in excluded, hash_id("order", name) if documents else name) for name in names]
        order = np.array(sorted(range(len(names)), key=ranked.__getitem__), np.int64)
        if self.signatures is None:
            first = find_first(keys_NK, order)
            kept_by = np.where(first == np.arange(len(first)), -1, first)
            found = Duplicates(kept_by, np.ones(len(first), np.float32), kept_by >= 0)
        else:
            self.signatures.close()
            found = find_duplicates(keys_NK, self.signatures, order)
        for i in np.nonzero(found.kept_by >= 0)[0].tolist():
            detail = to_json({"kept": names[found.kept_by[i]], "similarity": round(float(found.similarity[i]), 3)})
            self.reject(i, "exact_duplicate" if found.exact[i] else "near_duplicate", detail, ledger)

    def _drop_excluded(self, ledger: Ledger) -> None:
        excluded = pa.array(sorted(self.rules.excluded), pa.string())
        named = pc.or_(pc.is_in(self.ids, excluded), pc.is_in(self.groups, excluded)).to_numpy()
        for i in np.nonzero(named & self.keep_N)[0].tolist():
            self.reject(i, "excluded", "clean.exclude_ids names it, or what it was made from", ledger)

    def _drop_contaminated(self, ledger: Ledger) -> None:
        """Drop what holds a passage of an evaluation set; the reject quotes it."""
        index, params = self.rules.evaluation, self.rules.decontaminate
        if self.hits is None or index is None:
            return
        matches = self.hits.find_matches(self.keep_N)
        places, start = np.nonzero(self.keep_N)[0], 0
        for table in self.read():
            here = places[start : start + len(table)]
            start += len(table)
            if matches.keys() & set(here.tolist()):
                texts = list_texts(self.kind, table)
                for row, i in enumerate(here.tolist()):
                    if i in matches:
                        found = describe_match(matches[i], texts[row].as_py(), index, params)
                        self.reject(i, "contaminated", to_json(found._asdict()), ledger)

    def reject(self, i: int, reason: str, detail: str, ledger: Ledger) -> None:
        """Drop the record in place `i` of the order of arrival."""
        self.keep_N[i] = False
        ledger.rejects.append(Reject(self.ids[i].as_py(), self.sources[i].as_py(), self.kind, reason, detail))

    def kept_groups(self) -> list[str]:
        """Return the group of each record that is kept."""
        return list(self.groups.filter(pa.array(self.keep_N)).to_pylist())

    def read(self) -> Iterator[pa.Table]:
        """Yield what is kept, in the order of arrival."""
        start = 0
        for batch in iter_batches(self.path, num_rows=BATCH_ROWS):
            keep = self.keep_N[start : start + batch.num_rows]
            start += batch.num_rows
            yield pa.table(batch.filter(pa.array(keep)))

    def read_sorted(self) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield (place of each row in the order of arrival, rows) of what is kept, in the final order."""
        kept = np.nonzero(self.keep_N)[0]
        order = kept[pc.sort_indices(self.places.take(pa.array(kept))).to_numpy()]
        rank_N = np.full(len(self.keep_N), -1, np.int64)
        rank_N[order] = np.arange(len(order))
        start = 0
        for table in iter_sorted(self.path, rank_N, self.scratch):
            yield order[start : start + len(table)], table
            start += len(table)


def reading_keys(documents: pa.Table) -> pa.ChunkedArray:
    """Return the sort key of each document."""
    columns = (documents[name].to_pylist() for name in ("group", "meta", "id"))
    return pa.chunked_array([[reading_key(*one) for one in zip(*columns, strict=True)]], pa.string())


def _count(batches: Iterable[pa.RecordBatch], kind: str, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        ledger.inputs[kind] += batch.num_rows
        yield batch
