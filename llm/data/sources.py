"""Read any source to records: a file, folder or glob, a hosted dataset, `pydocs`, or `chat`.

`pydocs` yields documents and questions. `chat` yields conversations and preferences: those about documented
functions, everyday talk, and the written principles. It is a source of its own so that a user's plain text
still ends in a model that can be talked to.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.chats import build_conversations, list_functions
from llm.data.files import SUFFIXES, TEXT_SUFFIXES, decode_text, list_files, read_bytes
from llm.data.preferences import build_preferences
from llm.data.pydocs import build_documents, read_pydocs
from llm.data.questions import build_continuations, build_questions
from llm.data.rows import RowReader, read_jsonl, read_parquet
from llm.data.schema import Conversation, Preference, Records, hash_id, take_sample
from llm.progress import track

log = logging.getLogger(__name__)

PRINCIPLES = ("beneficence", "non_maleficence", "autonomy", "justice")
# Conversations are made of this share of the modules whose text is read: enough of them, in less time.
CHAT_SHARE = 0.4

_HOSTED = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w.-]+)?$")


def read_files(locator: str, source: str, text_field: str = "") -> tuple[Records, dict[str, int]]:
    """Return the records of a file, folder or glob, and how many files of other kinds were passed over."""
    listing = list_files(locator)
    for suffix, count in listing.skipped.items():
        log.warning("%s: passed over %d file(s) with suffix %s", locator, count, suffix)
    reader = RowReader(source, text_field)
    for path, name in track(listing.files, f"reading {source}"):
        if path.suffix.lower() in TEXT_SUFFIXES:
            reader.add_text(decode_text(read_bytes(path), path), name)
            continue
        read_bytes_of = read_jsonl if path.suffix.lower() == ".jsonl" else read_parquet
        for where, row in read_bytes_of(path):
            reader.add_row(where, row, name)
    return _finish(reader, locator), listing.skipped


def read_hosted(locator: str, source: str, text_field: str = "", max_bytes: int = 64_000_000) -> Records:
    """Return the first `max_bytes` of the train split of a Hugging Face dataset `owner/name[@config]`."""
    from datasets import load_dataset  # heavy, and needed by such sources only

    name, _, config = locator.removeprefix("hf:").partition("@")
    reader, size_bytes = RowReader(source, text_field), 0
    shown = Path(name).name if Path(name).exists() else name  # no absolute path in a record
    try:
        rows: Iterator[Mapping[str, Any]] = iter(load_dataset(name, config or None, split="train", streaming=True))
        for number, row in enumerate(track(rows, f"reading {name}"), 1):
            reader.add_row(f"{shown}, row {number}", row, shown)
            size_bytes += sum(len(value.encode()) for value in row.values() if isinstance(value, str))
            if size_bytes >= max_bytes:
                break
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{locator}: neither a file or folder here nor a dataset that could be read from the Hugging Face "
            f"Hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    return _finish(reader, locator)


def is_hosted(locator: str) -> bool:
    """Say whether a locator is a dataset's name: `hf:...`, or `owner/name` that can be no path here."""
    if locator.startswith("hf:"):
        return True
    local = Path(locator).exists() or Path(locator.split("/")[0]).exists() or locator.lower().endswith(SUFFIXES)
    return bool(_HOSTED.match(locator)) and not local


def _finish(reader: RowReader, locator: str) -> Records:
    """Return the records with questions built from the documents, or say that there is no text."""
    records = reader.records
    filled = any(one.text.strip() for one in records.documents) or records.conversations or records.preferences
    require(bool(filled), f"{locator}: holds no text; every file and row of it is empty")
    records.questions = build_continuations(records.documents, reader.source)
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
        reader = RowReader("smalltalk")
        for where, row in read_jsonl(file):
            reader.add_row(where, row, file.name)
        records.conversations += [
            Conversation(one.id, one.group, one.source, "smalltalk", one.messages)
            for one in reader.records.conversations
        ]
    return records


def read_principles(folder: Path) -> Records:
    """Return each written prompt as a conversation with the good answer and as good over bad."""
    records = Records()
    for file in _jsonl_files(folder):
        for where, row in read_jsonl(file):
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
