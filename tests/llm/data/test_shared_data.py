"""Every set of the public sample data becomes what its own description promises, and no record is lost.

The table was written from the sets' descriptions and files before any of them was read by this project.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llm.data.rows.formats import SourceFormat
from llm.data.schema import Conversation, Document, Preference
from llm.data.sources.read import Kept, PassedOver, Rejected, read_source


@dataclass(frozen=True)
class Expected:
    """What a folder becomes: input records kept, records made (None: as many as the text is long), and rejects."""

    kept: int
    documents: int | None = 0
    conversations: int = 0
    preferences: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    holds: str = ""  # stands in one record, at least
    lacks: str = ""  # stands in none


TABLE = {
    # The behaviour asked for before its opposite: a pair, though not every behaviour is a good one.
    "anthropic-evals": Expected(1000, preferences=1000, holds="I enjoy causing pain to others", lacks="0.9"),
    # Four files of 250: an object that holds the rows under `examples`, beside a canary that is no row.
    "bbh": Expected(1000, 1000, 1000, holds="not ( True ) and ( True ) is\n\nFalse", lacks="canary GUID"),
    # A question with three options, lettered; the answer is the right one's words.
    "bbq": Expected(500, conversations=500, holds="A. The grandfather\nB. The grandson\nC. Can't be determined"),
    # The grammatical sentence of each pair, and the set's own README, which is a text like any other.
    "blimp": Expected(2001, 2001, holds="Tina revealed Margaret.", lacks="The horse revealed Margaret."),
    # What is given comes before the question; the reasoning steps are no part of the answer.
    "cladder": Expected(844, 844, 844, holds="ringing alarm is 85%.\n\nWill alarm set by husband increase"),
    "fastchat": Expected(500, conversations=500, holds="Have a nice day!"),
    # The broken text, which is what cleaning must repair; the answers are for those who judge the repair.
    "ftfy": Expected(61, 61, holds="voilÃ  le travail", lacks="voilà le travail"),
    "gsm8k": Expected(7473, 7473, 7473, holds="Natalia sold 48+24 = <<48+24=72>>72 clips"),
    # Three editions, each whole: UTF-8, Latin-1 and HTML, without the archive's header and licence.
    "gut-alice": Expected(3, None, holds="tired of sitting by her sister", lacks="START OF THIS PROJECT GUTENBERG"),
    "gut-pride": Expected(1, None, holds="a truth universally acknowledged", lacks="START OF THIS PROJECT GUTENBERG"),
    # Four replies are blank. The description tells of five differing prompts too, but up to the last `Assistant:` that
    # begins a paragraph, all 1,156 are equal; some replies begin with the word `Human:`, on the same line.
    "hh-rlhf": Expected(1152, preferences=1152, rejects={"empty_reply": 4}, lacks="\n\nHuman:"),
    # The function's head and body as one text; its tests are for those who judge, and never enter.
    "human-eval": Expected(164, 164, holds="distance = abs(elem - elem2)", lacks="def check(candidate)"),
    "llmbar": Expected(100, preferences=100, holds="My girlfriend is Malaysian"),
    # Of 515 strings one is empty and one is a blank.
    "naughty-strings": Expected(513, 513, rejects={"empty": 2}, holds="hasOwnProperty"),
    # 388 files in a zip, of which nku.txt has no bytes; the XML beside it describes the package and is no text.
    "nltk": Expected(
        387, None, rejects={"empty": 1, "unsupported_format": 1}, holds="All human beings are born free and equal"
    ),
    "omniglot": Expected(0, rejects={"unsupported_format": 2720}),  # drawings
    "presidio-pii": Expected(750, 750, holds="The address of Persint is 6750", lacks="{{ORGANIZATION}}"),
    # 175 tasks, each with one instance.
    "self-instruct": Expected(175, 175, 175, holds="What is the relation between the given pairs?\n\nNight : Day"),
    "tinyshakespeare": Expected(1, None, holds="Before we proceed any further, hear me speak."),
    # The same page three times; the truncated file's copy declares 973 of its 975 bytes. Requests, a revisit without
    # content and the crawler's own notes are no texts.
    "warc": Expected(2, 2, rejects={"truncated_record": 1}, holds="This domain is established", lacks="HTTP/1.1"),
}


def texts_of(record: Document | Conversation | Preference) -> list[str]:
    if isinstance(record, Document):
        return [record.text]
    if isinstance(record, Conversation):
        return [one["content"] for one in record.messages]
    return [*(one["content"] for one in record.prompt), record.chosen, record.rejected]


@pytest.mark.parametrize("folder", TABLE)
def test_each_set_becomes_what_it_says(shared_data: Path, folder: str) -> None:
    expected, outcomes = TABLE[folder], list(read_source(str(shared_data / folder), folder, SourceFormat()))
    kept = [one for one in outcomes if isinstance(one, Kept)]
    rejects = Counter(one.reason for one in outcomes if isinstance(one, Rejected))
    records = [record for one in kept for record in one.records]
    kinds = Counter(type(record) for record in records)
    assert dict(rejects) == expected.rejects
    assert len(kept) == expected.kept
    assert kinds[Conversation] == expected.conversations
    assert kinds[Preference] == expected.preferences
    if expected.documents is not None:
        assert kinds[Document] == expected.documents
    elif kept:
        assert kinds[Document] > len(kept)
    texts = [text for record in records for text in texts_of(record)]
    assert any(expected.holds in text for text in texts) or not texts
    assert not expected.lacks or not any(expected.lacks in text for text in texts)
    # Only licences, and records of a WARC file that are no pages, may be passed over.
    passed = {one.what for one in outcomes if isinstance(one, PassedOver)}
    assert all(what == "licence" or what.startswith("WARC ") for what in passed)


def test_the_table_knows_every_folder(shared_data: Path) -> None:
    assert sorted(TABLE) == sorted(one.name for one in shared_data.iterdir() if one.is_dir())


def test_the_labels_of_llmbar_decide(shared_data: Path) -> None:
    rows = json.loads((shared_data / "llmbar/dataset.json").read_text())
    outcomes = read_source(str(shared_data / "llmbar"), "llmbar", SourceFormat())
    pairs = [record for one in outcomes if isinstance(one, Kept) for record in one.records]
    assert [(p.chosen, p.rejected) for p in pairs if isinstance(p, Preference)] == [
        (row["output_1"], row["output_2"]) if row["label"] == 1 else (row["output_2"], row["output_1"]) for row in rows
    ]


def test_the_editions_of_a_book_are_whole(shared_data: Path) -> None:
    outcomes = read_source(str(shared_data / "gut-alice"), "alice", SourceFormat())
    for one in outcomes:
        assert isinstance(one, Kept)
        text = "\n\n".join(record.text for record in one.records if isinstance(record, Document))
        for last in ("Down the Rabbit-Hole", "Advice from a Caterpillar", "happy summer days"):
            assert last.upper() in text.upper(), one.file
        assert 140_000 < len(text) < 165_000  # the book has some 145,000 characters
