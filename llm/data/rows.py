"""Turn rows of JSONL, parquet or a hosted dataset into records.

A row is a document (`text`), a conversation (`messages`), a preference (`prompt`, `chosen`, `rejected`) or a
question with its answer, which becomes a conversation and, as text, a document.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.config import ConfigError, require
from llm.data.files import cut_passages, decode_text, read_bytes
from llm.data.formats import SourceFormat
from llm.data.schema import Conversation, Document, Message, Preference, Records, hash_id, to_json

TEXT_FIELDS = ("text", "content", "document", "body", "passage", "article")
ANSWER_FIELDS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
ROLES = ("system", "user", "assistant")


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row) for each line that is not blank."""
    for number, line in enumerate(decode_text(read_bytes(path), path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not valid JSON: {error}; mend or remove the line") from error
        require(isinstance(row, dict), f"{where}: expected a JSON object on each line")
        yield where, row


def read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row), batch by batch."""
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable parquet file: {error}") from error


class RowReader:
    """Adds rows of one source to its records."""

    def __init__(self, source: str, text_field: str = "", license_name: str = "unknown") -> None:
        self.source = source
        self.text_field = text_field
        self.license_name = license_name
        self.records = Records()

    def add_text(self, text: str, file: str, url: str = "") -> None:
        """Add a document, or several where the text is long; each is a group of its own."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        for offset, passage in cut_passages(text):
            name = hash_id(self.source, passage)
            meta = to_json({"file": file, "offset": offset})
            self.records.documents.append(Document(name, passage, self.source, self.license_name, url, meta, name))

    def add_row(self, where: str, row: Mapping[str, Any], file: str) -> None:
        """Add what the row's fields say it is, or raise ConfigError that names the row."""
        fields = (self.text_field,) if self.text_field else TEXT_FIELDS
        field = next((name for name in fields if name in row), None)
        pair = next((names for names in ANSWER_FIELDS if all(name in row for name in names)), None)
        if field is not None:
            url = row.get("url")
            self.add_text(_string(row[field], where, field), file, url if isinstance(url, str) else "")
        elif self.text_field:
            raise ConfigError(f"{where}: no field {self.text_field!r}; there are: {', '.join(map(str, row))}")
        elif "messages" in row:
            self._add_conversation(_messages(row["messages"], where), "chat")
        elif "chosen" in row and "rejected" in row:
            self._add_preference(row, where)
        elif pair is not None:
            question, answer = (_string(row[name], where, name) for name in pair)
            talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            self._add_conversation(talk, "qa")
            self.add_text(f"{question}\n\n{answer}", file)
        else:
            raise ConfigError(
                f"{where}: no text found among the fields {', '.join(map(str, row))}; expected text, messages, "
                f"or prompt, chosen and rejected. Name the text's field at the end of the path: PATH#FIELD"
            )

    def _add_conversation(self, messages: list[Message], kind: str) -> None:
        name = hash_id(self.source, kind, *(m["role"] + "\0" + m["content"] for m in messages))
        self.records.conversations.append(Conversation(name, name, self.source, kind, messages))

    def _add_preference(self, row: Mapping[str, Any], where: str) -> None:
        chosen, rejected = row["chosen"], row["rejected"]
        prompt = row.get("prompt")
        if isinstance(chosen, list) and isinstance(rejected, list):
            talk, other = _messages(chosen, where), _messages(rejected, where)
            prompt, chosen, rejected = prompt or talk[:-1], talk[-1]["content"], other[-1]["content"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        messages = _messages(prompt, where)
        chosen, rejected = _string(chosen, where, "chosen"), _string(rejected, where, "rejected")
        margin = row.get("margin")
        name = hash_id(self.source, *(m["content"] for m in messages), chosen, rejected)
        self.records.preferences.append(
            Preference(
                name,
                name,
                self.source,
                "given",
                messages,
                chosen,
                rejected,
                float(margin) if isinstance(margin, int | float) else None,
                str(row["principle"]) if row.get("principle") else None,
            )
        )


def _string(value: object, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {field!r} is {type(value).__name__}, expected a string")
    return value.encode("utf-8", "replace").decode("utf-8")


def _messages(value: object, where: str) -> list[Message]:
    problem = f"{where}: expected a list of messages with role ({', '.join(ROLES)}) and content"
    if not isinstance(value, list) or not value:
        raise ConfigError(problem)
    for one in value:
        require(isinstance(one, dict) and one.get("role") in ROLES, problem)
    return [{"role": one["role"], "content": _string(one.get("content"), where, "content")} for one in value]


def read_row(
    row: object, source: str, file: str, offset: int | str, fmt: SourceFormat
) -> list[Document | Conversation | Preference]:
    """Return the records, at least one, of a text (a str) or a row (a Mapping).

    Args:    file: its name within the source.  offset: byte, line or row number in it.
    Raises:  BadRecord: it cannot be used; the reason says why.
    """
    raise NotImplementedError
