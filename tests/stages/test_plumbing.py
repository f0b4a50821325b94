"""The stage runner: clear messages for bad params, no half outputs, recipes that refuse to lose edits."""

import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llm.config import ConfigError
from stages.ingest import Params
from stages.plumbing import recipe
from stages.plumbing.stage import load_stage

ROOT = Path(__file__).parents[2]

STAGE = """
from typing import Any
from pydantic import Field
from llm.config import ConfigError, StageParams
from stages.plumbing.stage import Paths, main

class Params(StageParams):
    size: int = Field(3, ge=1, le=10, description="x")
    fail: str = ""

def run(params: Params, paths: Paths) -> dict[str, Any]:
    out = paths.outs["data/out"]
    out.mkdir(parents=True)
    (out / "half").write_text("x")
    (paths.scratch / "kept").write_text("x")
    if params.fail == "config":
        raise ConfigError("data/in holds nothing: add text")
    if params.fail == "full":
        import errno
        raise OSError(errno.ENOSPC, "No space left on device", "data/out/big")
    if params.fail == "stop":
        raise KeyboardInterrupt
    return {"size": params.size}

if __name__ == "__main__":
    main(Params, run)
"""


@pytest.fixture
def project(tmp_path):
    """A project with one stage named `package`, run with our plumbing."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text(f"__path__.append({str(ROOT / 'stages')!r})\n")
    (tmp_path / "stages" / "trial.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text("stages: {trial: {cmd: x, deps: [in], outs: [data/out]}}\n")
    (tmp_path / "in").write_text("x")

    def run(params: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(textwrap.dedent(params))
        return subprocess.run(
            [sys.executable, "-m", "stages.trial"],
            cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin"},
        )  # fmt: skip

    run.folder = tmp_path
    return run


@pytest.mark.parametrize(
    ("params", "code", "message"),
    [
        ("trial: {sise: 3}", 1, "trial.sise: unknown key; allowed in trial: base, size, fail"),
        ("trial: {size: 30}", 1, "trial.size: Input should be less than or equal to 10 (got 30)"),
        ("base: {dtype: fp8}", 1, "base.dtype: Input should be 'bf16', 'fp16' or 'fp32' (got 'fp8')"),
        ("trail: {}", 1, "unknown section trail; allowed: base, trial"),
        ("trial: [", 1, "params.yaml: while parsing"),
        ("trial: {fail: config}", 1, "trial: data/in holds nothing: add text"),
        ("trial: {fail: full}", 1, "No space left on device (data/out/big). Nothing finished is lost"),
        ("trial: {fail: stop}", 130, "Run again to continue"),
    ],
)
def test_faults_are_one_clear_message(project, params, code, message):
    (project.folder / "data" / "out").mkdir(parents=True)
    (project.folder / "data" / "out" / "earlier").write_text("kept")
    done = project("base: {}\n" + params if "base" not in params else params)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (project.folder / "data" / "out").iterdir()] == ["earlier"]
    assert not (project.folder / "reports").exists()


def test_a_finished_stage_publishes_and_reports(project):
    done = project("trial: {size: 4}")
    assert done.returncode == 0, done.stderr
    assert (project.folder / "data/out/half").is_file()
    assert '"size": 4' in (project.folder / "reports/trial.json").read_text()
    assert "peak_memory_bytes" in (project.folder / "reports/runs/trial.json").read_text()
    assert not list((project.folder / ".scratch" / "trial").iterdir())


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name, sources in (("smoke", "{pydocs: {path: pydocs, watch: x}}"), ("default", "{}")):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(f"# {name}\ningest: {{sources: {sources}}}\n")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("x")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *identity, "commit", "-q", "-m", "t"], check=True)
    return tmp_path


def test_a_recipe_replaces_a_recipe_but_not_edits(workspace):
    recipe.write_params("smoke", None)
    recipe.write_params("default.yaml", None)
    assert (workspace / "params.yaml").read_text().startswith("# default")
    (workspace / "params.yaml").write_text("edited: 1\n")
    with pytest.raises(ConfigError, match="commit or discard"):
        recipe.write_params("smoke", None)
    assert (workspace / "params.yaml").read_text() == "edited: 1\n"
    with pytest.raises(ConfigError, match="there are default, smoke"):
        recipe.write_params("lapptop", None)


@pytest.mark.parametrize(
    ("path", "name", "watch"),
    [("books", "books", "books"), ("books/a.txt", "a", "books/a.txt"), ("books/*.txt", "books", "books")],
)
def test_own_text_becomes_the_source(workspace, path, name, watch):
    recipe.write_params("smoke", path)
    recipe.write_params("smoke", path)  # again: it is no edit that could be lost
    written = recipe.read_yaml(Path("params.yaml"))
    assert written["ingest"]["sources"] == {name: {"path": path, "watch": watch}}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://bucket/deep/Rows 1.jsonl.gz", "rows-1"),
        ("https://example.org/texts/book.txt?raw=1", "book"),
        ("memory://folder", "folder"),
        ("s3://bucket/*.txt", "bucket"),
        ("hf:org/name", "name"),
    ],
)
def test_what_is_not_here_is_watched_by_the_lock(workspace, path, name):
    recipe.write_params("smoke", path)
    written = recipe.read_yaml(Path("params.yaml"))["ingest"]["sources"]
    assert written == {name: {"path": path, "watch": "requirements.lock"}}


def test_an_archive_becomes_the_source(workspace):
    (workspace / "books" / "all.tar.gz").write_bytes(b"x")
    recipe.write_params("smoke", "books/all.tar.gz")
    assert recipe.read_yaml(Path("params.yaml"))["ingest"]["sources"] == {
        "all": {"path": "books/all.tar.gz", "watch": "books/all.tar.gz"}
    }


DAG = """
stages:
  ingest:
    foreach: ${ingest.sources}
    do:
      cmd: python -m stages.ingest ${key} ${item}
      params: [base, ingest.sample]
      deps: ["${item.watch}"]
      outs: ["data/raw/${key}"]
vars:
  - ingest: {sources: {chat: {path: chat, watch: talk}}}
"""


def test_an_entry_is_on_the_command_line_that_dvc_compares(workspace):
    """So that a change of any of its fields runs that source again, and no other."""
    (workspace / "dvc.yaml").write_text(DAG)
    (workspace / "talk").write_text("x")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)

    def commands(entry: str) -> dict[str, str]:
        sources = f"{{plain: {{path: books, watch: books}}, mine: {{path: books/a.txt, watch: books/a.txt{entry}}}}}"
        (workspace / "params.yaml").write_text(f"base: {{}}\ningest: {{sample: 1, sources: {sources}}}\n")
        from dvc.repo import Repo

        with Repo(workspace) as repo:
            return {stage.name: stage.cmd for stage in repo.index.stages}

    before = commands("")
    assert before["ingest@chat"] == "python -m stages.ingest chat --path chat --watch talk"
    entry = ", format: csv, columns: {text: 'the body'}, max_records: 9"
    after = commands(entry)
    assert {name for name in after if after[name] != before[name]} == {"ingest@mine"}
    assert after["ingest@mine"].endswith("--format csv --columns.text 'the body' --max_records 9")
    params, paths = load_stage("ingest", Params, *shlex.split(after["ingest@mine"])[3:])
    assert paths.source["columns"] == {"text": "the body"}
    assert params.sources["mine"].max_records == 9
    _, paths = load_stage("ingest", Params, *shlex.split(after["ingest@chat"])[3:])
    assert paths.source == {"path": "chat", "watch": "talk"}
    with pytest.raises(ConfigError, match=r"ingest\.sources\.mine\.path is books/a\.txt: edit params\.yaml"):
        load_stage("ingest", Params, "mine", "--path", "other.txt")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("path: x", r"ingest\.sources\.mine\.watch: Field required"),
        (
            "path: x, watch: talk, colums: {text: body}",
            r"ingest\.sources\.mine\.colums: unknown key; allowed in ingest\.sources\.mine: format, kind, columns",
        ),
        ("path: x, watch: talk, columns: {body: text}", r"ingest\.sources\.mine: .*columns body: no kind of row"),
        ("path: x, watch: talk, max_bytes: 0", r"ingest\.sources\.mine\.max_bytes: .*greater than or equal to 1"),
    ],
)
def test_a_faulty_entry_is_named(workspace, entry, message):
    (workspace / "dvc.yaml").write_text(DAG)
    (workspace / "talk").write_text("x")
    (workspace / "params.yaml").write_text(f"ingest: {{sources: {{mine: {{{entry}}}}}}}\n")
    with pytest.raises(ConfigError, match=message):
        load_stage("ingest", Params, "mine")


def test_a_dataset_name_is_watched_by_the_lock(workspace):
    recipe.write_params("smoke", "org/name")
    assert recipe.read_yaml(Path("params.yaml"))["ingest"]["sources"]["name"]["watch"] == "requirements.lock"


def test_a_missing_source_is_named(workspace):
    with pytest.raises(ConfigError, match=r"SOURCE=\./nowhere/texts: no such folder"):
        recipe.write_params("smoke", "./nowhere/texts")
