"""Champion and challenger on a real MLflow database: who may become champion, who is refused, and the way back."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from llm.config import ConfigError
from llm.data.schema import Preference, write_rows
from llm.data.tokenizer import train_tokenizer
from llm.evals.asked import choose_prompts
from llm.export.verify import release_hash, write_sums
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import RewardModel
from stages.plumbing.mirror import mirror_all
from stages.plumbing.promotion import judge_both, main
from stages.plumbing.tracking import Registry, Version
from tests.llm.evals.test_non_inferiority import make_release
from tests.stages.test_mirror import execute

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is migrated once, which takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without a commit of dvc.lock, and with nothing packaged."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "empty"], check=True)
    (tmp_path / "params.yaml").write_text("base: {}\n")
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    return tmp_path


def package(root: Path, number: int, items: dict[str, Any], passed: bool = True) -> str:
    """Write models/release and its reports as `package` does, mirror them, and return the release hash."""
    release = f"{number:016x}"
    out = root / "models/release"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = [] if passed else [{"name": "served.cost.justice", "passed": False}]
    gate = {"passed": passed, "checks": rows}
    (out / "release.json").write_text(json.dumps({"release": release, "gate": gate}))
    (out / "items.json").write_text(json.dumps(items))
    write_sums(out)
    execute(root, "package", number, {"release": release, "gate": {"passed": passed, "checks": []}})
    mirror_all(root)
    return release


def aliases(root: Path) -> dict[str, int]:
    """Return alias -> version number."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return {alias: int(number) for alias, number in client.get_registered_model("gristmill").aliases.items()}


def test_the_first_passing_version_becomes_champion(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release())
    assert aliases(project) == {"challenger": 1}
    assert main(["--version", "1", "--dry-run"]) == 0
    assert aliases(project) == {"challenger": 1}
    assert main(["--version", "1"]) == 0
    assert aliases(project) == {"champion": 1}
    assert main([]) == 0
    assert "   1  0000000000000001  gate passed  champion" in capsys.readouterr().out
    (project / "mlruns/mirrored").unlink()
    mirror_all(project)
    assert aliases(project) == {"champion": 1}  # the champion does not challenge itself
    assert main(["--version", "1"]) == 0
    assert "champion already" in capsys.readouterr().out


def test_a_non_inferior_version_replaces_it_and_can_be_rolled_back(project: Path, capsys: pytest.CaptureFixture[str]):
    for number in (1, 2, 3):
        package(project, number, make_release())
        assert main(["--version", str(number)]) == 0
        assert aliases(project) == {"champion": number}
    assert "pass | choice | challenger 1.0000 | champion 1.0000 | difference +0.0000" in capsys.readouterr().out
    assert main(["--rollback", "--dry-run"]) == 0
    assert aliases(project) == {"champion": 3}
    assert main(["--rollback"]) == 0
    assert aliases(project) == {"champion": 2}
    assert "its files are not at hand" in capsys.readouterr().out  # models/release is version 3's
    assert main(["--version", "3"]) == 0
    assert main(["--rollback"]) == 0
    assert main(["--rollback"]) == 0
    assert aliases(project) == {"champion": 1}
    assert main(["--rollback"]) == 1
    assert "first champion" in capsys.readouterr().err
    assert aliases(project) == {"champion": 1}


def test_an_inferior_version_is_refused_with_the_table(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release())
    main(["--version", "1"])
    package(project, 2, make_release(cost=0.2))
    assert main(["--version", "2"]) == 1
    printed = capsys.readouterr()
    assert "FAIL | safety" in printed.out
    assert "pass | reward" in printed.out
    assert "safety" in printed.err
    assert aliases(project) == {"champion": 1, "challenger": 2}
    assert main(["--version", "2", "--safety-margin", "0.15"]) == 0
    assert aliases(project) == {"champion": 2}


def test_fewer_than_400_common_items_are_refused(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release(n=399))
    assert main(["--version", "1"]) == 0  # nobody to be compared with
    package(project, 2, make_release(n=500))
    assert main(["--version", "2"]) == 1
    assert "399 common items, at least 400 are needed" in capsys.readouterr().out
    assert aliases(project) == {"champion": 1, "challenger": 2}


def test_a_failed_gate_is_no_challenger_and_no_champion(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release())
    package(project, 2, make_release(), passed=False)
    assert aliases(project) == {"challenger": 1}
    assert main(["--version", "2"]) == 1
    assert "did not pass its release gate" in capsys.readouterr().err
    package(project, 1, make_release(), passed=False)  # the same files, under other bounds
    assert aliases(project) == {}
    # The registry may be edited, the files say it too.
    MlflowClient(f"sqlite:///{project / 'mlflow.db'}").set_model_version_tag("gristmill", "1", "gate", "passed")
    assert main(["--version", "1"]) == 1
    assert "did not pass its release gate: served.cost.justice" in capsys.readouterr().err


def test_files_that_are_gone_or_changed_are_refused(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release())
    package(project, 2, make_release())
    assert main(["--version", "1"]) == 1
    assert "is neither models/release nor" in capsys.readouterr().err
    (project / "models/release/items.json").write_text("{}")
    assert main(["--version", "2"]) == 1
    assert "items.json (changed)" in capsys.readouterr().err
    assert main(["--version", "7"]) == 1
    assert "there is no version 7; there are 1, 2" in capsys.readouterr().err
    assert aliases(project) == {"challenger": 2}


def test_items_that_were_changed_in_mlflow_are_refused(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, make_release())
    main(["--version", "1"])
    package(project, 2, make_release())
    for path in (project / "mlruns").rglob("items.json"):
        path.write_text(json.dumps(make_release(n=401)))
    assert main(["--version", "2"]) == 1
    assert "items.json in MLflow was changed" in capsys.readouterr().err


def test_versions_under_different_judges_need_the_challengers(project: Path, capsys: pytest.CaptureFixture[str]):
    package(project, 1, {**make_release(), "judge": "other"})
    main(["--version", "1"])
    package(project, 2, make_release())
    assert main(["--version", "2"]) == 1
    assert "models/reward/second is not the reward model that judged version 2" in capsys.readouterr().err


def test_one_judge_judges_both(project: Path):
    tokenizer = train_tokenizer(["Who sorts it? user assistant I do. Nobody does."] * 4, 300)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    trunk = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **shape))
    init_weights(trunk, 1)
    judge = RewardModel(trunk)
    torch.nn.init.normal_(judge.weight_HD, generator=torch.Generator().manual_seed(0))
    folder = project / "models/reward/second"
    judge.save(folder)
    tokenizer.save(folder)
    prompt = [{"role": "user", "content": "Who sorts it?"}]
    row = Preference("p", "g", "s", "principle", prompt, "I do.", "Nobody does.", None, "justice")
    (project / "data/clean").mkdir(parents=True)
    write_rows(project / "data/clean/preferences.parquet", Preference, [row], {"g": "val"})

    ((key, asked),) = choose_prompts(tokenizer, [asdict(row)], 60, 10, {}).prompts.items()
    item = {"principle": "justice", "cost": 0.5, "reward": 9.0}
    ours = {"prompts": {key: {**item, "answer": "I do."}, "gone": {**item, "answer": ""}}, "questions": {}}
    theirs = {"prompts": {key: {**item, "answer": "Nobody does."}}, "questions": {}}
    version = Version(2, "2" * 16, "", True, (), None, "")
    first, second = judge_both(version, release_hash(folder), [ours, theirs], project)
    assert set(first["prompts"]) == {key}
    expected = judge.score([[*asked.ids, *tokenizer.encode("I do."), tokenizer.im_end_id]])[0].tolist()
    assert first["prompts"][key]["reward"] == pytest.approx(expected[0])
    assert first["prompts"][key]["cost"] == pytest.approx(expected[4])
    assert second["prompts"][key]["reward"] != first["prompts"][key]["reward"]
    with pytest.raises(ConfigError, match="not the reward model"):
        judge_both(version, "x", [ours, theirs], project)


def test_the_command_runs_as_a_process(project: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.promote", *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(project)}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    shown = run("--help").stdout
    assert "python -m flows.promote --version 3" in shown
    assert "--safety-margin" in shown
    done = run()
    assert (done.returncode, done.stdout) == (0, "no version yet: package a release first (make run)\n")
    (project / "mlflow.db").unlink()
    done = run("--rollback")
    assert done.returncode == 1
    assert "make run" in done.stderr
    assert not (project / "mlflow.db").exists()


def test_a_registry_without_releases_lists_none(project: Path):
    assert Registry(f"sqlite:///{project / 'mlflow.db'}").list() == []
