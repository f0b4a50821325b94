"""The reward stage on a tiny trunk: two models that share no prompt, figures with intervals, the same bytes twice."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from llm.config import Base, ConfigError
from llm.data.schema import Preference, hash_id, write_rows
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import PRINCIPLES, RewardModel
from stages import reward
from stages.plumbing.stage import Paths

NOUNS = ("list", "array", "file", "index", "table", "value", "socket", "thread", "string", "number")
VERBS = ("sorts", "drops", "keeps", "opens", "counts", "joins")
PARAMS = reward.Params(
    base=Base(seed=1, threads=1, dtype="fp32"),
    steps=40,
    batch_pairs=8,
    lr=5e-3,
    shares={},
    held_out_pairs=30,
    max_len_tokens=120,
)


def make_preferences() -> list[Preference]:
    rows = []
    for noun in NOUNS:
        for verb in VERBS:
            prompt = [{"role": "user", "content": f"What does `{verb}_{noun}` do?"}]
            other = NOUNS[(NOUNS.index(noun) + 3) % len(NOUNS)]
            good, bad, short = f"It {verb} the {noun}.", f"It {verb} the {other}.", f"It {verb}"
            for kind, rejected in (("sibling", bad), ("truncated", short)):
                rows.append(Preference(hash_id(kind, noun, verb), noun, "s", kind, prompt, good, rejected))
    for i, noun in enumerate(NOUNS):
        for principle in PRINCIPLES:
            prompt = [{"role": "user", "content": f"May I open the {noun}?"}]
            key = hash_id(principle, noun)
            rows.append(Preference(key, noun, "s", "principle", prompt, "Yes.", "Never.", (i + 1) / 10, principle))
    return sorted(rows, key=lambda row: row.id)


@pytest.fixture(scope="module")
def deps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reward")
    rows = make_preferences()
    tokenizer = train_tokenizer([row.prompt[0]["content"] + row.chosen + row.rejected for row in rows], 400)
    (root / "clean").mkdir()
    splits = {noun: "val" if i < 3 else "train" for i, noun in enumerate(NOUNS)}
    write_rows(root / "clean" / "preferences.parquet", Preference, rows, splits)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 64}
    trunk = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=128, **sizes))
    init_weights(trunk, 0)
    save_model(trunk, root / "sft")
    tokenizer.save(root / "sft")
    return {"models/sft": root / "sft", "data/clean": root / "clean"}


def run(deps: dict[str, Path], out: Path, params: reward.Params = PARAMS) -> dict:
    paths = Paths("reward", deps, {"models/reward": out})
    paths.scratch = out.parent / f"{out.name}-scratch"
    return reward.run(params, paths)


@pytest.fixture(scope="module")
def trained(deps, tmp_path_factory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("out") / "reward"
    return run(deps, out), out


def test_folders_hold_two_different_models(trained):
    _, out = trained
    first, second = RewardModel.load(out), RewardModel.load(out / "second")
    rows = [Tokenizer.load(folder).encode("It sorts the list.") for folder in (out, out / "second")]
    assert rows[0] == rows[1]
    assert not torch.equal(first.score(rows), second.score(rows))
    points = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == list(range(5, 41, 5))
    assert set(points[0]) == {"step", "loss", "accuracy", "lr", "grad"}
    assert (out / "second" / "trace.jsonl").is_file()


def test_metrics_have_intervals_per_kind(trained):
    metrics, _ = trained
    assert metrics["first"]["pairs"] + metrics["second"]["pairs"] == metrics["pairs"]["train"]
    for name in ("first", "second"):
        accuracy = metrics[name]["accuracy"]
        assert set(accuracy) == {"all", "sibling", "truncated"}  # pairs of principles have no more helpful answer
        assert metrics[name]["ties"] == 12
        assert accuracy["truncated"]["n"] == 18
        assert accuracy["truncated"]["low"] > 0.5
        assert metrics[name]["readable"] == {}  # two or three spared groups say nothing
    json.dumps(metrics, allow_nan=False)


def test_same_inputs_same_bytes(trained, deps, tmp_path):
    metrics, out = trained
    assert run(deps, tmp_path / "again") == metrics

    def digest(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digest(tmp_path / "again") == digest(out)


def test_too_few_pairs_are_explained(deps, tmp_path):
    with pytest.raises(ConfigError, match=r"reward\.max_len_tokens=8"):
        run(deps, tmp_path / "none", PARAMS.model_copy(update={"max_len_tokens": 8}))
