"""Read any source to records: a file, folder or glob, a hosted dataset, `pydocs`, or `chat`.

`pydocs` yields documents and questions. `chat` yields conversations and preferences: those about documented
functions, everyday talk, and the written principles. It is a source of its own so that a user's plain text
still ends in a model that can be talked to.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.config import ConfigError, require
from llm.data.chats import build_conversations, list_functions
from llm.data.conversations import PRINCIPLES
from llm.data.files import TEXT_SUFFIXES, decode_text, list_files, read_bytes
from llm.data.formats import SourceFormat
from llm.data.hosted import read_hosted
from llm.data.preferences import build_preferences
from llm.data.pydocs import build_documents, read_pydocs
from llm.data.questions import build_continuations, build_questions
from llm.data.rows import read_row
from llm.data.schema import BadRecord, Conversation, Document, Preference, Records, hash_id, take_sample
from llm.progress import track

log = logging.getLogger(__name__)

# Conversations are made of this share of the modules whose text is read: enough of them, in less time.
CHAT_SHARE = 0.4


def read_files(locator: str, source: str, text_field: str = "") -> tuple[Records, dict[str, int]]:
    """Return the records of a file, folder or glob, and how many files of other kinds were passed over."""
    listing = list_files(locator)
    for suffix, count in listing.skipped.items():
        log.warning("%s: passed over %d file(s) with suffix %s", locator, count, suffix)
    records, fmt = Records(), make_format(text_field)
    for path, name in track(listing.files, f"reading {source}"):
        if path.suffix.lower() in TEXT_SUFFIXES:
            text = decode_text(read_bytes(path), path)
            if text.strip():
                add_row(records, str(path), text, source, name, 0, fmt)
            continue
        read_rows_of = read_jsonl if path.suffix.lower() == ".jsonl" else read_parquet
        for number, row in read_rows_of(path):
            add_row(records, f"{path}:{number}", row, source, name, number, fmt)
    return _finish(records, source, locator), listing.skipped


def read_dataset(locator: str, source: str, text_field: str = "", max_bytes: int = 64_000_000) -> Records:
    """Return the first `max_bytes` of the train split of a Hugging Face dataset `owner/name[@config]`."""
    name = locator.removeprefix("hf:").partition("@")[0]
    shown = Path(name).name if Path(name).exists() else name  # no absolute path in a record
    records, fmt = Records(), make_format(text_field).model_copy(update={"max_bytes": max_bytes})
    for number, row in track(read_hosted(locator, fmt), f"reading {name}"):
        add_row(records, f"{shown}, row {number}", row, source, shown, number, fmt)
    return _finish(records, source, locator)


def make_format(text_field: str) -> SourceFormat:
    """Return the format of rows whose text is in a field that the user names, or in one that is known."""
    return SourceFormat(columns={"text": text_field} if text_field else {})


def add_row(records: Records, where: str, row: object, source: str, file: str, offset: int, fmt: SourceFormat) -> None:
    """Add what a row becomes, or raise ConfigError that names it."""
    try:
        made = read_row(row, source, file, offset, fmt)
    except BadRecord as error:
        raise ConfigError(f"{where}: {error}") from error
    records.documents += [one for one in made if isinstance(one, Document)]
    records.conversations += [one for one in made if isinstance(one, Conversation)]
    records.preferences += [one for one in made if isinstance(one, Preference)]


def read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, row) for each line that is not blank."""
    for number, line in enumerate(decode_text(read_bytes(path), path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: not valid JSON: {error}; mend or remove the line") from error
        require(isinstance(row, dict), f"{path}:{number}: expected a JSON object on each line")
        yield number, row


def read_parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, row), batch by batch."""
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable parquet file: {error}") from error


def _finish(records: Records, source: str, locator: str) -> Records:
    """Return the records with questions built from the documents, or say that there is no text."""
    filled = any(one.text.strip() for one in records.documents) or records.conversations or records.preferences
    require(bool(filled), f"{locator}: holds no text; every file and row of it is empty")
    records.questions = build_continuations(records.documents, source)
    return records


def read_python_text(lock: Path, source: str, sample: float, processes: int) -> Records:
    """Return the documents and questions of `pydocs`."""
    modules = read_pydocs(lock, sample, processes)
    require(bool(modules), "ingest.sample: leaves no module of pydocs; raise it")
    functions = [list_functions(module) for module in modules]
    return Records(documents=build_documents(modules, source), questions=build_questions(functions, source))


def read_chat(
    lock: Path, talk: Path, principles: Path, source: str, sample: float, processes: int, limit: int
) -> Records:
    """Return the conversations and preferences of `chat`, those on functions capped at `limit` each."""
    functions = [list_functions(module) for module in read_pydocs(lock, sample * CHAT_SHARE, processes)]
    records = Records(
        conversations=take_sample(build_conversations(functions, source), limit),
        preferences=take_sample(build_preferences(functions, source), limit),
    )
    records.extend(read_talk(talk))
    records.extend(read_principles(principles))
    return records


def read_talk(folder: Path) -> Records:
    """Return the conversations of every JSONL file of a folder."""
    records = Records()
    for file in _jsonl_files(folder):
        talks = Records()
        for number, row in read_jsonl(file):
            add_row(talks, f"{file}:{number}", row, "smalltalk", file.name, number, make_format(""))
        records.conversations += [replace(one, kind="smalltalk") for one in talks.conversations]
    return records


def read_principles(folder: Path) -> Records:
    """Return each written prompt as a conversation with the good answer and as good over bad."""
    records = Records()
    for file in _jsonl_files(folder):
        for number, row in read_jsonl(file):
            where = f"{file}:{number}"
            keys = ("id", "principle", "prompt", "good", "bad")
            require(
                all(isinstance(row.get(key), str) and row[key].strip() for key in keys),
                f"{where}: expected the strings {', '.join(keys)}",
            )
            require(
                row["principle"] in PRINCIPLES,
                f"{where}: principle {row['principle']!r} is not one of {', '.join(PRINCIPLES)}",
            )
            prompt = [{"role": "user", "content": row["prompt"]}]
            messages = [*prompt, {"role": "assistant", "content": row["good"]}]
            name = hash_id("principles", row["id"])
            records.conversations.append(Conversation(name, row["id"], "principles", "principle", messages))
            records.preferences.append(
                Preference(
                    name,
                    row["id"],
                    "principles",
                    "principle",
                    prompt,
                    row["good"],
                    row["bad"],
                    None,
                    row["principle"],
                )
            )
    return records


def _jsonl_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.jsonl"))
    require(bool(files), f"{folder}: holds no .jsonl file; restore it with git checkout -- {folder}")
    return files
