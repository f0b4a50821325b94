"""Rows become the records that their columns promise, and bad ones are refused with a reason."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm.data.rows.formats import SHAPES, SourceFormat
from llm.data.rows.read import READERS, read_row
from llm.data.schema import BadRecord, Conversation, Document, Preference, RecordWriter

AUTO = SourceFormat()
ASK = {"role": "user", "content": "Hi?"}
REPLY = {"role": "assistant", "content": "Hello."}
Q_AND_A = [("user", "Hi?"), ("assistant", "Hello.")]


def read(row: object, **fmt: Any) -> list[Any]:
    return read_row(row, "mine", "rows.jsonl", 7, SourceFormat(**fmt))


def talk(record: Conversation) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in record.messages]


def show(record: Document | Conversation | Preference) -> Any:
    """What a record says, in a form that a table of expectations can hold."""
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Conversation):
        return talk(record)
    prompt = " / ".join(f"{one['role']}: {one['content']}" for one in record.prompt)
    return prompt, record.chosen, record.rejected, record.margin


# Expectations from the published descriptions: OpenAI's chat API, FastChat's ShareGPT, Stanford Alpaca, HH-RLHF,
# TRL's data formats (preference, unpaired), LLMBar, Chatbot Arena, SQuAD, MMLU, ARC, HellaSwag, BBQ, BLiMP.
FAMILIES: list[tuple[str, Any, list[Any]]] = [
    ("a text", "Words.", ["Words."]),
    ("a document", {"text": "Words.", "id": 3}, ["Words."]),
    ("a minimal pair", {"sentence_good": "Cats curl.", "sentence_bad": "Cats curls."}, ["Cats curl."]),
    ("code", {"prompt": "def f():\n", "canonical_solution": "    return 1\n"}, ["def f():\n    return 1\n"]),
    ("messages", {"messages": [ASK, REPLY]}, [Q_AND_A]),
    (
        "messages beat the same as text",
        {"text": "<user>Hi?<assistant>Hello.", "messages": [ASK, REPLY]},
        [Q_AND_A],
    ),
    (
        "content in parts",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}, "You?"]}, REPLY]},
        [[("user", "Hi?\nYou?"), ("assistant", "Hello.")]],
    ),
    (
        "roles by other names, and what is left unanswered at the end",
        {
            "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
            + [{"from": "human", "value": "Bye"}],
            "system": "Be kind.",
        },
        [[("system", "Be kind."), *Q_AND_A]],
    ),
    ("messages as JSON in a cell", {"messages": json.dumps([ASK, REPLY])}, [Q_AND_A]),
    ("a transcript", {"transcript": "\n\nHuman: Hi?\n\nAssistant: Hello."}, [Q_AND_A]),
    (
        "an instruction",
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        [[("user", "Add.\n\n1, 2"), ("assistant", "3")], "Add.\n\n1, 2\n\n3"],
    ),
    (
        "instances",
        {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "4"}]},
        [
            *[[("user", "Add.\n\n1, 2"), ("assistant", "3")], "Add.\n\n1, 2\n\n3"],
            *[[("user", "Add."), ("assistant", "4")], "Add.\n\n4"],
        ],
    ),
    (
        "a question",
        {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
        [[("user", "2+2?"), ("assistant", "2+2=<<2+2=4>>4\n#### 4")], "2+2?\n\n2+2=<<2+2=4>>4\n#### 4"],
    ),
    (
        "a question on a passage, with answers in a list",
        {"context": "Rain.", "question": "Wet?", "answers": {"text": ["yes", "so"], "answer_start": [1, 2]}},
        [[("user", "Rain.\n\nWet?"), ("assistant", "yes")], "Rain.\n\nWet?\n\nyes"],
    ),
    (
        "a truth value as the answer",
        {"passage": "Rain.", "question": "Wet?", "answer": True},
        [[("user", "Rain.\n\nWet?"), ("assistant", "true")], "Rain.\n\nWet?\n\ntrue"],
    ),
    (
        "columns in capitals",
        {"Question": "2+2?", " Answer": 4.0},
        [[("user", "2+2?"), ("assistant", "4.0")], "2+2?\n\n4.0"],
    ),
    (
        "a task with its program and tests",
        {"text": "Add.", "code": "a + b", "test_list": ["assert 1"], "task_id": 3},
        [[("user", "Add."), ("assistant", "a + b")], "Add.\n\na + b"],
    ),
    ("a text with the code of its language", {"text": "Words.", "code": "en"}, ["Words."]),
    ("a number as the answer", {"input": "2+2", "target": 4}, [[("user", "2+2"), ("assistant", "4")], "2+2\n\n4"]),
    (
        "options in columns",
        {"context": "C.", "question": "Q?", "ans0": "a0", "ans1": "a1", "ans2": "a2", "label": 2},
        [[("user", "C.\n\nQ?\n\nA. a0\nB. a1\nC. a2"), ("assistant", "a2")]],
    ),
    (
        "options in a list, the right one by its place",
        {"question": "Q?", "choices": ["x", "y"], "answer": 1},
        [[("user", "Q?\n\nA. x\nB. y"), ("assistant", "y")]],
    ),
    (
        "options in a list, the right one by its place as text",
        {"ctx": "So it", "endings": ["x", "y"], "label": "0"},
        [[("user", "So it\n\nA. x\nB. y"), ("assistant", "x")]],
    ),
    (
        "options with labels",
        {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},
        [[("user", "Q?\n\nA. x\nB. y"), ("assistant", "x")]],
    ),
    ("a pair", {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, [("user: 2+2?", "4", "5", None)]),
    (
        "a pair with a margin",
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 2},
        [("user: 2+2?", "4", "5", 2.0)],
    ),
    (
        "a pair from a table of text, whose answers are JSON",
        {"prompt": "List.", "chosen": '[{"a": 1}]', "rejected": "Human: [", "margin": " 0.5", "system": ""},
        [("user: List.", '[{"a": 1}]', "Human: [", 0.5)],
    ),
    (
        "a pair of talks with a blank system prompt, beside the row's own",
        {
            "chosen": [{"role": "system", "content": ""}, ASK, REPLY],
            "rejected": [ASK, {"role": "assistant", "content": "No."}],
            "system": "Be kind.",
        },
        [("system: Be kind. / user: Hi?", "Hello.", "No.", None)],
    ),
    (
        "a pair of talks",
        {"chosen": [ASK, REPLY], "rejected": [ASK, {"role": "assistant", "content": "No."}]},
        [("user: Hi?", "Hello.", "No.", None)],
    ),
    (
        "a pair of last turns",
        {"prompt": [ASK], "chosen": [REPLY], "rejected": {"from": "gpt", "value": "No."}},
        [("user: Hi?", "Hello.", "No.", None)],
    ),
    (
        "a pair of transcripts",
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: What?\n\nHuman: Hi!\n\nAssistant: Hello.\n\nWell.",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: What?\n\nHuman: Hi!\n\nAssistant: Human: no",
        },
        [("user: Hi? / assistant: What? / user: Hi!", "Hello.\n\nWell.", "Human: no", None)],
    ),
    (
        "a prompt that ends in an open turn",
        {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Hello.", "rejected": " No."},
        [("user: Hi?", " Hello.", " No.", None)],
    ),
    (
        "behaviour that matches",
        {"question": "Do you?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
        [("user: Do you?", " Yes", " No", None)],
    ),
    (
        "a verdict by number",
        {"input": "Q", "output_1": "x", "output_2": "y", "label": 2},
        [("user: Q", "y", "x", None)],
    ),
    (
        "a verdict by letter, and an input beside the prompt",
        {"instruction": "Do.", "input": "It.", "response_a": "x", "response_b": "y", "winner": "model_b"},
        [("user: Do.\n\nIt.", "y", "x", None)],
    ),
    (
        "a verdict from 0",
        {"prompt": "Q", "response_0": "x", "response_1": "y", "better_response_id": 1},
        [("user: Q", "y", "x", None)],
    ),
    (
        "a verdict on talks",
        {
            "conversation_a": [ASK, REPLY],
            "conversation_b": [ASK, {"role": "assistant", "content": "No."}],
            "winner": "model_a",
        },
        [("user: Hi?", "Hello.", "No.", None)],
    ),
    (
        "a tie",
        {"prompt": "Q", "response_a": "x", "response_b": "y", "label": "tie"},
        [("user: Q", "x", "y", 0.0)],
    ),
    ("a good answer from a table of text", {"prompt": "Hi?", "completion": "Hello.", "label": "True"}, [Q_AND_A]),
    ("a good answer", {"prompt": "Hi?", "completion": "Hello.", "label": True}, [Q_AND_A]),
    ("a good last turn", {"prompt": [ASK], "completion": [REPLY], "label": True}, [Q_AND_A]),
]


@pytest.mark.parametrize("row, expected", [row[1:] for row in FAMILIES], ids=[row[0] for row in FAMILIES])
def test_families(row: Any, expected: list[Any]) -> None:
    assert [show(record) for record in read(row)] == expected


LABELLED = {"prompt": "Hi?", "completion": "Hello."}
SIDES = {"prompt": "Q", "response_a": "x", "response_b": "y"}
REFUSED: list[tuple[str, Any]] = [
    ("wrong_type", 7),
    ("wrong_type", None),
    ("wrong_type", ["a", "b"]),
    ("wrong_type", {"text": 7}),
    ("wrong_type", {"text": ["in", "a", "list"]}),
    ("wrong_type", {"prompt": "Q", "chosen": 1, "rejected": "x"}),
    ("wrong_type", {"prompt": "Q", "chosen": "y", "rejected": "x", "margin": [1]}),
    ("wrong_type", {"messages": "not a talk"}),
    ("wrong_type", {"messages": ["Hi?", "Hello."]}),
    ("wrong_type", {"messages": [ASK, {"role": "assistant", "content": 5}]}),
    ("wrong_type", {"instruction": "Add.", "instances": [1]}),
    ("wrong_type", {"question": "Q?", "choices": "ab", "answer": "a"}),
    ("wrong_type", {"question": "Q?", "answer": float("nan")}),
    ("wrong_type", {"question": "Q?", "answer": {"start": 3}}),
    ("missing_column", {}),
    ("missing_column", {"label": 1}),
    ("missing_column", {"text": None}),
    ("missing_column", {"chosen": "x", "rejected": "y"}),
    ("missing_column", {"instruction": "Add.", "instances": [{"input": "1"}]}),
    ("missing_column", {"question": "Q?", "ans0": "x", "ans1": "y", "ans2": None, "D": "z", "label": 2}),
    ("empty", " \n"),
    ("empty", {"text": ""}),
    ("empty_prompt", {"question": " ", "answer": "4"}),
    ("empty_prompt", {"chosen": [REPLY], "rejected": [{"role": "assistant", "content": "No."}], "prompt": " "}),
    ("empty_prompt", {"messages": [REPLY]}),
    ("empty_reply", {"question": "2+2?", "answer": ""}),
    ("empty_reply", {"context": "Rain.", "question": "Why?", "answers": {"text": [], "answer_start": []}}),
    ("empty_reply", {"messages": [ASK, {"role": "assistant", "content": " "}]}),
    ("empty_reply", {"chosen": "\n\nHuman: Hi?\n\nAssistant:", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}),
    ("empty_message", {"messages": [{"role": "user", "content": ""}, REPLY]}),
    ("no_answer", {"messages": [ASK]}),
    ("no_answer", {"chosen": [ASK], "rejected": [ASK]}),
    ("no_messages", {"messages": []}),
    ("bad_json", {"messages": '[{"role": "user", '}),
    ("unknown_role", {"messages": [{"role": "robot", "content": "x"}, REPLY]}),
    ("unknown_role", {"messages": [{"content": "x"}, REPLY]}),
    ("tool_turn", {"messages": [ASK, {"role": "tool", "content": "3"}, REPLY]}),
    ("tool_turn", {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, REPLY]}),
    ("unsupported_part", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, REPLY]}),
    ("differing_prompts", {"chosen": "\n\nHuman: a\n\nAssistant: 1", "rejected": "\n\nHuman: b\n\nAssistant: 2"}),
    ("same_answers", {"prompt": "2+2?", "chosen": "4", "rejected": " 4"}),
    ("bad_margin", {"prompt": "Q", "chosen": "y", "rejected": "x", "margin": "wide"}),
    ("bad_margin", {"prompt": "Q", "chosen": "y", "rejected": "x", "margin": -1}),
    ("bad_margin", {"prompt": "Q", "chosen": "y", "rejected": "x", "margin": float("nan")}),
    ("bad_margin", {"prompt": "Q", "chosen": "y", "rejected": "x", "margin": 10**400}),
    ("unknown_principle", {"prompt": "Q", "chosen": "y", "rejected": "x", "principle": "luck"}),
    ("unknown_label", {**SIDES, "label": "z"}),
    ("unknown_label", {**SIDES, "label": 1}),  # 1 of (0, 1) or of (1, 2)? The columns are called a and b
    ("unknown_label", {**SIDES, "label": True}),
    ("unknown_label", {**SIDES, "label": [1]}),
    ("unknown_label", {**SIDES, "label": {"better": "a"}}),
    ("wrong_type", {**SIDES, "label": float("nan")}),
    ("unknown_label", {**LABELLED, "label": 0.5}),
    ("same_answers", {**SIDES, "response_b": "x ", "label": "a"}),
    ("empty_reply", {**SIDES, "response_b": "", "label": "a"}),
    ("empty_reply", {**LABELLED, "completion": " ", "label": True}),
    ("no_answer", {"conversation_a": [ASK], "conversation_b": [ASK], "winner": "a"}),
    ("unknown_label", {"question": "Q?", "ans0": "x", "ans1": "y", "label": 2}),
    ("unknown_label", {**LABELLED, "label": "toxic"}),
    ("unpaired_label", {**LABELLED, "label": False}),
    ("unpaired_label", {**LABELLED, "label": "false"}),
]


@pytest.mark.parametrize("reason, row", REFUSED, ids=[f"{i}-{row[0]}" for i, row in enumerate(REFUSED)])
def test_refused_rows_say_why(reason: str, row: Any) -> None:
    with pytest.raises(BadRecord) as caught:
        read(row)
    assert caught.value.reason == reason
    assert caught.value.detail


def weigh(*weights: Any) -> dict[str, Any]:
    """Return a talk of as many answers, the first asked by a user who follows a system prompt."""
    return {"messages": [{"role": "system", "content": " "}, ASK, *({**REPLY, "weight": one} for one in weights), ASK]}


@pytest.mark.parametrize(
    "row, expected",
    [
        (weigh(0, 1), [0, 1]),  # OpenAI's fine-tuning format
        (weigh(0.1, None, 10), [0.1, 1, 10]),
        ({"messages": json.dumps(weigh(2.5)["messages"])}, [2.5]),
        (weigh(1, 1.0), None),
        (weigh(None), None),
    ],
)
def test_weights_of_answers(row: Any, expected: Any) -> None:
    (record,) = read(row)
    assert record.weights == expected
    assert [one.keys() for one in record.messages] == [{"role", "content"}] * len(record.messages)


@pytest.mark.parametrize("weight", [-0.1, 10.1, True, "1", float("nan"), float("inf"), 10**400, [1]])
def test_other_weights_are_refused(weight: Any) -> None:
    with pytest.raises(BadRecord, match="bad_weight: .*from 0 to 10"):
        read(weigh(1, weight))


def test_weights_that_teach_nothing_or_of_a_user_are_refused() -> None:
    with pytest.raises(BadRecord, match="bad_weight: a message of the user has one"):
        read({"messages": [{**ASK, "weight": 1}, REPLY]})
    with pytest.raises(BadRecord, match="nothing_to_learn"):
        read(weigh(0, 0.0))


def test_the_columns_can_be_named_and_the_kind_too() -> None:
    row = {"context": "Named text.", "text": "other", "q": "Why?", "a": "So."}
    assert [one.text for one in read(row, columns={"text": "context"})] == ["Named text."]
    assert show(read(row, columns={"question": "q", "answer": "a"})[0])[-1] == ("assistant", "So.")
    assert [show(one) for one in read({"text": "x", "messages": [ASK, REPLY]}, kind="text")] == ["x"]
    assert show(read({"prompt": "Hi?", "response": "Hello.", "label": "spam"}, kind="qa")[0]) == Q_AND_A
    with pytest.raises(BadRecord, match="expected body; filled columns: 'text'"):
        read({"text": "x"}, columns={"text": "body"})


@pytest.mark.parametrize("fmt", [{"columns": {"txt": "body"}}, {"kind": "chat", "columns": {"text": "body"}}])
def test_columns_that_no_kind_has_are_refused_at_once(fmt: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no kind of row has these; there are pair: prompt"):
        SourceFormat(**fmt)


def test_every_declared_kind_has_a_reader() -> None:
    assert {shape.kind for shape in SHAPES} == set(READERS)


def test_what_answers_one_question_is_of_one_group() -> None:
    said = read({"question": "Hi?", "answer": "Hello."})
    pair = read({"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."})
    chat = read({"messages": [{"role": "system", "content": "Be kind."}, ASK, REPLY]})
    assert len({one.group for one in [*said, *pair, *chat]}) == 1
    assert len({one.id for one in [*said, *pair, *chat]}) == 4


def test_documents_say_where_they_are_from() -> None:
    (one,) = read({"text": "Words.", "url": "https://example.org/a", "license": "MIT"}, license="unknown")
    assert (one.url, one.license, json.loads(one.meta)) == (
        *("https://example.org/a", "MIT"),
        {"file": "rows.jsonl", "offset": 7},
    )
    (one,) = read_row(
        "Words.", "mine", "a.html", 0, SourceFormat(license="CC0"), url="https://x.org", removed="gutenberg"
    )
    assert (one.url, one.license, json.loads(one.meta)["removed"]) == ("https://x.org", "CC0", "gutenberg")


def test_long_rows_are_cut_into_passages() -> None:
    documents = read({"text": "\n\n".join(f"Paragraph {i}. " + "words " * 40 for i in range(200))})
    assert len(documents) > 5
    places = [json.loads(one.meta).get("passage", 0) for one in documents]
    assert places == sorted(set(places))
    assert len({one.group for one in documents}) == len(documents)


def test_a_text_of_newlines_costs_one_pass() -> None:
    """Patterns that try again at each newline would take hours."""
    blank = "\n" * 300_000
    (pair,) = read({"prompt": "Q", "chosen": blank + "x", "rejected": "Human:" + blank})
    assert pair.chosen.endswith("x")
    (chat,) = read({"transcript": f"Human: a{blank}b\n\nAssistant: c"})
    assert [len(one["content"]) for one in chat.messages] == [300_002, 1]


NAMES = sorted({name for shape in SHAPES for names in shape.columns.values() for name in names})
HOSTILE = ["user", "gpt", "tool", "\n\nHuman: a\n\nAssistant: b", '[{"', "half a pair \ud800", "tie", "1", "A"]
SAID = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(HOSTILE)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | SAID | st.binary(max_size=3)
KEYS = st.sampled_from(["role", "from", "content", "value", "text", "type", "label", "input", "output"]) | SAID
NESTED = st.recursive(
    SCALARS, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(KEYS, deeper, max_size=3), max_leaves=8
)
TALKS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": SAID}), max_size=4
)
VALUES = SAID | TALKS | NESTED
ROWS = st.dictionaries(st.sampled_from(NAMES) | SAID, VALUES, max_size=6)
SHAPED = st.sampled_from(SHAPES).flatmap(
    lambda shape: st.fixed_dictionaries({names[0]: VALUES for names in shape.needs.values()})
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(NESTED | ROWS | SHAPED, min_size=1, max_size=4))
def test_any_value_becomes_records_that_can_be_written_or_is_refused(tmp_path_factory: Any, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("out")
    writer = RecordWriter(folder, "mine")
    for number, row in enumerate(rows):
        try:
            records = read_row(row, "mine", "rows.jsonl", number, AUTO)
        except BadRecord as error:
            writer.reject("rows.jsonl", number, error.reason, str(error))
        else:
            assert records
            writer.add(records)
    ledger = writer.close()
    assert ledger["kept"] + ledger["rejected"] == ledger["input"] == len(rows)
    assert pq.read_metadata(folder / "rejects.parquet").num_rows == ledger["rejected"]


@pytest.mark.parametrize("row", ["half a pair: \ud800 on", {"text": "half a pair: \ud800 on"}])
def test_lone_surrogates_are_replaced(row: Any) -> None:
    assert [one.text for one in read(row)] == ["half a pair: ? on"]
