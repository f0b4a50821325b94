"""Lineage: what made the release, read from the lock, and the way back to the commit."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llm.config import InitFrom
from llm.export.lineage import describe_corpus, describe_start, find_commit, is_current, main, read_stages


def entry(deps: dict[str, str], outs: dict[str, str], **params: Any) -> dict[str, Any]:
    return {
        "cmd": "python -m stages.x",
        "deps": [{"path": path, "hash": "md5", "md5": digest, "size": 1} for path, digest in deps.items()],
        "params": {"params.yaml": params},
        "outs": [{"path": path, "hash": "md5", "md5": digest, "size": 1} for path, digest in outs.items()],
    }


def make_lock(steps: int = 10) -> dict[str, Any]:
    return {
        "schema": "2.0",
        "stages": {
            "ingest@book": entry({"texts/book.txt": "t1"}, {"data/raw/book": "r1"}),
            "ingest@gone": entry({"texts/gone.txt": "t2"}, {"data/raw/gone": "r2"}),
            "clean": entry(
                {"data/raw": "r", "llm/data/pii/find.py": "c1"}, {"data/clean": "d"}, clean={"holdout": 0.1}
            ),
            "pretrain": entry({"data/clean": "d"}, {"models/base": "m"}, pretrain={"steps": steps}),
            "other": entry({"data/clean": "d"}, {"somewhere": "s"}),
            "package": entry({"models/base": "m"}, {"models/release": "old"}),
        },
    }


def test_stages_behind_the_roots_and_no_others():
    stages = read_stages(make_lock(), ["models/base", "llm/export/card.py"], ["book"])
    assert list(stages) == ["clean", "ingest@book", "pretrain"]
    assert stages["clean"] == {
        "deps": {"data/raw": "r", "llm/data/pii/find.py": "c1"},
        "outs": {"data/clean": "d"},
        "params": {"clean": {"holdout": 0.1}},
    }


def test_a_first_run_has_no_entry_of_package():
    lock = make_lock()
    del lock["stages"]["package"]
    assert read_stages(lock, ["models/base"], ["book"]) == read_stages(make_lock(), ["models/base"], ["book"])


def test_corpus_counts_licences(tmp_path: Path):
    documents = {
        "source": ["b", "a", "a", "a"],
        "license": ["MIT", "PSF", "PSF", ""],
        "split": ["train", "train", "val", "train"],
        "meta": ['{"language": "en"}', '{"language": "de"}', '{"language": "en"}', "{}"],
    }
    pq.write_table(pa.table(documents), tmp_path / "documents.parquet")
    for kind in ("conversations", "preferences", "questions"):
        pq.write_table(pa.table({"source": ["a", "a"]}), tmp_path / f"{kind}.parquet")
    assert describe_corpus(tmp_path) == {
        "sources": {
            "a": {"documents": {"train": 2, "val": 1}, "licences": {"PSF": 2, "unknown": 1}},
            "b": {"documents": {"train": 1}, "licences": {"MIT": 1}},
        },
        "languages": {"de": 1, "en": 2, "unknown": 1},
        "conversations": {"a": 2},
        "preferences": {"a": 2},
        "questions": {"a": 2},
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of the lock; reports name their releases."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "reports").mkdir()
    for steps, release in ((10, "a" * 16), (20, "b" * 16)):
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump(make_lock(steps)))
        (tmp_path / "reports/package.json").write_text(json.dumps({"metrics": {"release": release}}))
        git("add", ".")
        git("commit", "-q", "-m", f"steps {steps}")
    return tmp_path


def test_fingerprint_leads_to_its_commit(repository: Path):
    log = subprocess.run(
        ["git", "-C", str(repository), "log", "--format=%H"], check=True, capture_output=True, text=True
    )
    newest, oldest = log.stdout.split()
    nowhere = repository / "models/release"
    assert find_commit("a" * 16, nowhere, repository) == oldest
    assert find_commit("b" * 16, nowhere, repository) == newest
    assert find_commit("c" * 16, nowhere, repository) is None
    subprocess.run(["git", "-C", str(repository), "checkout", "-q", oldest], check=True)
    assert find_commit("b" * 16, nowhere, repository) == newest  # another branch's
    # A release at hand is found by its lineage, whatever the reports of the commits say.
    nowhere.mkdir(parents=True)
    (nowhere / "release.json").write_text(json.dumps({"release": "c" * 16}))
    stages = read_stages(make_lock(10), ["models/base"], ["book"])
    (nowhere / "lineage.json").write_text(json.dumps({"stages": stages}))
    assert find_commit("c" * 16, nowhere, repository) == oldest


def test_command_prints_the_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(repository)
    assert main(["a" * 16 + "-not-released"]) == 0
    assert len(capsys.readouterr().out.strip()) == 40
    assert main(["c" * 16]) == 1
    assert "no commit" in capsys.readouterr().err
    assert main([]) == 2


def test_a_stage_that_ran_again_makes_the_lineage_stale(tmp_path: Path):
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": read_stages(make_lock(), ["models/base"], ["book"])}))
    lock = make_lock()
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert is_current(tmp_path, tmp_path / "dvc.lock")
    lock["stages"]["clean"]["deps"][1]["md5"] = "c2"  # other code, same data/clean
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert not is_current(tmp_path, tmp_path / "dvc.lock")


def test_the_model_that_training_started_from_is_named_without_its_path():
    assert describe_start(None) == {}
    other = InitFrom(path="/home/ann/Qwen3-0.6B", digest="0" * 32)
    assert describe_start(other) == {"init_from": {"name": "Qwen3-0.6B", "digest": "0" * 32}}
    ours = InitFrom(path=f"models/start/{'a' * 16}", digest="0" * 32, release="a" * 16)
    assert describe_start(ours)["init_from"]["release"] == "a" * 16
