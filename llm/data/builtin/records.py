"""The project's own sources: `pydocs` yields documents and questions, `chat` conversations and preferences.

`chat` holds those about documented functions, everyday talk, and the written principles. It is a source of its own so
that a user's plain text still ends in a model that can be talked to.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.config import ConfigError, require
from llm.data.builtin.chats import build_conversations, list_functions
from llm.data.builtin.preferences import build_preferences
from llm.data.builtin.pydocs import build_documents, read_pydocs
from llm.data.builtin.scenes import read_scenes
from llm.data.questions import build_questions
from llm.data.rows.conversations import PRINCIPLES
from llm.data.rows.formats import SourceFormat
from llm.data.rows.read import read_row
from llm.data.schema import BadRecord, Conversation, Preference, Records, hash_id, take_sample

# Conversations are made of this share of the modules whose text is read: enough of them, in less time.
CHAT_SHARE = 0.4


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
    records.extend(read_scenes(principles / "scenes.yaml", source))
    return records


def read_talk(folder: Path) -> Records:
    """Return the conversations of every JSONL file of a folder."""
    records, chats = Records(), SourceFormat(kind="chat")
    for where, file, row in _read_written(folder):
        try:
            made = read_row(row, "smalltalk", file, where, chats)
        except BadRecord as error:
            raise ConfigError(f"{where}: {error}") from error
        records.conversations += [
            replace(one, kind="smalltalk", group=one.id) for one in made if isinstance(one, Conversation)
        ]
    return records


def read_principles(folder: Path) -> Records:
    """Return each written prompt as a conversation with either answer, as in scenes, and as good over bad."""
    records = Records()
    for where, _, row in _read_written(folder):
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
        # A pair that differs in the group it speaks of (justice-006a, -006b) shares its answer, and so its side.
        group = re.sub(r"(?<=\d)[ab]$", "", row["id"])
        name, written = hash_id("principles", row["id"]), (group, "principles", "principle")
        for key in ("good", "bad"):
            messages = [*prompt, {"role": "assistant", "content": row[key]}]
            records.conversations.append(Conversation(hash_id("principles", row["id"], key), *written, messages))
        records.preferences.append(Preference(name, *written, prompt, row["good"], row["bad"], None, row["principle"]))
    return records


def _read_written(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (where, file name, row) of a folder's JSONL files, which are ours: a fault in them stops."""
    files = sorted(folder.glob("*.jsonl"))
    require(bool(files), f"{folder}: holds no .jsonl file; restore it with git checkout -- {folder}")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            where = f"{file}:{number}"
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise ConfigError(f"{where}: not valid JSON: {error}; mend or remove the line") from error
            require(isinstance(row, dict), f"{where}: expected a JSON object on each line")
            if row:
                yield where, file.name, row
