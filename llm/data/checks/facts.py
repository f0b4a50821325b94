"""Figures of records, batch by batch: what expectations are written on, instead of the texts themselves.

Each function is pure, takes an Arrow batch of a clean file and returns a table of one row per record: its split,
hashes of its id and group, and figures, in few bytes, for there is a row for every record of the corpus. A text is
blank where it holds nothing but white space.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llm.data.pii.residue import count_residue


def measure_documents(batch: pa.RecordBatch, are_objects: Sequence[bool]) -> pa.Table:
    """Return the figures of documents; `are_objects` says whether each `meta` is a JSON object.

    `num_chars` of a blank text is missing, so that it is found fault with once. `text_hash` is of the text in lower
    case.
    """
    texts = pc.fill_null(batch["text"], "")
    blank = is_blank(texts)
    figures: dict[str, Any] = {
        "num_chars": pc.if_else(blank, pa.scalar(None, pa.int32()), pc.utf8_length(texts)),
        "is_blank": blank.cast(pa.int8()),
        "has_license": pc.not_equal(pc.fill_null(batch["license"], ""), "").cast(pa.int8()),
        "is_object": pa.array(are_objects, pa.bool_()).cast(pa.int8()),
        "text_hash": hash_strings(pc.utf8_lower(texts)),
        **{name: (found > 0).astype(np.int8) for name, found in count_residue(texts).items()},
    }
    return _to_table(batch, figures)


def measure_conversations(batch: pa.RecordBatch) -> pa.Table:
    """Return the figures of conversations: the role of the last message, and those of all messages."""
    last = [talk[-1]["role"] if talk else "" for talk in batch["messages"].to_pylist()]
    texts, rows = _contents(batch["messages"])
    return _to_table(
        batch,
        {"last_role": pa.array(last, pa.string()).dictionary_encode(), **_measure_texts([(texts, rows)], len(batch))},
    )


def measure_preferences(batch: pa.RecordBatch) -> pa.Table:
    """Return the figures of preferences: whether the answers are the same, and those of prompt and answers."""
    answers = [pc.fill_null(batch[name], "") for name in ("chosen", "rejected")]
    parts = [_contents(batch["prompt"]), *((texts, np.arange(len(batch))) for texts in answers)]
    same = pc.equal(*answers).cast(pa.int8())
    return _to_table(batch, {"is_same": same, **_measure_texts(parts, len(batch))})


def measure_questions(batch: pa.RecordBatch) -> pa.Table:
    """Return the figures of questions: how many options differ, the right one's place, and those of the texts."""
    options = batch["options"]
    parts = [(pc.list_flatten(options), pc.list_parent_indices(options).to_numpy())]
    parts += [(batch[name], np.arange(len(batch))) for name in ("question", "blanked")]
    differing = np.array([len(set(one or ())) for one in options.to_pylist()], dtype=np.int8)
    figures = {"num_options": differing, "answer": batch["answer"], **_measure_texts(parts, len(batch))}
    return _to_table(batch, figures)


MEASURES: dict[str, Callable[[pa.RecordBatch], pa.Table]] = {
    "conversations": measure_conversations,
    "preferences": measure_preferences,
    "questions": measure_questions,
}


def is_blank(texts: pa.StringArray) -> pa.BooleanArray:
    """Return whether each text holds nothing but white space."""
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)


def hash_strings(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return 64 bits of hash per string, the same in every process; among ten million, two meet in 3 of a million."""
    plain = np.array(pc.fill_null(values, "").to_pylist(), dtype=object)
    return np.asarray(pd.util.hash_array(plain, categorize=False), dtype=np.uint64)


def _contents(messages: pa.ListArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the content of every message of a column, and the row that each stands in."""
    return pc.struct_field(pc.list_flatten(messages), "content"), pc.list_parent_indices(messages).to_numpy()


def _measure_texts(parts: Sequence[tuple[pa.Array, NDArray[np.int64]]], num_rows: int) -> dict[str, Any]:
    """Return, per row, whether one of its texts is blank, and whether one holds personal data of each type."""
    texts = pc.fill_null(pa.concat_arrays([one for one, _ in parts]), "")
    rows = np.concatenate([one for _, one in parts]).astype(np.int64)
    figures: dict[str, Any] = {"has_blank": is_blank(texts).to_numpy(zero_copy_only=False), **count_residue(texts)}
    return {name: (np.bincount(rows, found, num_rows) > 0).astype(np.int8) for name, found in figures.items()}


def _to_table(batch: pa.RecordBatch, figures: dict[str, Any]) -> pa.Table:
    """Return the split, "" for a missing one, the hashes, whether there is an id, and the figures."""
    ids = pc.fill_null(batch["id"], "")
    names = {
        "split": pc.fill_null(batch["split"], "").dictionary_encode(),
        "id_hash": hash_strings(ids),
        "group_hash": hash_strings(batch["group"]),
        "has_id": pc.not_equal(ids, "").cast(pa.int8()),
    }
    return pa.table({**names, **figures})
