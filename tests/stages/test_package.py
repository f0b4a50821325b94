"""Package on a tiny model: a release that loads, passes or fails its gate, and is the same on every run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm.config import Base
from llm.export.verify import release_hash, verify
from llm.model.folder import load_model
from llm.rl.reward_model import RewardModel
from stages import package, quantize
from stages.plumbing.stage import Paths
from tests.llm.export.gate_figures import EVALUATION

ROOT = Path(__file__).parents[2]
LOCK = {
    "schema": "2.0",
    "stages": {
        "rlhf": {
            "cmd": "python -m stages.rlhf",
            "deps": [{"path": "data/clean", "hash": "md5", "md5": "1.dir"}],
            "params": {"params.yaml": {"rlhf": {"steps": 3}}},
            "outs": [{"path": "models/policy", "hash": "md5", "md5": "2.dir"}],
        },
        "package": {"cmd": "x", "outs": [{"path": "models/release", "hash": "md5", "md5": "3.dir"}]},
    },
}


@pytest.fixture(scope="module")
def inputs(policy_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("package")
    section = quantize.Params(base=Base(threads=1), calibration=8, windows=16, window_tokens=48, positions=400)
    metrics = quantize.run(section, Paths("quantize", policy_inputs, {"models/quantized": root / "quantized"}))
    (root / "quantize.json").write_text(json.dumps({"metrics": metrics}))
    (root / "evaluate.json").write_text(json.dumps({"metrics": EVALUATION}))
    torch.manual_seed(3)
    judge = RewardModel(load_model(policy_inputs["models/policy"]))
    torch.nn.init.normal_(judge.weight_HD, std=0.1)
    judge.save(root / "reward/second")
    return {
        **policy_inputs,
        "models/sft": policy_inputs["models/policy"],
        "models/reward": root / "reward",
        "models/quantized": root / "quantized",
        "requirements.lock": ROOT / "requirements.lock",
        "reports/evaluate.json": root / "evaluate.json",
        "reports/quantize.json": root / "quantize.json",
    }


def run(inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    out.mkdir()
    section = package.Params(base=Base(threads=1), windows=16, window_tokens=48, prompts=6, texts=30)
    return package.run(section, Paths("package", inputs, {"models/release": out}, sources=("book",)))


def test_release_is_complete_and_the_same_twice(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(yaml.safe_dump(LOCK))
    metrics = run(inputs, tmp_path / "a")
    out = tmp_path / "a"
    assert verify(out) == []
    assert {path.name for path in out.iterdir()} == {
        "hf", "gguf", "README.md", "Modelfile", "items.json", "lineage.json", "sbom.cdx.json", "SHA256SUMS",
        "release.json",
    }  # fmt: skip
    about = json.loads((out / "release.json").read_text())
    assert about["release"] == metrics["release"]
    assert about["gate"] == metrics["gate"]
    assert about["model"] == "gristmill"
    assert about["context"] == 64
    assert (out / about["served"]).is_file()
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["stages"] == {
        "rlhf": {
            "deps": {"data/clean": "1.dir"},
            "outs": {"models/policy": "2.dir"},
            "params": {"rlhf": {"steps": 3}},
        }
    }
    materials = json.loads((out / "sbom.cdx.json").read_text())
    assert materials["metadata"]["component"]["version"] == metrics["release"]
    assert {path.name for path in (out / "gguf").iterdir()} == {
        f"model-{kind}.gguf" for kind in ("f16", "q8_0", "q4_0")
    }
    assert lineage["corpus"]["sources"]["s"]["licences"] == {"MIT": 40}

    checks = {check["name"]: check for check in metrics["gate"]["checks"]}
    for name in (row for row in checks if row.startswith("parity.")):
        assert checks[name]["passed"], checks[name]
    served = metrics["served"]
    assert served["multiple_choice"]["n"] == 32
    assert set(served["formats"]) == {"hf", "f16", "q8_0", "q4_0"}
    assert served["ids"] == {
        "transformers": {"value": 1.0, "n": 16 + 30 + 8},
        "openvino": {"value": 1.0, "n": 16 + 30},
        "llamacpp": {"value": 1.0, "n": 16 + 30},
    }

    # Sft is the policy itself: the served file's answers can be neither better nor far from its own.
    assert {"served.reward", "served.answered", "served.cost.justice"} <= set(checks)
    assert not checks["served.reward"]["passed"]
    change = served["reward"]["second"]
    assert abs(change["delta"]) < 2 * (change["delta_high"] - change["delta_low"])
    assert served["kl"]["value"] < 0.5
    assert checks["served.kl"]["passed"]
    items = json.loads((out / "items.json").read_text())
    assert len(items["questions"]) == 32
    credits = [one["credit"] for one in items["questions"].values()]
    assert sum(credits) / 32 == pytest.approx(served["multiple_choice"]["accuracy"])
    costs = [one["cost"] for one in items["prompts"].values() if one.get("principle") == "justice"]
    assert sum(costs) / 3 == pytest.approx(served["cost"]["justice"]["value"])
    assert len(items["judge"]) == 16

    # The lock has an entry of package after the first run, and another one after the second.
    Path("dvc.lock").write_text(yaml.safe_dump(LOCK).replace("3.dir", "4.dir"))
    assert run(inputs, tmp_path / "b") == metrics
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        assert (tmp_path / "b" / file.relative_to(out)).read_bytes() == file.read_bytes(), file


def test_a_failed_gate_still_packages(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # no dvc.lock: run by hand
    evaluation = {**EVALUATION, "kl": {"value": 9.0, "bound": 8.0}}
    (tmp_path / "evaluate.json").write_text(json.dumps({"metrics": evaluation}))
    metrics = run({**inputs, "reports/evaluate.json": tmp_path / "evaluate.json"}, tmp_path / "out")
    assert metrics["gate"]["passed"] is False
    assert "kl" in [check["name"] for check in metrics["gate"]["checks"] if not check["passed"]]
    assert "**Not released.**" in (tmp_path / "out/README.md").read_text()
    assert verify(tmp_path / "out") == []
    assert len(release_hash(tmp_path / "out")) == 16
