"""The four record kinds of the corpus, their parquet schemas, and hashes that replace random choice.

Every choice (sample, split, position of an answer) is a function of hashed names, never of a generator's
state or of the order in which records arrive; so a record keeps its place when others come and go.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

T = TypeVar("T")
Message = dict[str, str]

ROW_GROUP_ROWS = 4096
ROW_GROUP_CHARS = 16_000_000  # a row group of long texts ends here, so that a batch fits in memory
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `group` is the unit of the held-out split, `meta` a JSON object."""

    id: str
    text: str
    source: str
    license: str
    url: str
    meta: str
    group: str
    schema: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.string()) for name in ("id", "text", "source", "license", "url", "meta", "group")]
    )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of `role` and `content` in turn; the last one is the assistant's.

    `weights`: how much each of the assistant's messages counts in the loss, in turn; None where all are 1.
    """

    id: str
    group: str
    source: str
    kind: str
    messages: list[Message]
    weights: list[float] | None = None
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "group", "source", "kind")),
            ("messages", _MESSAGES),
            ("weights", pa.list_(pa.float64())),
        ]
    )


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the better one first."""

    id: str
    group: str
    source: str
    kind: str
    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None = None
    principle: str | None = None
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "group", "source", "kind")),
            ("prompt", _MESSAGES),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("margin", pa.float64()),
            ("principle", pa.string()),
        ]
    )


@dataclass(frozen=True, slots=True)
class Question:
    """Four options, one of them right; `blanked` asks the same without what would let one know."""

    id: str
    group: str
    source: str
    question: str
    blanked: str
    options: list[str]
    answer: int
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "group", "source", "question", "blanked")),
            ("options", pa.list_(pa.string())),
            ("answer", pa.int32()),
        ]
    )


@dataclass(frozen=True, slots=True)
class Reject:
    """A dropped record: `kind` says of which file (`input`: before it became a record), `detail` why, in figures."""

    id: str
    source: str
    kind: str
    reason: str
    detail: str
    schema: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.string()) for name in ("id", "source", "kind", "reason", "detail")]
    )


Record = Document | Conversation | Preference | Question
RAW_KINDS: dict[str, type[Record]] = {
    "documents": Document,
    "conversations": Conversation,
    "preferences": Preference,
    "questions": Question,
}
INPUT = "input"  # the kind of a reject that never became a record


class BadRecord(ValueError):
    """One record cannot be used; its neighbours can. `reason` is a snake_case name that rejects are counted by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


R = TypeVar("R", Document, Conversation, Preference, Question, Reject)


@dataclass
class Records:
    """What one source yields."""

    documents: list[Document] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def extend(self, other: "Records") -> None:
        """Append all of another's records."""
        self.documents += other.documents
        self.conversations += other.conversations
        self.preferences += other.preferences
        self.questions += other.questions

    def counts(self) -> dict[str, int]:
        """Return the number of records of each kind."""
        return {one.name: len(getattr(self, one.name)) for one in fields(self)}

    def write(self, folder: Path) -> None:
        """Write the four parquet files, always all four."""
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "documents.parquet", Document, self.documents)
        write_rows(folder / "conversations.parquet", Conversation, self.conversations)
        write_rows(folder / "preferences.parquet", Preference, self.preferences)
        write_rows(folder / "questions.parquet", Question, self.questions)


class RecordWriter:
    """Streams one source to the four parquet files, `rejects.parquet` and `ledger.json`, in the order of arrival.

    Each record of the input is either kept (`add`, with all that it became) or rejected (`reject`), once.
    """

    def __init__(self, folder: Path, source: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.source = folder, source
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self.counts = dict.fromkeys(RAW_KINDS, 0)
        self.document_bytes = 0
        self._rows: dict[str, list[Any]] = {kind: [] for kind in (*RAW_KINDS, "rejects")}
        self._chars = dict.fromkeys(self._rows, 0)
        self._classes: dict[str, Any] = {**RAW_KINDS, "rejects": Reject}
        self._writers = {
            kind: pq.ParquetWriter(folder / f"{kind}.parquet", record.schema, compression="zstd")
            for kind, record in self._classes.items()
        }

    @property
    def num_rejected(self) -> int:
        """Return how many input records were rejected."""
        return self.reasons.total()

    def add(self, records: Iterable[Record]) -> None:
        """Keep one input record: write what it became, at least one record."""
        self.kept += 1
        self.derive(records)

    def derive(self, records: Iterable[Record]) -> None:
        """Write records that were made from kept ones, and are no input records of their own."""
        for record in records:
            kind = next(kind for kind, one in RAW_KINDS.items() if isinstance(record, one))
            self.counts[kind] += 1
            if isinstance(record, Document):
                self.document_bytes += len(record.text.encode())
            self._push(kind, record)

    def reject(self, file: str, offset: str | int, reason: str, error: str) -> None:
        """Reject one input record: say where it was (file, and byte, line or row in it) and what was wrong."""
        self.reasons[reason] += 1
        name = hash_id(self.source, file, str(offset), reason)
        detail = to_json({"file": file, "offset": offset, "error": error[:300]})
        self._push("rejects", Reject(name, self.source, INPUT, reason, detail))

    def _push(self, kind: str, row: Any) -> None:
        self._rows[kind].append(row)
        self._chars[kind] += len(row.text) if isinstance(row, Document) else 0
        if len(self._rows[kind]) >= ROW_GROUP_ROWS or self._chars[kind] >= ROW_GROUP_CHARS:
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        rows, schema = self._rows[kind], self._classes[kind].schema
        if rows:
            columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
            self._writers[kind].write_table(pa.table(columns, schema=schema))
            rows.clear()
            self._chars[kind] = 0

    def close(self) -> dict[str, Any]:
        """Write what is left and the ledger; return the ledger."""
        for kind, writer in self._writers.items():
            self._flush(kind)
            writer.close()
        ledger = {
            "input": self.kept + self.num_rejected,
            "kept": self.kept,
            "rejected": self.num_rejected,
            "reasons": dict(sorted(self.reasons.items())),
        }
        (self.folder / "ledger.json").write_text(to_json(ledger) + "\n")
        return ledger


def write_rows(path: Path, record: type[R], rows: Sequence[R], splits: Mapping[str, str] | None = None) -> None:
    """Write records in the given order; `splits` (group -> split) adds the column `split`."""
    names = record.schema.names
    schema = record.schema if splits is None else record.schema.append(pa.field("split", pa.string()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, max(len(rows), 1), ROW_GROUP_ROWS):
            batch = rows[start : start + ROW_GROUP_ROWS]
            columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in batch] for name in names}
            if splits is not None:
                columns["split"] = [splits[getattr(row, "group")] for row in batch]  # noqa: B009
            writer.write_table(pa.table(columns, schema=schema))


def iter_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file as dicts, batch by batch, `split` included; all columns by default."""
    for batch in iter_batches(path, columns):
        yield from batch.to_pylist()


def iter_batches(
    path: Path, columns: Sequence[str] | None = None, num_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the Arrow batches of a parquet file, of which one row group is in memory at a time.

    With `pre_buffer`, Arrow's default, every byte that was read stays until the file is closed.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(num_rows, columns=columns)


def hash_id(*parts: str) -> str:
    """Return 32 hex digits of BLAKE2b over the parts, each ended by a zero byte."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def hash_share(*parts: str) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    return int(hash_id(*parts)[:13], 16) / 16**13


def pick(options: Sequence[T], *parts: str) -> T:
    """Return the option that the hash of the parts names."""
    return options[int(hash_share(*parts) * len(options))]


def take_sample(rows: Sequence[R], limit: int, key: str = "id") -> list[R]:
    """Return at most `limit` records, those whose hashed `key` is smallest, ordered by id.

    Records that share a key are kept or left together.
    """
    by_key: dict[str, list[R]] = {}
    for row in rows:
        by_key.setdefault(getattr(row, key), []).append(row)
    kept: list[R] = []
    for name in sorted(by_key, key=lambda name: hash_id("sample", name)):
        if len(kept) + len(by_key[name]) > limit:
            break
        kept += by_key[name]
    return sorted(kept, key=lambda row: row.id)


def to_json(content: Mapping[str, Any]) -> str:
    """Return a JSON object with sorted keys."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False)
