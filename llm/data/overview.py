"""What a look at the data shows: what went in, what was dropped and why, how it is distributed, and samples.

Read from the files that ingest and clean wrote, batch by batch. Samples are chosen by the hash of the id. Where clean
has not run there is a view of what ingest made.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.data.checks.facts import hash_strings
from llm.data.checks.profile import UNDETERMINED, list_languages, name_bits
from llm.data.schema import INPUT, RAW_KINDS, iter_batches, iter_rows

NUM_SAMPLES, NUM_CLUSTERS, NUM_MEMBERS, NUM_EXAMPLES = 10, 5, 5, 3
MAX_CHARS = 600  # of a text that is shown
WORD_CHARS = 12  # mean word lengths from here on share a bin
SAMPLED = ("documents", "conversations", "preferences")  # questions are made from these
DUPLICATES = ("exact_duplicate", "near_duplicate")
Row = dict[str, Any]


@dataclass
class Overview:
    """What the page shows; counts are of records, but for `languages`, which are of characters."""

    sources: list[Row] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Row]] = field(default_factory=dict)
    inputs: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    lengths: dict[str, Counter[str]] = field(default_factory=dict)
    words: dict[str, Counter[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    clusters: list[Row] = field(default_factory=list)
    kept_samples: list[Row] = field(default_factory=list)
    rejected_samples: list[Row] = field(default_factory=list)


def look(raw: Sequence[Path], clean: Path | None, rejects: Path | None) -> Overview:
    """Return what the folders of the sources, and those that clean wrote, hold."""
    view = Overview()
    for folder in raw:
        view.sources.append(count_source(folder))
        add_unreadable(view, folder)
    view.inputs = Counter({kind: sum(one["records"][kind] for one in view.sources) for kind in RAW_KINDS})
    view.lengths["in"], view.words["in"], _ = measure_texts([folder / "documents.parquet" for folder in raw])
    rejected_files = [folder / "rejects.parquet" for folder in raw]
    if clean and rejects:
        view.kept = Counter({kind: pq.read_metadata(clean / f"{kind}.parquet").num_rows for kind in RAW_KINDS})
        view.dropped = count_reasons(rejects / "rejects.parquet")
        view.lengths["kept"], view.words["kept"], view.languages = measure_texts([clean / "documents.parquet"])
        view.clusters = list_clusters(rejects / "rejects.parquet")
        rejected_files.append(rejects / "rejects.parquet")
    kept_files = {kind: [folder / f"{kind}.parquet" for folder in ([clean] if clean else raw)] for kind in RAW_KINDS}
    view.kept_samples = choose(((kind, file) for kind in SAMPLED for file in kept_files[kind]), {})
    view.rejected_samples = choose((("", file) for file in rejected_files), {"reason": "", "detail": ""})
    add_texts(view.kept_samples, kept_files)
    members = [one for cluster in view.clusters for one in (cluster, *cluster["members"])]
    add_texts(
        [*view.rejected_samples, *members], {kind: [one / f"{kind}.parquet" for one in raw] for kind in RAW_KINDS}
    )
    return view


def count_source(folder: Path) -> Row:
    """Return a source's ledger, its records of each kind, and the bytes of its documents."""
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf8"))
    records = {kind: pq.read_metadata(folder / f"{kind}.parquet").num_rows for kind in RAW_KINDS}
    sizes = (
        pc.sum(pc.binary_length(one["text"])).as_py() for one in iter_batches(folder / "documents.parquet", ["text"])
    )
    return {"name": folder.name, **ledger, "records": records, "size_bytes": sum(size or 0 for size in sizes)}


def add_unreadable(view: Overview, folder: Path) -> None:
    """Count the input records of a source that are no records, with examples of each reason."""
    for row in iter_rows(folder / "rejects.parquet", ["reason", "detail"]):
        view.unreadable[row["reason"]] += 1
        shown = view.examples.setdefault(row["reason"], [])
        if len(shown) < NUM_EXAMPLES:
            shown.append(json.loads(row["detail"]))


def count_reasons(rejected: Path) -> dict[str, Counter[str]]:
    """Return kind -> reason -> how many records clean dropped."""
    counts: dict[str, Counter[str]] = {}
    for batch in iter_batches(rejected, ["kind", "reason"]):
        pairs = pa.Table.from_batches([batch]).group_by(["kind", "reason"]).aggregate([([], "count_all")])
        for row in pairs.to_pylist():
            counts.setdefault(row["kind"], Counter())[row["reason"]] += row["count_all"]
    return counts


def measure_texts(files: Sequence[Path]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return documents by bin of length and by mean characters of a word, and characters by language."""
    lengths: Counter[str] = Counter()
    words: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    for file in files:
        for batch in iter_batches(file, ["text", "meta"]):
            codes, _ = list_languages(batch["meta"])
            for text, code in zip(pc.fill_null(batch["text"], "").to_pylist(), codes, strict=True):
                lengths[name_bits(max(len(text).bit_length(), 5))] += 1
                runs = text.split()
                mean = round(sum(map(len, runs)) / len(runs)) if runs else 0
                words[str(mean) if mean < WORD_CHARS else f"{WORD_CHARS}+"] += 1
                languages[code or UNDETERMINED] += len(text)
    return lengths, words, languages


def list_clusters(rejected: Path) -> list[Row]:
    """Return the records of which most copies were dropped, each with some copies and their similarity."""
    columns = ["id", "kind", "reason", "detail"]
    sizes: Counter[tuple[str, str]] = Counter()
    for row in iter_rows(rejected, columns):
        if row["reason"] in DUPLICATES:
            sizes[row["kind"], json.loads(row["detail"])["kept"]] += 1
    largest = heapq.nsmallest(NUM_CLUSTERS, sizes, key=lambda key: (-sizes[key], key))
    clusters = {key: {"kind": key[0], "id": key[1], "size": sizes[key], "members": []} for key in largest}
    for row in iter_rows(rejected, columns):
        if row["reason"] in DUPLICATES:
            detail = json.loads(row["detail"])
            members: Any = clusters.get((row["kind"], detail["kept"]), {}).get("members")
            if members is not None and len(members) < NUM_MEMBERS:
                similarity = detail.get("similarity", 1.0)
                members.append(
                    {"kind": row["kind"], "id": row["id"], "reason": row["reason"], "similarity": similarity}
                )
    return list(clusters.values())


def choose(files: Iterator[tuple[str, Path]], further: Mapping[str, str]) -> list[Row]:
    """Return the records of (kind, file) whose hashed ids are smallest; of kind "" are those that the file names."""
    best: list[tuple[int, str, Row]] = []
    for kind, file in files:
        columns = ["id", "source", *further, *([] if kind else ["kind"])]
        for batch in iter_batches(file, columns):
            if not kind:
                batch = batch.filter(pc.is_in(batch["kind"], pa.array([*SAMPLED, INPUT])))
            hashes = hash_strings(batch["id"])
            nearest = np.argsort(hashes)[:NUM_SAMPLES]
            rows = batch.take(pa.array(nearest)).to_pylist()
            found = [(int(hashes[i]), row["id"], {"kind": kind, **row}) for i, row in zip(nearest, rows, strict=True)]
            best = heapq.nsmallest(NUM_SAMPLES, [*best, *found], key=lambda one: one[:2])
    return [row for _, _, row in best]


def add_texts(rows: Sequence[Row], files: Mapping[str, Sequence[Path]]) -> None:
    """Give each row its record's `text`, shortened, and its number of characters; "" where there is none."""
    for row in rows:
        row |= {"text": "", "num_chars": 0}
    for kind, paths in files.items():
        wanted = pa.array(sorted({row["id"] for row in rows if row["kind"] == kind}), pa.string())
        for path in paths if len(wanted) else []:
            for batch in iter_batches(path):
                for record in batch.filter(pc.is_in(batch["id"], wanted)).to_pylist():
                    text = write_out(kind, record)
                    for row in rows:
                        if (row["kind"], row["id"]) == (kind, record["id"]) and not row["num_chars"]:
                            row |= {"text": text[:MAX_CHARS], "num_chars": len(text)}


def write_out(kind: str, record: Row) -> str:
    """Return a record as text."""
    if kind == "documents":
        return record["text"] or ""
    if kind == "questions":
        return "\n".join([record["question"] or "", *(f"- {one}" for one in record["options"] or [])])
    messages = record["messages"] if kind == "conversations" else record["prompt"]
    lines = [f"{one['role']}: {one['content']}" for one in messages or []]
    if kind == "preferences":
        lines += [f"chosen: {record['chosen']}", f"rejected: {record['rejected']}"]
    return "\n".join(lines)


def explain(reject: Row) -> str:
    """Return why a record was dropped, in words."""
    if reject["kind"] != INPUT:
        return str(reject["detail"])
    detail = json.loads(reject["detail"])
    return f"{detail['file']}, at {detail['offset']}: {detail['error']}"
