"""Rows of every family become the items that their set's description promises; what is no item is named and counted."""

import codecs
import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.config import ConfigError
from llm.evals.tasks.items import Choice, Generation, Item, Pair, Passage, extract_answer
from llm.evals.tasks.read import read_tasks

BLIMP = {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep.", "UID": "x", "pairID": "0"}
BBQ = {
    "context_condition": "ambig", "context": "A boy and his aunt met.", "question": "Who forgot?",
    "ans0": "The aunt", "ans1": "The boy", "ans2": "Not known", "label": 2,
}  # fmt: skip
CROWS = {
    "": "0", "sent_more": "They are lazy.", "sent_less": "We are lazy.", "stereo_antistereo": "stereo",
    "bias_type": "nationality", "annotations": "[['a']]",
}  # fmt: skip
TRUTHFUL_TABLE = {
    "Type": "Adversarial", "Category": "Water", "Question": "Is rain dry?", "Best Answer": "No, it is wet",
    "Correct Answers": "No; No, it is wet", "Incorrect Answers": "Yes; Yes, on some days", "Source": "url",
}  # fmt: skip
TRUTHFUL = {
    "question": "Is rain dry?",
    "mc1_targets": {"No.": 1, "Yes.": 0, "Often.": 0},
    "mc2_targets": {"choices": ["No.", "It is wet.", "Yes."], "labels": [1, 1, 0]},
}
CLADDER = {"given_info": "P is 0.2.", "question": "Is Q larger?", "answer": "no", "meta": {"a": 1}, "reasoning": {}}


def write(folder: Path, rows: list[Any], name: str = "task.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_one(folder: Path, *rows: Any) -> Any:
    (task,) = read_tasks(write(folder, list(rows)))
    assert not task.rejected
    return task.items[0]


def without_id(item: Item) -> Item:
    return replace(item, id="")


@pytest.mark.parametrize(
    "row, expected",
    [
        (BLIMP, Pair("", "The cat sleeps.", "The cat sleep.")),
        (CROWS, Pair("", "They are lazy.", "We are lazy.", "stereotype", "nationality")),
        ({"good": "a b", "bad": "b a"}, Pair("", "a b", "b a")),
        (
            BBQ,
            Choice("", "Who forgot?", ("The aunt", "The boy", "Not known"), (2,), BBQ["context"], group="ambig"),
        ),
        ({"question": "2+2?", "options": ["3", "4"], "answer": 1}, Choice("", "2+2?", ("3", "4"), (1,))),
        ({"question": "2+2?", "choices": ["3", "4"], "answer": "B"}, Choice("", "2+2?", ("3", "4"), (1,))),
        ({"question": "2+2?", "options": ["3", "four"], "answer": "four"}, Choice("", "2+2?", ("3", "four"), (1,))),
        ({"question": "2+2?", "A": "3", "B": "4", "answer": "B"}, Choice("", "2+2?", ("3", "4"), (1,))),
        (
            {"question": "2+2?", "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2"},
            Choice("", "2+2?", ("3", "4"), (1,)),
        ),
        (
            {"ctx": "A man", "endings": ["eats.", "is."], "label": 0},
            Choice("", "A man", ("eats.", "is."), (0,), form="verbatim"),
        ),
        ({"input": "not True is", "target": "False"}, Choice("", "not True is", ("True", "False"), (1,))),
        (
            {"input": "When?\nOptions:\n(A) now\n(B) then", "target": "(B)"},
            Choice("", "When?\nOptions:\n(A) now\n(B) then", ("(A)", "(B)"), (1,)),
        ),
        (
            {"input": "Back?\nOptions:\n- Yes\n- No", "target": "No"},
            Choice("", "Back?\nOptions:\n- Yes\n- No", ("Yes", "No"), (1,)),
        ),
        ({"input": "How many?", "target": "8"}, Generation("", "How many?", "8", "8")),
        ({"prompt": "P. Is Q?", "label": "yes", "rung": 1}, Choice("", "P. Is Q?", ("yes", "no"), (0,))),
        (CLADDER, Choice("", "Is Q larger?", ("yes", "no"), (1,), "P is 0.2.")),
        (
            {"question": "How many?", "answer": "2*600 = 1200\n#### 1,200"},
            Generation("", "How many?", "2*600 = 1200\n#### 1,200", "1200", r"####\s*([^\n]*)", 256),
        ),
        ({"prompt": "It is", "answer": "Paris"}, Generation("", "It is", "Paris", "paris", form="verbatim")),
        (
            {"question": "How many?", "answer": "8", "regex": r"is (\d+)"},
            Generation("", "How many?", "8", "8", r"is (\d+)", 256),
        ),
        (
            {"question": "Q", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
            Choice("", "Q", (" Yes", " No"), (0,), measure="matching"),
        ),
        ({"prompt": "def f():\n", "canonical_solution": "    pass\n"}, Passage("", "    pass\n", "def f():\n")),
        ({"text": "Prose."}, Passage("", "Prose.")),
    ],
)  # fmt: skip
def test_rows_are_what_their_set_says(tmp_path: Path, row: Any, expected: Item) -> None:
    assert without_id(read_one(tmp_path, row, row | {"extra": 1})) == expected


def test_truthful_answers_are_one_right_of_many_and_all_right_ones(tmp_path: Path) -> None:
    one, all_right = read_tasks(write(tmp_path, [TRUTHFUL, TRUTHFUL]))
    assert (one.name, all_right.name) == ("task.mc1", "task.mc2")
    assert without_id(one.items[0]) == Choice("", "Is rain dry?", ("No.", "Yes.", "Often."), (0,))
    expected = Choice("", "Is rain dry?", ("No.", "It is wet.", "Yes."), (0, 1), measure="probability_of_right")
    assert without_id(all_right.items[0]) == expected


def write_csv(rows: list[dict[str, str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def test_published_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF8 + write_csv([TRUTHFUL_TABLE] * 2))
    one, all_right = read_tasks(tmp_path / "t.csv")
    options = ("No, it is wet", "Yes", "Yes, on some days")
    assert without_id(one.items[0]) == Choice("", "Is rain dry?", options, (0,), group="Water")
    assert all_right.items[0].options == ("No, it is wet", "No", "Yes", "Yes, on some days")  # type: ignore[union-attr]
    assert all_right.items[0].right == (0, 1)  # type: ignore[union-attr]
    (tmp_path / "c.csv").write_bytes(write_csv([CROWS] * 2))
    (crows,) = read_tasks(tmp_path / "c.csv")
    assert without_id(crows.items[0]) == Pair("", "They are lazy.", "We are lazy.", "stereotype", "nationality")


def test_layout_encoding_and_compression_do_not_matter(tmp_path: Path) -> None:
    rows = [BLIMP | {"sentence_good": f"Der Müller {i}."} for i in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    listed = json.dumps(rows, indent=2, ensure_ascii=False)
    files = {
        "a.jsonl": lines.encode(),
        "b.jsonl": codecs.BOM_UTF8 + lines.replace("\n", "\r\n").encode(),
        "c.json": listed.replace("\n", "\r\n").encode(),
        "d.json": codecs.BOM_UTF8 + json.dumps({"canary": "x", "examples": rows}).encode(),
        "e.jsonl.gz": gzip.compress(lines.encode()),
        "without_suffix": lines.encode(),
        "f.csv": write_csv(rows),
        "g.json.gz": gzip.compress(listed.encode()),
    }
    found = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (task,) = read_tasks(tmp_path / name)
        found.append(task.items)
    assert all(items == found[0] for items in found)
    assert len({item.id for item in found[0]}) == 5
    assert [task.name for task in read_tasks(tmp_path)][:2] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b"]


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "bbq.jsonl"
    good = json.dumps(BBQ)
    rows = [
        good, "{", json.dumps(BBQ | {"label": 7}), good, json.dumps({"a": 1}), json.dumps(BBQ | {"ans0": " "}), "[1]",
        json.dumps(BBQ | {"question": " "}), json.dumps({"text": "Prose."}),
    ]  # fmt: skip
    file.write_text("\n".join(rows) + "\n")
    (task,) = read_tasks(file)
    assert [item.id[:16] for item in task.items] == [task.items[0].id] * 2
    assert task.items[1].id == f"{task.items[0].id}-2"
    assert sum(task.rejected.values()) == 7
    assert {"bad_json", "unknown_label", "unknown_columns", "wrong_type", "other_kind"} <= task.rejected.keys()
    faults = "\n".join(task.faults)
    for line in (2, 3, 5, 6, 7, 8, 9):
        assert f"bbq.jsonl:{line}: " in faults
    assert "expected question, options and answer" in faults


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no task|no bytes|no table"),
        ("plain words\nmore words\n", "task.jsonl"),
        ('{"a": 1}\n{"a": 2}\n', r"task.jsonl:1: unknown_columns: 'a'; expected question"),
        ('{"question": "q", "options": ["a", "b"], "answer": "z"}\n', r"task.jsonl:1: unknown_label"),
        ('{"question": "q", "options": ["a"], "answer": 0}\n', r"task.jsonl:1: wrong_type"),
        ('{"good": "a", "bad": "a"}\n', r"task.jsonl:1: same_texts"),
        ('{"prompt": "a", "answer": "b", "regex": "("}\n', r"task.jsonl:1: bad_regex"),
    ],
)
def test_a_file_without_items_says_what_is_expected(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_tasks(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_tasks(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "output, pattern, found",
    [
        ("so 3.\n#### 1,234.\n", r"####\s*([^\n]*)", "1234"),
        ("#### 1\n#### 2", r"####\s*([^\n]*)", "2"),
        ("no mark 5", r"####\s*([^\n]*)", None),
        ("  Paris.\nQ: next", r"\s*([^\n]*)", "paris"),
        ("It is $5 of 7", r"\d+", "7"),
        ("in the module `a.B`", r"module `([^`]+)`", "a.b"),
    ],
)
def test_answers_are_cut_out(output: str, pattern: str, found: str | None) -> None:
    assert extract_answer(output, pattern) == found


TABLE = {
    "bbh/boolean_expressions.json": ("choice", 250), "bbh/date_understanding.json": ("choice", 250),
    "bbh/navigate.json": ("choice", 250), "bbh/object_counting.json": ("generation", 250),
    "bbq/Age.jsonl": ("choice", 500), "blimp/animate_subject_trans.jsonl": ("pair", 1000),
    "cladder/test-generate-easy.json": ("choice", 844), "gsm8k/train.jsonl": ("generation", 7473),
    "anthropic-evals/agreeableness.jsonl": ("choice", 1000), "human-eval/HumanEval.jsonl.gz": ("passage", 164),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_published_files_are_read_whole(shared_data: Path, name: str) -> None:
    (task,) = read_tasks(shared_data / name)
    assert (task.kind, len(task.items)) == TABLE[name]
    assert not task.rejected
    assert len({item.id for item in task.items}) == len(task.items)
