"""Clean the records of each kind: what is kept, what is rejected, and why.

Every record that comes in is either kept or rejected once, under a named reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llm.data.dedup import NearDuplicateParams, find_exact, find_near
from llm.data.filters import FilterParams, judge_text
from llm.data.normalise import normalise_text
from llm.data.pii import replace_pii
from llm.data.schema import (
    Conversation,
    Document,
    Message,
    Preference,
    Question,
    Record,
    Reject,
    hash_id,
    to_json,
)
from llm.progress import track

T = TypeVar("T", Document, Conversation, Preference, Question)
KINDS = {
    Document: "documents",
    Conversation: "conversations",
    Preference: "preferences",
    Question: "questions",
}


@dataclass
class Ledger:
    """Counts what came in, and holds the rejects and the number of placeholders."""

    rejects: list[Reject] = field(default_factory=list)
    inputs: Counter[str] = field(default_factory=Counter)
    emails: int = 0
    addresses: int = 0

    def reject(self, record: Record, reason: str, detail: str = "") -> None:
        """Note that a record is dropped."""
        kind = KINDS[type(record)]
        self.rejects.append(Reject(record.id, record.source, kind, reason, detail))

    def clean_text(self, text: str) -> str:
        """Return the text in normal form with placeholders for addresses."""
        text, found = replace_pii(normalise_text(text))
        self.emails += found["email"]
        self.addresses += found["ip"]
        return text

    def clean_messages(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages with clean content."""
        return [{"role": one["role"], "content": self.clean_text(one["content"])} for one in messages]


def clean_documents(
    documents: Iterable[Document], filters: FilterParams, near: NearDuplicateParams, ledger: Ledger
) -> list[Document]:
    """Return the documents that are kept, in the order of their hashed ids."""
    passed: list[Document] = []
    for document in track(documents, "cleaning documents"):
        ledger.inputs["documents"] += 1
        text = ledger.clean_text(document.text)
        if problem := judge_text(text, filters):
            ledger.reject(document, *problem)
        else:
            passed.append(replace(document, text=text))
    # Hashed, any prefix is a fair sample; and neither sources' names nor lengths decide which copy stays.
    passed.sort(key=lambda one: (hash_id("order", one.id), one.text))
    unique = drop_exact(passed, lambda one: one.text, ledger)
    kept = []
    for document, found in zip(unique, find_near([one.text for one in unique], near), strict=True):
        if found is None:
            kept.append(document)
        else:
            detail = to_json({"kept": unique[found[0]].id, "similarity": round(found[1], 3)})
            ledger.reject(document, "near_duplicate", detail)
    return kept


def drop_exact(records: Sequence[T], text_of: Callable[[T], str], ledger: Ledger) -> list[T]:
    """Return the records without those whose words were seen before; rejects name the id that is kept."""
    kept = []
    for record, place in zip(records, find_exact(map(text_of, records)), strict=True):
        if place is None:
            kept.append(record)
        else:
            ledger.reject(record, "exact_duplicate", to_json({"kept": records[place].id}))
    return kept


def clean_conversations(conversations: Iterable[Conversation], ledger: Ledger) -> list[Conversation]:
    """Return the conversations that end in an answer and hold no empty message, by id."""
    passed = []
    for one in sorted(conversations, key=lambda one: one.id):
        ledger.inputs["conversations"] += 1
        messages = ledger.clean_messages(one.messages)
        if not all(message["content"] for message in messages):
            ledger.reject(one, "empty_message")
        elif not messages or messages[-1]["role"] != "assistant":
            ledger.reject(one, "no_answer", "the last message is not the assistant's")
        else:
            passed.append(replace(one, messages=messages))
    return drop_exact(passed, lambda one: _join(one.messages), ledger)


def clean_preferences(preferences: Iterable[Preference], ledger: Ledger) -> list[Preference]:
    """Return the preferences whose two answers are filled and differ, by id."""
    passed = []
    for one in sorted(preferences, key=lambda one: one.id):
        ledger.inputs["preferences"] += 1
        prompt = ledger.clean_messages(one.prompt)
        chosen, rejected = ledger.clean_text(one.chosen), ledger.clean_text(one.rejected)
        if not prompt or not all(message["content"] for message in prompt):
            ledger.reject(one, "empty_message")
        elif not chosen or not rejected:
            ledger.reject(one, "empty_answer", "chosen" if not chosen else "rejected")
        elif chosen == rejected:
            ledger.reject(one, "same_answers")
        else:
            passed.append(replace(one, prompt=prompt, chosen=chosen, rejected=rejected))
    return drop_exact(passed, lambda one: "\n".join([_join(one.prompt), one.chosen, one.rejected]), ledger)


def clean_questions(questions: Iterable[Question], ledger: Ledger) -> list[Question]:
    """Return the questions with four different options, by id."""
    passed = []
    for one in sorted(questions, key=lambda one: one.id):
        ledger.inputs["questions"] += 1
        options = [ledger.clean_text(option) for option in one.options]
        if len(set(options)) < len(one.options) or not all(options):
            ledger.reject(one, "options_not_distinct")
            continue
        question, blanked = ledger.clean_text(one.question), ledger.clean_text(one.blanked)
        passed.append(replace(one, question=question, blanked=blanked, options=options))
    unique = drop_exact(passed, lambda one: "\n".join([one.question, *one.options]), ledger)
    return drop_repeated(unique, ledger)


def drop_repeated(questions: Sequence[Question], ledger: Ledger) -> list[Question]:
    """Return the questions, by id, without those that another edition of a text asks again with other options.

    The four questions on the same options go together: only whole fours are without a clue.
    """
    fours: dict[frozenset[str], list[Question]] = {}
    for one in questions:
        fours.setdefault(frozenset(one.options), []).append(one)
    asked: set[str] = set()
    for four in fours.values():
        again = sorted(asked.intersection(one.id for one in four))
        if again:
            for one in four:
                ledger.reject(one, "asked_before", to_json({"kept": again[0]}))
            four.clear()
        asked.update(one.id for one in four)
    return sorted((one for four in fours.values() for one in four), key=lambda one: one.id)


def _join(messages: Iterable[Message]) -> str:
    return "\n".join(f"{one['role']} {one['content']}" for one in messages)
