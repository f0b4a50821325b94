"""Turn what a reader yields, a text or a row of a table, into records of the corpus.

A row is read by the first family (`formats.SHAPES`) that its columns fit. A single question with its answer becomes a
conversation and, as text, a document too: a base model can then learn from a source that holds nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm.data.rows.cells import Cells, find_cells, read_scalar, read_string, show
from llm.data.rows.conversations import (
    QA,
    build_conversation,
    read_chat,
    read_choices,
    read_labelled,
    read_pair,
    read_prompt,
    read_ranked,
)
from llm.data.rows.formats import SourceFormat
from llm.data.rows.turns import say, split_reply
from llm.data.schema import BadRecord, Conversation, Document, Message, Preference, hash_id, to_json
from llm.data.sources.passages import cut_passages

Made = Document | Conversation | Preference


def read_row(
    row: object, source: str, file: str, offset: int | str, fmt: SourceFormat, url: str = "", removed: str = ""
) -> list[Made]:
    """Return the records, at least one, of a text (a str) or a row (a Mapping).

    Args:    file: its name within the source.  offset: byte, line or row number in it.
             url, removed: of a text, where it was found and whose boilerplate was cut from it.
    Raises:  BadRecord: it cannot be used; the reason says why.
    """
    file = read_string(file, "file")
    if isinstance(row, str):
        place = {"file": file, "offset": offset} | ({"removed": removed} if removed else {})
        return [*build_documents(row, source, place, fmt.license, read_string(url, "url"))]
    if not isinstance(row, Mapping):
        raise BadRecord("wrong_type", f"{type(row).__name__}, expected a text or an object with columns")
    cells = find_cells(row, source, file, offset, fmt)
    return list(READERS[cells.shape.kind](cells))


def build_documents(
    text: str, source: str, place: Mapping[str, Any], license_name: str, url: str, group: str = ""
) -> list[Document]:
    """Return a document, or several where the text is long; each is a group of its own unless one is given.

    Its meta is `place`, and `passage`, the character at which it begins, where the text is long.
    """
    documents = []
    for start, passage in cut_passages(read_string(text, "text")):
        name = hash_id(source, passage)
        meta = to_json({**place, "passage": start} if start else place)
        documents.append(Document(name, passage, source, license_name, url, meta, group or name))
    if not documents:
        raise BadRecord("empty", "no text")
    return documents


def _build_row_documents(row: Cells, text: str, group: str = "") -> list[Document]:
    return build_documents(text, row.source, {"file": row.file, "offset": row.offset}, row.license, row.url, group)


def _read_text(row: Cells) -> Sequence[Made]:
    return _build_row_documents(row, row.text("text", "empty"))


def _read_code(row: Cells) -> Sequence[Made]:
    """Return a function's head with its body, as they stand in a file."""
    return _build_row_documents(row, row.text("prompt", "empty_prompt") + row.text("solution", "empty_reply"))


def _read_qa(row: Cells) -> Sequence[Made]:
    """Return the answer to a question; of several right ones (as SQuAD lists them) the first."""
    value, name = row.values["answer"], row.names["answer"]
    head, reply = split_reply(value, name) if _holds_messages(value) else ([], _pick_answer(value, name))
    return _answer(row, [*read_prompt(row), *head], reply)


def _read_instruction(row: Cells) -> Sequence[Made]:
    return _answer(row, read_prompt(row), row.text("output", "empty_reply"))


def _read_instances(row: Cells) -> Sequence[Made]:
    """Return each instance of an instruction; one that cannot be used refuses them all, so that none goes missing."""
    instances, name = row.values["instances"], row.names["instances"]
    if not isinstance(instances, Sequence) or not instances or not all(isinstance(one, Mapping) for one in instances):
        raise BadRecord("wrong_type", f"{show(name)}: expected a list of objects with input and output")
    made: list[Made] = []
    for one in instances:
        if one.get("output") is None:
            raise BadRecord("missing_column", f"{show(name)}: one has no output")
        asked, reply = one.get("input"), read_scalar(one["output"], "output")
        extra = read_scalar(asked, "input") if asked is not None else ""
        question = "\n\n".join(filter(str.strip, (row.text("instruction", "empty_prompt"), extra)))
        made += _answer(row, [say("user", question)], reply)
    return made


def _answer(row: Cells, prompt: list[Message], reply: str) -> list[Made]:
    """Return the conversation, and the same as text in the same group."""
    talk = build_conversation(row, QA, [*prompt, say("assistant", reply)])
    text = "\n\n".join(one["content"] for one in talk.messages if one["role"] != "system")
    return [talk, *_build_row_documents(row, text, talk.group)]


def _holds_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _pick_answer(value: object, name: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("text", value.get("value"))
    if isinstance(value, list):
        value = value[0] if value else ""
    return read_scalar(value, name)


READERS: dict[str, Callable[[Cells], Sequence[Made]]] = {
    "text": _read_text,
    "code": _read_code,
    "chat": read_chat,
    "pair": read_pair,
    "ranked": read_ranked,
    "labelled": read_labelled,
    "choices": read_choices,
    "instances": _read_instances,
    "instruction": _read_instruction,
    "qa": _read_qa,
}
