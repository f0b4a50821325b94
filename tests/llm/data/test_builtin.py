"""The project's own data must be whole: a fault in it stops."""

import json
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.data.builtin.records import read_principles, read_talk

ROW = {"id": "a", "principle": "justice", "prompt": "p", "good": "g", "bad": "b"}
TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]}


def test_principles_must_be_complete(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "principle": "luck"}))
    with pytest.raises(ConfigError, match=r"x\.jsonl:2: principle 'luck' is not one of beneficence"):
        read_principles(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({**ROW, "good": " "}))
    with pytest.raises(ConfigError, match=r"x\.jsonl:1: expected the strings"):
        read_principles(tmp_path)


def test_talk_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(TALK) + "\n\n")
    (one,) = read_talk(tmp_path).conversations
    assert (one.kind, one.messages) == ("smalltalk", TALK["messages"])
    for bad in ("{", "[1]", json.dumps({"messages": []})):
        (tmp_path / "x.jsonl").write_text(json.dumps(TALK) + "\n" + bad)
        with pytest.raises(ConfigError, match=r"x\.jsonl:2"):
            read_talk(tmp_path)
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds no .jsonl file"):
        read_talk(tmp_path)
