"""A candidate whose report is spotless and whose file gives bad answers: it is packaged and kept from release.

The negative control is the same path with a file that gives good ones.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from llm.config import Base
from llm.data.schema import iter_rows
from llm.data.tokenizer import Tokenizer
from llm.evals.alignment import make_prompt
from llm.export.gate import Tolerance
from llm.infer.score import pad_right
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel
from llm.serve.release import Release
from stages import package, quantize
from stages.plumbing.mirror import mirror_all
from stages.plumbing.promotion import main
from stages.plumbing.stage import Paths
from tests.llm.export.gate_figures import EVALUATION
from tests.stages.test_mirror import execute

ROOT = Path(__file__).parents[2]
COSTS = {f"served.cost.{principle}" for principle in PRINCIPLES}
Chat = tuple[list[int], list[int]]  # prompt, closed answer


def make_chats(tokenizer: Tokenizer, clean: Path, answer: str) -> list[Chat]:
    """Every prompt with its `chosen` or its `rejected` answer."""
    return [
        (make_prompt(tokenizer, row["prompt"], "").ids, [*tokenizer.encode(row[answer]), tokenizer.im_end_id])
        for row in iter_rows(clean / "preferences.parquet")
    ]


def teach(folder: Path, chats: list[Chat]) -> Transformer:
    """Train a model on the answers until it gives them to every prompt."""
    model = load_model(folder)
    tokens_BT, _ = pad_right([prompt + answer for prompt, answer in chats], torch.device("cpu"))
    target_BT = torch.full_like(tokens_BT, -100)
    for row, (prompt, answer) in enumerate(chats):
        target_BT[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        logits_BTV = model.unembed(model(tokens_BT[:, :-1]))
        torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), target_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def make_judge(trunk: Transformer, good: list[Chat], bad: list[Chat]) -> RewardModel:
    """Heads that tell the written good answers from the bad ones: logits of 4 and -4."""
    hidden_ND = torch.stack([trunk(torch.tensor([prompt + answer]))[0, -1] for prompt, answer in good + bad]).detach()
    wanted_N = torch.tensor([4.0] * len(good) + [-4.0] * len(bad))
    weight_D = torch.linalg.lstsq(hidden_ND, wanted_N[:, None], driver="gelsd").solution[:, 0]
    judge = RewardModel(trunk)
    with torch.no_grad():
        for place, head in enumerate(HEADS):
            judge.weight_HD[place] = weight_D if head == "reward" else -weight_D
    return judge


def package_candidate(policy_inputs: dict[str, Path], root: Path, answer: str) -> dict[str, Any]:
    """Train, quantize and package a candidate that gives the `chosen` or the `rejected` answers; return the metrics."""
    torch.set_num_threads(1)
    clean, folder = policy_inputs["data/clean"], policy_inputs["models/policy"]
    tokenizer = Tokenizer.load(folder)
    good, bad = (make_chats(tokenizer, clean, name) for name in ("chosen", "rejected"))
    # Sft answers both ways, as an honest one does, so that a candidate can be better and can be worse.
    models = {"sft": teach(folder, good + bad), "policy": teach(folder, good if answer == "chosen" else bad)}
    for name, model in models.items():
        save_model(model, root / name)
        tokenizer.save(root / name)
    make_judge(load_model(folder), good, bad).save(root / "reward/second")

    deps = {"data/clean": clean, "models/policy": root / "policy"}
    settings = quantize.Params(base=Base(threads=1), calibration=4, windows=8, window_tokens=32, positions=400)
    quantized = quantize.run(settings, Paths("quantize", deps, {"models/quantized": root / "quantized"}))
    (root / "quantize.json").write_text(json.dumps({"metrics": quantized}))
    (root / "evaluate.json").write_text(json.dumps({"metrics": {**EVALUATION, "max_new_tokens": 12}}))
    deps |= {
        "models/sft": root / "sft",
        "models/reward": root / "reward",
        "models/quantized": root / "quantized",
        "reports/evaluate.json": root / "evaluate.json",
        "reports/quantize.json": root / "quantize.json",
        "requirements.lock": ROOT / "requirements.lock",
    }
    out = root / "models/release"
    out.mkdir(parents=True)
    # What knows of nothing but a dozen answers fails rows that are not at issue here.
    loose = Tolerance(bits=0.5, agreement=0.5)
    bounds = package.Bounds(
        choice=0.0, f16=loose, q8_0=loose, q4_0=loose, distinct_ratio=0.0, answered_change=-1, length_change=1.0
    )
    section = package.Params(base=Base(threads=1), windows=8, window_tokens=32, prompts=15, bounds=bounds)
    return package.run(section, Paths("package", deps, {"models/release": out}, sources=("s",)))


@pytest.fixture(params=["rejected", "chosen"])
def candidate(
    request: pytest.FixtureRequest, policy_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return request.param, tmp_path, package_candidate(policy_inputs, tmp_path, request.param)


@pytest.mark.slow
def test_an_unsafe_candidate_is_kept_from_release(
    candidate: tuple[str, Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    answer, root, metrics = candidate
    failed = {check["name"]: check for check in metrics["gate"]["checks"] if not check["passed"]}
    release = Release.load(root / "models/release")
    (root / "params.yaml").write_text("base: {}\n")
    execute(root, "package", 1, metrics)
    mirror_all(root)
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    aliases = client.get_registered_model("gristmill").aliases
    card = (root / "models/release/README.md").read_text()

    if answer == "chosen":
        assert failed == {}
        assert (release.passed, release.fingerprint) == (True, metrics["release"])
        assert set(aliases) == {"challenger"}
        assert main(["--version", "1"]) == 0
        return
    assert failed.keys() >= COSTS | {"served.reward"}
    assert not any(name.startswith("cost") for name in failed)  # the report was spotless: the file was not
    for name in COSTS:
        assert failed[name]["value"] > 0.5
        assert failed[name]["by"] == pytest.approx(failed[name]["high"] - 0.2, abs=1e-5)
        assert "data/principles" in failed[name]["remedy"]
        assert f"| {name} | " in card
        assert f"**failed** by {failed[name]['by']:+g}" in card
    assert metrics["gate"]["passed"] is False
    assert "**Not released.**" in card
    assert release.fingerprint == f"{metrics['release']}-not-released"
    assert aliases == {}
    assert client.get_model_version("gristmill", "1").tags["gate"] == "failed"
    assert main(["--version", "1"]) == 1
    assert "did not pass its release gate" in capsys.readouterr().err
    assert client.get_registered_model("gristmill").aliases == {}
