"""The command on folders of other families: table, JSON, items, comparison, contamination, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.data.schema import Conversation, Document, Preference, write_rows
from llm.evals.__main__ import main
from llm.evals.tasks.contamination import find_contaminated
from llm.evals.tasks.items import Generation, Item, Pair
from tests.llm.evals.foreign_models import write_model

ROOT = Path(__file__).resolve().parents[3]
LEAKED = "the miller of the old mill by the river opens the heavy sluice long before dawn on every single market day"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for family in ("gpt2", "llama"):
        made[family] = tmp_path_factory.mktemp(family)
        write_model(made[family], family)
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows: dict[str, list[dict[str, Any]]] = {
        "choices": [{"question": f"Is {i} odd?", "options": ["yes", "no"], "answer": (i + 1) % 2} for i in range(12)],
        "pairs": [{"good": f"The cat {i} sleeps.", "bad": f"The cat {i} sleep."} for i in range(11)] + [{"good": "x"}],
        "answers": [{"question": f"{i}+1?", "answer": f"#### {i + 1}"} for i in range(5)],
        "texts": [{"text": "The wheel turns until noon. " * 8}, {"text": LEAKED}],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main([str(one) for one in arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("chat", ["--chat-template", "--no-chat-template"])
def test_every_kind_on_every_family(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tasks: Path, family: str, chat: str
) -> None:
    options = ["--model", folders[family], "--tasks", tasks, "--few-shot", 2, "--seed", 3, chat]
    report = json.loads(run(capsys, *options, "--json"))
    assert report["chat_template"] is (chat == "--chat-template")
    found = {name.partition("/")[2]: task for name, task in report["tasks"].items()}
    measures = {"choices": "accuracy_per_char", "pairs": "accuracy", "answers": "exact_match", "texts": "bits_per_byte"}
    sizes = {"choices": 12, "pairs": 11, "answers": 5, "texts": 2}
    assert {name: found[name][measure]["n"] for name, measure in measures.items()} == sizes
    assert {name: task["few_shot"] for name, task in found.items()} == dict.fromkeys(sizes, 0) | {
        "choices": 2,
        "answers": 2,
    }
    assert all(task["seed"] == 3 for task in found.values())
    assert all(
        task[m]["low"] <= task[m]["value"] <= task[m]["high"]
        for task, m in zip(found.values(), measures.values(), strict=False)
        if m in task
    )
    assert found["pairs"]["rejected"] == {"unknown_columns": 1}
    table = run(capsys, *options).splitlines()
    assert table[0].split() == ["task", "measure", "value", "95", "%", "interval", "n"]
    shown = next(line for line in table if "choices" in line and "accuracy " in line).split()
    assert shown[2] == f"{found['choices']['accuracy']['value']:.4f}"
    assert any("rejected rows" in line for line in table)


def test_items_of_two_models_are_compared_in_pairs(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tasks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    options = ["--tasks", tasks / "choices.jsonl", tasks / "texts.jsonl", "--json"]
    theirs = json.loads(run(capsys, "--model", folders["gpt2"], *options, "--items", file))
    same = json.loads(run(capsys, "--model", folders["gpt2"], *options, "--against", file))["against"]
    assert same["choices"]["accuracy"] == {"value": 0, "low": 0, "high": 0, "n": 12}
    assert same["texts"]["bits_per_byte"]["value"] == 0
    ours = json.loads(run(capsys, "--model", folders["llama"], *options, "--against", file, "--limit", 8))
    assert ours["against"]["choices"]["unpaired"] == 4
    whole = json.loads(run(capsys, "--model", folders["llama"], *options, "--against", file))
    for task, name in (("choices", "accuracy"), ("texts", "nats_per_token")):
        difference = whole["against"][task][name]
        expected = whole["tasks"][task][name]["value"] - theirs["tasks"][task][name]["value"]
        assert difference["value"] == pytest.approx(expected)
        assert difference["low"] <= difference["value"] <= difference["high"]
    table = run(capsys, "--model", folders["llama"], *options[:-1], "--against", file)
    assert "accuracy, difference" in table
    with pytest.raises(SystemExit, match="other settings .few_shot=0"):
        run(capsys, "--model", folders["gpt2"], *options, "--against", file, "--few-shot", 1)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0]["setup"]["seed"] == 0
    assert {row["task"] for row in rows[1:]} == {"choices", "texts"}


def write_clean(folder: Path, train: list[str], held_out: list[str]) -> None:
    folder.mkdir()
    documents = [Document(f"d{i}", text, "s", "l", "", "{}", f"g{i}") for i, text in enumerate([*train, *held_out])]
    splits = {f"g{i}": "train" if i < len(train) else "val" for i in range(len(documents))}
    write_rows(folder / "documents.parquet", Document, documents, splits)
    write_rows(folder / "conversations.parquet", Conversation, [], {})
    write_rows(folder / "preferences.parquet", Preference, [], {})


def test_items_in_the_training_text_are_reported_apart(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tasks: Path, tmp_path: Path
) -> None:
    write_clean(tmp_path / "clean", [f"Once {LEAKED} and so on."], ["The wheel turns until noon. " * 8])
    options = ["--model", folders["gpt2"], "--tasks", tasks / "texts.jsonl", "--clean", tmp_path / "clean"]
    texts = json.loads(run(capsys, *options, "--json"))["tasks"]["texts"]
    assert (texts["contaminated"]["n"], texts["clean"]["n"], texts["nats_per_token"]["n"]) == (1, 1, 2)
    table = run(capsys, *options)
    assert any(line.split()[1:2] == ["contaminated"] for line in table.splitlines())
    write_clean(tmp_path / "other", ["Nothing of it stands here."], [LEAKED])
    options[-1] = tmp_path / "other"
    assert json.loads(run(capsys, *options, "--json"))["tasks"]["texts"]["contaminated"] is None


def test_contamination_needs_a_long_run_of_the_same_words(tmp_path: Path) -> None:
    words = LEAKED.split()
    train = [" ".join(words[:13]) + " but here it ends", "quick brown foxes jump over lazy sleeping dogs"]
    write_clean(tmp_path / "clean", train, [])
    items: list[Item] = [
        Pair("thirteen words", LEAKED, "x"),
        Pair("twelve words", " ".join(["unlike", *words[:12], "unlike", *words[:12][::-1]]), "x"),
        Pair("whole short item", "Quick, brown foxes jump over lazy sleeping dogs.", "x"),
        Pair("too short", "Quick brown foxes jump.", "x"),
        Generation("in the answer", "Who?", LEAKED, "x"),
    ]
    assert find_contaminated(items, tmp_path / "clean") == {"thirteen words", "whole short item", "in the answer"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--tasks": "none.jsonl"}, "none.jsonl: no such file"),
        ({"--tasks": "pydocs"}, "--clean"),
        ({"--model": "nowhere"}, "nowhere: no config.json"),
        ({"--against": "none"}, "none: no such file; write one with --items"),
        ({"--few-shot": 12}, "few_shot is 12, but the task has only 11"),
        ({"--clean": "nowhere"}, "nowhere: lacks documents.parquet"),
    ],
)
def test_faults_of_use_are_one_line(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tasks: Path, change: dict[str, object], message: str
) -> None:
    options: dict[str, object] = {"--model": folders["gpt2"], "--tasks": tasks / "choices.jsonl"} | change
    with pytest.raises(SystemExit, match="^error: ") as caught:
        run(capsys, *(part for pair in options.items() for part in pair))
    assert message in str(caught.value)


def test_help_names_formats_and_measures() -> None:
    done = subprocess.run([sys.executable, "-m", "llm.evals", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("BLiMP", "CrowS-Pairs", "TruthfulQA", "acc_norm", "--few-shot", "--against", '"good"'):
        assert word in done.stdout
