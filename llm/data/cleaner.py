"""Clean one batch of raw records: normal form, placeholders for personal data, quality rules, contamination.

Pure functions on Arrow batches, free of process state: each record of the batch comes back once, kept or
rejected under a named reason. What needs more than one batch (duplicates, splits) is llm.data.corpus.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm.data.dedup.decontaminate import Hits, find_hits
from llm.data.dedup.duplicates import exact_keys
from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex
from llm.data.dedup.minhash import NearDuplicateParams, sign_texts
from llm.data.filters.judge import FilterParams, judge_texts
from llm.data.pii.find import PIIParams, replace_pii
from llm.data.schema import (
    RAW_KINDS,
    BadRecord,
    Conversation,
    Document,
    Message,
    Preference,
    Question,
    Record,
    Reject,
    to_json,
)
from llm.data.text.language import identify_languages
from llm.data.text.normalise import normalise_text, normalise_texts

KEY_BYTES = 16


@dataclass(frozen=True)
class Rules:
    """What a batch is judged by; picklable, so that it can be sent to a worker once per batch."""

    filters: FilterParams
    near: NearDuplicateParams
    pii: PIIParams
    excluded: frozenset[str] = frozenset()
    evaluation: EvaluationIndex | None = None
    decontaminate: DecontaminateParams = DecontaminateParams()


@dataclass
class Cleaned:
    """A cleaned batch: what passed, with what duplicates and evaluation sets are found by, and what did not."""

    kept: pa.Table
    keys_NK: NDArray[np.uint8]  # 16 bytes of hash each: equal for the same words
    signatures_NP: NDArray[np.uint32] | None  # MinHash, of documents only
    hits: Hits | None  # places that an evaluation set has too
    rejects: list[Reject]
    placeholders: Counter[str]


def clean_batch(kind: str, batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return what is left of a batch of one kind, and the rejects."""
    return clean_documents(batch, rules) if kind == "documents" else clean_rows(kind, batch, rules)


def clean_documents(batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return the documents of a batch that pass the rules, with their language in `meta`."""
    texts, placeholders = replace_all(normalise_texts(batch["text"]), rules.pii)
    verdicts = judge_texts(texts, rules.filters)
    ids, sources = batch["id"].to_pylist(), batch["source"].to_pylist()
    # An excluded record passes here: its copies must still meet it, or one of them would take its place.
    passed = [i for i, verdict in enumerate(verdicts) if verdict is None or ids[i] in rules.excluded]
    columns = {name: batch[name] for name in Document.schema.names} | {"text": texts}
    kept = add_languages(pa.table(columns, schema=Document.schema).take(pa.array(passed, pa.int64())))
    dropped = sorted(set(range(len(ids))) - set(passed))
    rejects = [Reject(ids[i], sources[i], "documents", *(verdicts[i] or ("", ""))) for i in dropped]
    return finish("documents", kept, rules, rejects, placeholders)


def add_languages(documents: pa.Table) -> pa.Table:
    """Return the documents with the language of each in its `meta`."""
    languages = identify_languages(documents["text"].combine_chunks())
    metas = [
        to_json({**json.loads(meta or "{}"), "language": code})
        for meta, (code, _) in zip(documents["meta"].to_pylist(), languages, strict=True)
    ]
    place = documents.schema.get_field_index("meta")
    return documents.set_column(place, documents.schema.field("meta"), pa.array(metas, pa.string()))


def clean_rows(kind: str, batch: pa.RecordBatch, rules: Rules) -> Cleaned:
    """Return the conversations, preferences or questions of a batch that are whole."""
    cleaners: dict[str, Callable[[Any, Callable[[str], str]], Record]] = {
        "conversations": clean_conversation,
        "preferences": clean_preference,
        "questions": clean_question,
    }
    clean, record = cleaners[kind], RAW_KINDS[kind]
    kept: list[Record] = []
    rejects: list[Reject] = []
    placeholders: Counter[str] = Counter()

    def clean_text(text: str) -> str:
        text, found = replace_pii(normalise_text(text), rules.pii)
        placeholders.update(found)
        return text

    for row in batch.to_pylist():
        one = record(**row)
        try:
            kept.append(clean(one, clean_text))
        except BadRecord as problem:
            rejects.append(Reject(one.id, one.source, kind, problem.reason, problem.detail))
    columns = {name: [getattr(one, name) for one in kept] for name in record.schema.names}
    return finish(kind, pa.table(columns, schema=record.schema), rules, rejects, placeholders)


def finish(kind: str, kept: pa.Table, rules: Rules, rejects: list[Reject], placeholders: Counter[str]) -> Cleaned:
    """Return a cleaned batch with the keys, signatures and hits of what passed."""
    texts = list_texts(kind, kept)
    signatures = sign_texts(texts, rules.near) if kind == "documents" else None
    hits = find_hits(texts, rules.evaluation) if rules.evaluation is not None else None
    return Cleaned(kept, exact_keys(texts), signatures, hits, rejects, placeholders)


def list_texts(kind: str, records: pa.Table) -> pa.StringArray:
    """Return the text of each record by which copies of it are known."""
    if kind == "documents":
        return records["text"].combine_chunks()
    if kind == "questions":
        rows = zip(records["question"].to_pylist(), records["options"].to_pylist(), strict=True)
        return pa.array(["\n".join([question, *options]) for question, options in rows], pa.string())
    if kind == "conversations":
        return pa.array([join_messages(one) for one in records["messages"].to_pylist()], pa.string())
    columns = (records[name].to_pylist() for name in ("prompt", "chosen", "rejected"))
    texts = ["\n".join([join_messages(prompt), *answers]) for prompt, *answers in zip(*columns, strict=True)]
    return pa.array(texts, pa.string())


def clean_conversation(one: Conversation, clean_text: Callable[[str], str]) -> Conversation:
    """Return a conversation that ends in an answer, or raise BadRecord."""
    messages = clean_messages(one.messages, clean_text)
    if not all(message["content"] for message in messages):
        raise BadRecord("empty_message")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRecord("no_answer", "the last message is not the assistant's")
    return replace(one, messages=messages)


def clean_preference(one: Preference, clean_text: Callable[[str], str]) -> Preference:
    """Return a preference between two answers that are filled and differ, or raise BadRecord."""
    prompt = clean_messages(one.prompt, clean_text)
    chosen, rejected = clean_text(one.chosen), clean_text(one.rejected)
    if not prompt or not all(message["content"] for message in prompt):
        raise BadRecord("empty_message")
    if not chosen or not rejected:
        raise BadRecord("empty_answer", "chosen" if not chosen else "rejected")
    if chosen == rejected:
        raise BadRecord("same_answers")
    return replace(one, prompt=prompt, chosen=chosen, rejected=rejected)


def clean_question(one: Question, clean_text: Callable[[str], str]) -> Question:
    """Return a question whose options are filled and differ, or raise BadRecord."""
    options = [clean_text(option) for option in one.options]
    if len(set(options)) < len(one.options) or not all(options):
        raise BadRecord("options_not_distinct")
    question, blanked = clean_text(one.question), clean_text(one.blanked)
    return replace(one, question=question, blanked=blanked, options=options)


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
