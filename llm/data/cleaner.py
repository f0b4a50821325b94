"""Clean one batch of raw records: normal form, placeholders for personal data, quality rules, contamination.

Pure functions on Arrow batches, free of process state: each record of the batch comes back once, kept or
rejected under a named reason. What needs more than one batch (duplicates, splits) is llm.data.corpus.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.decontaminate import EvaluationIndex, find_contaminated
from llm.data.dedup import exact_keys
from llm.data.filters import FilterParams, judge_texts
from llm.data.language import identify_languages
from llm.data.minhash import NearDuplicateParams, sign_texts
from llm.data.normalise import normalise_text, normalise_texts
from llm.data.pii import PIIParams, replace_pii
from llm.data.schema import (
    RAW_KINDS,
    BadRecord,
    Conversation,
    Document,
    Message,
    Preference,
    Question,
    Reject,
    hash_id,
    to_json,
)

KEY_BYTES = 16


@dataclass(frozen=True)
class Rules:
    """What a batch is judged by; picklable, so that it can be sent to a worker once per batch."""

    filters: FilterParams
    near: NearDuplicateParams
    pii: PIIParams
    excluded: frozenset[str] = frozenset()
    evaluation: EvaluationIndex | None = None


@dataclass
class Cleaned:
    """A cleaned batch: what passed, with the keys that duplicates share, and what did not."""

    kept: pa.Table
    keys_NK: NDArray[np.uint8]  # 16 bytes of hash each: equal for the same words
    signatures_NP: NDArray[np.uint32] | None  # MinHash, of documents only
    rejects: list[Reject] = field(default_factory=list)
    placeholders: Counter[str] = field(default_factory=Counter)


def clean_batch(kind: str, batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return what is left of a batch of one kind, and the rejects."""
    return clean_documents(batch, rules) if kind == "documents" else clean_rows(kind, batch, rules)


def clean_documents(batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return the documents of a batch that pass the rules, with their language in `meta`."""
    texts, placeholders = replace_all(normalise_texts(batch["text"]), rules.pii)
    languages = identify_languages(texts)
    verdicts = judge_texts(texts, rules.filters, languages)
    verdicts = add_contaminated(verdicts, texts, rules)
    ids, sources = batch["id"].to_pylist(), batch["source"].to_pylist()
    # An excluded record passes here: its copies must still meet it, or one of them would take its place.
    passed = [i for i, verdict in enumerate(verdicts) if verdict is None or ids[i] in rules.excluded]
    metas = batch["meta"].to_pylist()
    table = pa.table(batch)
    table = table.set_column(table.schema.get_field_index("text"), Document.schema.field("text"), texts)
    meta = [to_json({**json.loads(one or "{}"), "language": code}) for one, (code, _) in zip(metas, languages, strict=True)]
    table = table.set_column(table.schema.get_field_index("meta"), Document.schema.field("meta"), pa.array(meta, pa.string()))
    kept = table.take(pa.array(passed, pa.int64()))
    texts = kept["text"].combine_chunks()
    rejects = [
        Reject(ids[i], sources[i], "documents", *verdict)
        for i, verdict in enumerate(verdicts)
        if verdict is not None and ids[i] not in rules.excluded
    ]
    return Cleaned(kept, exact_keys(texts), sign_texts(texts, rules.near), rejects, placeholders)


def clean_rows(kind: str, batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return the conversations, preferences or questions of a batch that are whole."""
    clean = {"conversations": clean_conversation, "preferences": clean_preference, "questions": clean_question}[kind]
    record, kept, texts, rejects = RAW_KINDS[kind], [], [], []
    placeholders: Counter[str] = Counter()

    def clean_text(text: str) -> str:
        text, found = replace_pii(normalise_text(text), rules.pii)
        placeholders.update(found)
        return text

    for row in batch.to_pylist():
        one = record(**row)
        try:
            one, text = clean(one, clean_text)
            kept.append(one)
            texts.append(text)
        except BadRecord as problem:
            rejects.append(Reject(one.id, one.source, kind, problem.reason, problem.detail))
    verdicts = add_contaminated([None] * len(kept), pa.array(texts, pa.string()), rules)
    rejects += [
        Reject(one.id, one.source, kind, *verdict) for one, verdict in zip(kept, verdicts, strict=True) if verdict
    ]
    passed = [i for i, verdict in enumerate(verdicts) if verdict is None]
    columns = {name: [getattr(kept[i], name) for i in passed] for name in record.schema.names}
    table = pa.table(columns, schema=record.schema)
    return Cleaned(table, exact_keys(pa.array([texts[i] for i in passed], pa.string())), None, rejects, placeholders)


def clean_conversation(one: Conversation, clean_text: Callable[[str], str]) -> tuple[Conversation, str]:
    """Return a conversation that ends in an answer, and its text, or raise BadRecord."""
    messages = clean_messages(one.messages, clean_text)
    if not all(message["content"] for message in messages):
        raise BadRecord("empty_message")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRecord("no_answer", "the last message is not the assistant's")
    return replace(one, messages=messages), join_messages(messages)


def clean_preference(one: Preference, clean_text: Callable[[str], str]) -> tuple[Preference, str]:
    """Return a preference between two answers that are filled and differ, and its text, or raise BadRecord."""
    prompt = clean_messages(one.prompt, clean_text)
    chosen, rejected = clean_text(one.chosen), clean_text(one.rejected)
    if not prompt or not all(message["content"] for message in prompt):
        raise BadRecord("empty_message")
    if not chosen or not rejected:
        raise BadRecord("empty_answer", "chosen" if not chosen else "rejected")
    if chosen == rejected:
        raise BadRecord("same_answers")
    text = "\n".join([join_messages(prompt), chosen, rejected])
    return replace(one, prompt=prompt, chosen=chosen, rejected=rejected), text


def clean_question(one: Question, clean_text: Callable[[str], str]) -> tuple[Question, str]:
    """Return a question whose options are filled and differ, and its text, or raise BadRecord."""
    options = [clean_text(option) for option in one.options]
    if len(set(options)) < len(one.options) or not all(options):
        raise BadRecord("options_not_distinct")
    question, blanked = clean_text(one.question), clean_text(one.blanked)
    return replace(one, question=question, blanked=blanked, options=options), "\n".join([question, *options])


def clean_messages(messages: Iterable[Message], clean_text: Callable[[str], str]) -> list[Message]:
    """Return messages with clean content."""
    return [{"role": one["role"], "content": clean_text(one["content"])} for one in messages]


def join_messages(messages: Iterable[Message]) -> str:
    """Return the text of messages, roles included."""
    return "\n".join(f"{one['role']} {one['content']}" for one in messages)


def replace_all(texts: pa.StringArray, params: PIIParams) -> tuple[pa.StringArray, Counter[str]]:
    """Return texts with placeholders for personal data, and how many of each type there are."""
    placeholders: Counter[str] = Counter()
    out = []
    for text in texts.to_pylist():
        text, found = replace_pii(text, params)
        placeholders.update(found)
        out.append(text)
    return pa.array(out, pa.string()), placeholders


def add_contaminated(
    verdicts: Sequence[tuple[str, str] | None], texts: pa.StringArray, rules: Rules
) -> list[tuple[str, str] | None]:
    """Return the verdicts, with one for each text that holds a passage of an evaluation set."""
    if rules.evaluation is None:
        return list(verdicts)
    found = find_contaminated(texts, rules.evaluation)
    return [
        verdict or (("contaminated", match.describe()) if match else None)
        for verdict, match in zip(verdicts, found, strict=True)
    ]
