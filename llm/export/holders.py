"""Which releases hold a record: `python -m llm.export.holders ID`, or a text file, or a quoted sentence.

A text is found by its words, so that case, punctuation and line ends do not matter: 16 words in a row, or all of a
shorter one. What `clean` has replaced (addresses, names of secrets) is no word of it any more.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.config import ConfigError, require
from llm.data.dedup.decontaminate import HitLedger, find_hits
from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex, EvaluationText, build_index
from llm.data.dedup.ngrams import hash_words
from llm.data.dedup.removal import is_id
from llm.export.snapshots import Snapshot, find_cache, find_files, list_snapshots

MIN_WORDS = 5
SHOWN = 10
BATCH_ROWS = 4096
KINDS = ("documents", "conversations", "preferences", "questions")
_SEARCH = DecontaminateParams(
    ngram_words=8,
    min_item_words=MIN_WORDS,
    min_matched_words=16,
    min_share=0,
    max_items=1_000_000,
    max_texts=1_000_000_000,
    min_content_words=0,
)


@dataclass(frozen=True, slots=True)
class Holding:
    """A record that was found: of which kind and source, and on which side of the split; words in common, 0 by id."""

    kind: str
    id: str
    source: str
    split: str
    matched_words: int = 0

    def __str__(self) -> str:
        words = f", {self.matched_words} words in common" if self.matched_words else ""
        return f"{self.split}: {self.id} ({self.kind} of {self.source}{words})"


def find_holdings(files: dict[str, Path], query: str) -> list[Holding]:
    """Return the records of a data/clean that have an id, or hold a text's words, most words first."""
    if is_id(query):
        return [one for kind in KINDS for one in _find_id(kind, files.get(f"{kind}.parquet"), query.strip().lower())]
    index = index_text(query)
    found = [one for kind in KINDS for one in _find_words(kind, files.get(f"{kind}.parquet"), index)]
    return sorted(found, key=lambda one: (-one.matched_words, one.kind, one.id))


def index_text(text: str) -> EvaluationIndex:
    """Return the index of a text that is looked for, or raise ConfigError if it is too short."""
    num_words = len(hash_words(pa.array([text]))[0])
    require(num_words >= MIN_WORDS, f"{text[:60]!r} has {num_words} words; give an id, or {MIN_WORDS} words or more")
    return build_index([EvaluationText("", "", text)], _SEARCH)


def _find_id(kind: str, path: Path | None, name: str) -> Iterator[Holding]:
    if path is not None:
        table = pq.read_table(path, columns=["id", "source", "split"], filters=pc.field("id") == name)
        for row in table.to_pylist():
            yield Holding(kind, row["id"], row["source"], row["split"])


def _find_words(kind: str, path: Path | None, index: EvaluationIndex) -> Iterator[Holding]:
    if path is None:
        return
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        if kind == "documents":
            texts = batch.column("text")
        else:
            texts = pa.array(["\n".join(_strings(row)) for row in batch.to_pylist()], pa.string())
        ledger = HitLedger(index, _SEARCH)
        ledger.add(find_hits(texts, index), 0)
        for place, match in ledger.find_matches(np.ones(len(texts), dtype=np.bool_)).items():
            name, source, split = (batch.column(column)[place].as_py() for column in ("id", "source", "split"))
            yield Holding(kind, name, source, split, match.matched_words)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string of a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def describe_holders(repository: Path, query: str) -> Iterator[str]:
    """Yield lines that say of each release whether it holds a record, newest first, and what cannot be known."""
    snapshots = list_snapshots(repository)
    require(
        bool(snapshots), f"{repository}: no models/release here, and no commit has a dvc.lock: nothing was released"
    )
    if not is_id(query):
        index_text(query)
    answers: dict[str, list[Holding] | None] = {}
    for snapshot in snapshots:
        if snapshot.digest not in answers:
            files = find_files(repository, snapshot.digest)
            answers[snapshot.digest] = None if files is None else find_holdings(files, query)
        yield from _describe(snapshot, answers[snapshot.digest], find_cache(repository))


def _describe(snapshot: Snapshot, holdings: list[Holding] | None, cache: Path) -> Iterable[str]:
    where = f"commit {snapshot.commit[:12]}, {snapshot.date}" if snapshot.commit else "models/release, not committed"
    name = f"release {snapshot.release} ({where})" if snapshot.release else f"no release, {where}"
    if holdings is None:
        return [f"{name}: unknown; its data/clean ({snapshot.digest}) is no longer in {cache} or the workspace"]
    if not holdings:
        return [f"{name}: not held"]
    lines = [f"{name}: held, {len(holdings)} record(s)", *(f"  {one}" for one in holdings[:SHOWN])]
    return [*lines, f"  and {len(holdings) - SHOWN} more"] if len(holdings) > SHOWN else lines


def main(arguments: list[str] | None = None) -> int:
    """Print which releases hold a record."""
    parser = argparse.ArgumentParser(prog="python -m llm.export.holders", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("query", help="the record's id (32 hexadecimal digits), a text file, or a sentence in quotes")
    parser.add_argument("--repository", type=Path, default=Path(), help="the project's folder; default: this one")
    options = parser.parse_args(arguments)
    try:
        for line in describe_holders(options.repository, read_query(options.query)):
            print(line)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read_query(query: str) -> str:
    """Return an id or a sentence as it is, and the text of a file."""
    if not is_id(query) and len(query) < 1024 and Path(query).is_file():
        return Path(query).read_text(encoding="utf-8-sig", errors="replace")
    return query


if __name__ == "__main__":
    sys.exit(main())
