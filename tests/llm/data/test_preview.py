"""The preview shows what would enter, and what would not, and writes nothing."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llm.config import ConfigError
from llm.data.preview import preview
from llm.data.rows.formats import SourceFormat

ROOT = Path(__file__).parents[3]
TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]}


def show(locator: Path | str, fmt: SourceFormat | None = None, count: int = 10) -> str:
    out = io.StringIO()
    preview(str(locator), fmt or SourceFormat(), count, Console(file=out, width=100))
    return out.getvalue()


def test_records_of_each_kind_and_rejects(tmp_path: Path) -> None:
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    rows = [{"text": "A [bold]text[/bold] \x1b[31mred."}, TALK, pair, {"label": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{")
    (tmp_path / "LICENSE").write_text("free")
    shown = show(tmp_path)
    assert "A [bold]text[/bold] \N{REPLACEMENT CHARACTER}[31mred." in shown
    assert "1. rows.jsonl, line 1: document, 29 characters" in shown
    assert "assistant: Hello." in shown
    assert "chosen: 4" in shown
    assert "rejected: 5" in shown
    assert "bad_json" in shown
    assert "5 records read, 3 kept (3 jsonl), 2 rejected" in shown
    assert "passed over: licence (1)" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSE", "rows.jsonl"]


def test_no_more_is_read_than_is_shown(tmp_path: Path) -> None:
    row = json.dumps({"text": "A text."}).encode() + b"\n"
    (tmp_path / "rows.jsonl").write_bytes(row * 10 + b"{\n" * 1_000_000)
    assert "10 records read, 10 kept" in show(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(row + b"{\n" * 1_000_000)
    assert "1,001 records read, 1 kept" in show(tmp_path)


def test_nothing_to_show(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ConfigError, match="no usable record"):
        show(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        show(tmp_path / "none")


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "table.txt").write_text("body;n\nA text.;1\nAnother.;2\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm.data.preview", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = run(str(tmp_path), "--format", "csv", "--columns", "text=body", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert "1 records read, 1 kept (1 csv)" in done.stdout
    assert "usage" in run("--help").stdout
    for wrong in (["--columns", "body=text"], ["--format", "docx"], ["--kind", "poem"]):
        done = run(str(tmp_path), *wrong)
        assert done.returncode == 1
        assert wrong[1].split("=")[0] in done.stderr
        assert "Traceback" not in done.stderr
