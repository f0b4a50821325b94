"""Questions, conversations and preferences about functions; and questions on a user's own text."""

from collections import Counter, defaultdict

import pytest

from llm.data.builtin.chats import Function, build_conversations, list_functions
from llm.data.builtin.docstrings import Entry
from llm.data.builtin.preferences import build_preferences, invent, truncate
from llm.data.builtin.pydocs import DocumentedModule
from llm.data.questions import ContinuationSample, Item, ask_continuations, build_questions, gather_fours
from llm.data.schema import Document, take_sample

VERBS = ("Return", "Compute", "Remove", "Print", "Draw", "Sort", "Close", "Open")
NOUNS = ("wheel", "stone", "sack", "grain", "river", "miller")


def make_module(package: str, name: str) -> DocumentedModule:
    entries = [
        Entry("function", f"{verb.lower()}_{noun}", ("size",), f"{verb} the {noun} of the mill {name}.")
        for verb in VERBS
        for noun in NOUNS
    ]
    private = Entry("function", "_hidden", (), "Nobody may see this sentence.")
    return DocumentedModule(package, name, "MIT", "", "1.0", (*entries, private))


@pytest.fixture
def functions() -> list[list[Function]]:
    return [list_functions(make_module("mills", f"mills.part{i}")) for i in range(3)]


def test_each_option_of_a_four_is_right_once(functions: list[list[Function]]) -> None:
    """So a model that is not told the name, and always prefers one option, is right in exactly a quarter."""
    questions = build_questions(functions, "pydocs")
    assert len(questions) >= 100
    fours = defaultdict(list)
    for one in questions:
        assert len(set(one.options)) == 4
        fours[frozenset(one.options)].append(one)
    for options, group in fours.items():
        assert sorted(one.options[one.answer] for one in group) == sorted(options)
        assert len({one.blanked for one in group}) == 1
        assert len({one.question for one in group}) == 4


def test_options_are_alike_in_length_and_evenly_placed(functions: list[list[Function]]) -> None:
    questions = build_questions(functions, "pydocs")
    for one in questions:
        right = len(one.options[one.answer])
        assert all(abs(len(option) - right) <= 0.2 * right for option in one.options)
        assert one.options[one.answer].endswith(f"{one.blanked.split('`')[1]}.")  # the same module's
    places = Counter(one.answer for one in questions)
    assert min(places.values()) > 0.15 * len(questions)


def test_ambiguous_options_are_left_out() -> None:
    items = [Item(f"q{i}", text) for i, text in enumerate(["Same words.", "same words", "aaaa bbb", "cccc ddd"])]
    assert gather_fours(items, "") == []


def test_continuations_stay_within_a_passage() -> None:
    sentences = [f"The {noun} was {verb.lower()}ed by the old man." for verb in VERBS for noun in NOUNS]
    documents = [
        Document(f"d{i}", " ".join(sentences[i * 24 : i * 24 + 24]), "book", "", "", "{}", f"d{i}") for i in range(2)
    ]
    sample = ContinuationSample("book")
    sample.add(documents)
    questions = sample.take()
    assert len(questions) >= 16
    for one in questions:
        text = documents[int(one.group[1:])].text
        context = one.question.removeprefix("Which sentence follows this one? ")
        assert f"{context} {one.options[one.answer]}" in text
        assert all(option in text for option in one.options)
        assert context not in one.blanked


@pytest.mark.parametrize("limit", [1, 50, 97, 10_000])
def test_questions_of_a_stream_are_those_of_all_documents_at_once(limit: int) -> None:
    """Whatever the order, and however many there are; a text that comes twice is asked about once."""
    words = [f"{verb} {noun}" for verb in VERBS for noun in NOUNS]
    documents = []
    for i in range(60):
        text = " ".join(f"{words[(i + k) % 48]} number {i} is at hand." for k in range(4 + i % 20))
        documents.append(Document(f"d{i}", text, "book", "", "", "{}", f"g{i // 2}"))
    asked = [one for document in documents for one in ask_continuations(document, "book")]
    for order in (documents, documents[::-1], documents * 2):
        sample = ContinuationSample("book", limit)
        for document in order:
            sample.add([document])
        assert sample.take() == take_sample(asked, limit, "group")
        assert sample.size <= limit


def test_conversations_are_varied_and_alternate(functions: list[list[Function]]) -> None:
    conversations = build_conversations(functions, "chat")
    assert len({one.messages[0]["content"].split("`")[0] for one in conversations}) > 10
    for one in conversations:
        assert [m["role"] for m in one.messages] == ["user", "assistant"] * (len(one.messages) // 2)
        assert "Nobody" not in one.messages[1]["content"]
    assert any(len(one.messages) > 2 for one in conversations)


def test_preferences_of_three_kinds_differ_from_what_is_chosen(functions: list[list[Function]]) -> None:
    pairs = build_preferences(functions, "chat")
    assert set(Counter(one.kind for one in pairs)) == {"sibling", "invented", "truncated"}
    assert all(one.chosen != one.rejected for one in pairs)
    for one in pairs:
        if one.kind == "truncated":
            assert one.chosen.startswith(one.rejected)


def test_invented_words_come_from_the_same_package() -> None:
    """Else a training pair could hold words of a held-out package."""
    others = make_module("ships", "ships")
    entries = tuple(Entry(e.kind, e.name, (), e.text.replace("mill", "vessel")) for e in others.entries)
    modules = [make_module("mills", "mills"), DocumentedModule("ships", "ships", "MIT", "", "1.0", entries)]
    for one in build_preferences([list_functions(module) for module in modules], "chat"):
        assert ("vessel" in one.rejected) <= (one.group == "ships")


def test_worse_answers_by_hand() -> None:
    assert truncate("Return the size of the sack.", 0.0) == "Return the size"
    assert truncate("Two words.", 0.9) == ""
    assert invent("Return the size of the sack.", "Close the gate before the river rises.", 0.0) == (
        "Return the size the river rises."
    )
    assert invent("Return the number of sacks.", "Close the gate before noon.", 0.9) == ("Close the before of sacks.")


def test_a_sample_does_not_depend_on_order(functions: list[list[Function]]) -> None:
    rows = build_conversations(functions, "chat")
    assert take_sample(rows, 20) == take_sample(rows[::-1], 20)
    assert len(take_sample(rows, 20)) == 20
    assert {r.id for r in take_sample(rows, 10)} <= {r.id for r in take_sample(rows, 20)}
