"""Tables about the corpus that expectations can be written on: one row per file, record, text, group, or corpus.

Every table has a column `id` that names a row in a message. Nothing is judged here.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.data.schema import Conversation, Document, Preference, Question, Reject

SCHEMAS: dict[str, pa.Schema] = {
    "documents": Document.schema,
    "conversations": Conversation.schema,
    "preferences": Preference.schema,
    "questions": Question.schema,
}


def compare_schemas(raw: Sequence[Path], clean: Path, rejects: Path) -> pd.DataFrame:
    """Return one row per file: the columns that it has, and those that it should have."""
    rows = []
    split = pa.field("split", pa.string())
    for folder in [*raw, clean]:
        for kind, schema in SCHEMAS.items():
            expected = schema.append(split) if folder == clean else schema
            rows.append((folder / f"{kind}.parquet", expected))
    rows.append((rejects / "rejects.parquet", Reject.schema))
    return pd.DataFrame(
        {
            "id": [f"{path.parent.name}/{path.name}" for path, _ in rows],
            "found": [_describe(pq.read_schema(path)) if path.exists() else "no file" for path, _ in rows],
            "expected": [_describe(schema) for _, schema in rows],
        }
    )


def _describe(schema: pa.Schema) -> str:
    """Return names and types; parquet calls a list's element `element`, Arrow `item`, and both are the same."""
    return ", ".join(f"{one.name} {one.type}".replace("<element: ", "<item: ") for one in schema)


def read_tables(raw: Sequence[Path], clean: Path, rejects: Path) -> dict[str, pd.DataFrame]:
    """Return the tables that expectations speak of, each with a column `id` that names a row."""
    kinds = {kind: pq.read_table(clean / f"{kind}.parquet") for kind in SCHEMAS}
    columns = {
        "documents": ["id", "text", "license", "split"],
        "conversations": ["id", "split"],
        "preferences": ["id", "chosen", "rejected", "split"],
        "questions": ["id", "answer", "split"],
    }
    tables = {kind: _frame(table.select(columns[kind])) for kind, table in kinds.items()}
    talks = kinds["conversations"]["messages"].to_pylist()
    tables["conversations"]["last_role"] = [talk[-1]["role"] if talk else "" for talk in talks]
    options = kinds["questions"]["options"].to_pylist()
    tables["questions"]["num_options"] = [len(set(one)) for one in options]
    tables["texts"] = collect_texts(kinds)
    tables["groups"] = count_splits(kinds)
    tables["rejects"] = _frame(pq.read_table(rejects / "rejects.parquet"))
    tables["ledger"] = balance_kinds(raw, kinds, tables["rejects"])
    return tables


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return a frame in which a missing string is an empty one: expectations skip missing values."""
    frame = table.to_pandas()
    names = [field.name for field in table.schema if field.type == pa.string()]
    frame[names] = frame[names].fillna("")
    return frame


def collect_texts(kinds: dict[str, pa.Table]) -> pd.DataFrame:
    """Return every text of conversations, preferences and questions with the id of its record."""
    parts = []
    for kind, column in (("conversations", "messages"), ("preferences", "prompt")):
        lists = kinds[kind][column].combine_chunks()
        contents = pc.struct_field(pc.list_flatten(lists), "content")
        parts.append((kinds[kind]["id"].combine_chunks().take(pc.list_parent_indices(lists)), contents))
    lists = kinds["questions"]["options"].combine_chunks()
    ids = kinds["questions"]["id"].combine_chunks()
    parts.append((ids.take(pc.list_parent_indices(lists)), pc.list_flatten(lists)))
    for kind, columns in (("preferences", ("chosen", "rejected")), ("questions", ("question", "blanked"))):
        parts += [(kinds[kind]["id"], kinds[kind][column]) for column in columns]
    return pd.concat([_frame(pa.table({"id": ids, "text": texts})) for ids, texts in parts], ignore_index=True)


def count_splits(kinds: dict[str, pa.Table]) -> pd.DataFrame:
    """Return each group, of any kind, with the number of splits that it occurs in; `id` is the group."""
    both = pd.concat([_frame(table.select(["group", "split"])) for table in kinds.values()])
    return both.groupby("group").agg(num_splits=("split", "nunique")).reset_index(names="id")


def balance_kinds(raw: Sequence[Path], kinds: dict[str, pa.Table], rejects: pd.DataFrame) -> pd.DataFrame:
    """Return one row that holds, for every kind, what is unaccounted for, the reject rate and the split sizes."""
    row: dict[str, float | int | str] = {"id": "all sources"}
    for kind, table in kinds.items():
        inputs = sum(pq.read_metadata(folder / f"{kind}.parquet").num_rows for folder in raw)
        dropped = int((rejects["kind"] == kind).sum())
        row[f"{kind}_unaccounted"] = inputs - table.num_rows - dropped
        row[f"{kind}_reject_rate"] = dropped / max(inputs, 1)
        for split in ("train", "val"):
            row[f"{kind}_{split}"] = pc.sum(pc.equal(table["split"], split)).as_py() or 0
    return pd.DataFrame([row])
