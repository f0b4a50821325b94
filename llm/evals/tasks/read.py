"""Read tasks from files: JSON, JSON Lines, CSV or parquet, compressed or not, in any encoding, by their content.

A row that is no item is rejected with its place and a reason, and counted; a file without any item is an error. Of
rows of several kinds the commonest kind is the task.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.rows.formats import SourceFormat
from llm.data.schema import BadRecord
from llm.data.sources.containers import walk_source
from llm.data.sources.items import Fault, Skip, Stream
from llm.data.sources.locations import HEAD_BYTES
from llm.data.sources.readers import choose_format, list_readers
from llm.evals.tasks.items import Item, Task
from llm.evals.tasks.rows import EXPECTED, read_items

_FORMAT = SourceFormat()
_TABLES = ("jsonl", "json", "csv", "parquet", "arrow")
_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zst")


def read_tasks(path: Path) -> list[Task]:
    """Return the tasks of a file, or of all tables in a folder: one for each file, or for each part of its rows.

    Raises:  ConfigError: there is none; the message names file, line and what is expected.
    """
    require(path.exists(), f"{path}: no such file or folder; name one that holds {EXPECTED}")
    tasks: list[Task] = []
    for file, opened in walk_source(str(path), _FORMAT.max_expand_ratio):
        if isinstance(opened, Skip):
            continue
        if isinstance(opened, Fault):
            require(path.is_dir(), f"{file}: {opened.reason}: {opened.error}")
            continue
        name = choose_format(opened.peek(HEAD_BYTES), file)
        if name not in _TABLES:
            require(path.is_dir(), f"{file}: no table of rows: expected JSON, JSON Lines or CSV with {EXPECTED}")
            continue
        tasks += _read_stream(opened, name, file, "" if path.is_file() else f"{path.name}/")
    require(bool(tasks), f"{path}: holds no task; expected files of rows with {EXPECTED}")
    return tasks


def _read_stream(stream: Stream, reader: str, file: str, prefix: str) -> list[Task]:
    parts: dict[str, list[tuple[str, Item]]] = {}
    rejected: Counter[str] = Counter()
    faults: list[str] = []

    def reject(offset: int | str, reason: str, error: str) -> None:
        rejected[reason] += 1
        place = str(offset).removeprefix("line ")
        faults.append(f"{file}:{place}: {reason}: {error}")

    try:
        for row in list_readers()[reader].read(stream, file.lower(), _FORMAT):
            if isinstance(row, Skip):
                continue
            if isinstance(row, Fault):
                reject(row.offset, row.reason, row.error)
                continue
            try:
                for part, item in read_items(_require_row(row.value)):
                    parts.setdefault(part, []).append((str(row.offset), item))
            except (BadRecord, ValueError) as error:
                bad = error if isinstance(error, BadRecord) else BadRecord("bad_value", str(error))
                reject(row.offset, bad.reason, bad.detail)
    except BadRecord as error:
        reject("end", error.reason, error.detail)
    if not parts:
        shown = "; ".join(faults[:3]) or f"{file}:1: no rows"
        raise ConfigError(f"{shown}. Expected rows with {EXPECTED}")
    stem = prefix + Path(file).name.partition(".")[0]
    tasks = []
    for part, found in parts.items():
        kinds = Counter(type(item) for _, item in found)
        kind = kinds.most_common(1)[0][0]
        for offset, item in found:
            if type(item) is not kind:
                what, kept = type(item).__name__.lower(), kind.__name__.lower()
                reject(offset, "other_kind", f"a {what}; most items of this file are of the kind {kept}")
        items = _number([item for _, item in found if type(item) is kind])
        tasks.append(Task(f"{stem}.{part}" if part else stem, items, rejected, faults))
    return tasks


def _require_row(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRecord("wrong_type", f"{type(value).__name__}; expected an object with columns")
    return value


def _number(items: list[Item]) -> list[Item]:
    """Give repeated items an id of their own, so that each counts once and can be paired."""
    seen: Counter[str] = Counter()
    numbered: list[Item] = []
    for item in items:
        seen[item.id] += 1
        numbered.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}-{seen[item.id]}"))
    return numbered
