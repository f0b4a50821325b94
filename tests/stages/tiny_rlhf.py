"""What the rlhf stage reads, tiny and random."""

from pathlib import Path

import torch

from llm.data.schema import Preference, write_rows
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import save_model
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import RewardModel
from stages import rlhf
from stages.plumbing.stage import Paths


def make_model(tokenizer: Tokenizer, seed: int) -> Transformer:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 64}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=96, **sizes))
    init_weights(model, seed)
    return model


def ask(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What does function {number} do?"}]


def write_deps(root: Path, rows: list[Preference]) -> tuple[dict[str, Path], RewardModel]:
    """Write preferences, tokenizer and sft; return the paths, and a reward model that is still to be saved."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["What does function 1 2 3 do? It sorts."], 300)
    (root / "clean").mkdir()
    write_rows(root / "clean" / "preferences.parquet", Preference, rows, {"g": "train"})
    save_model(make_model(tokenizer, 0), root / "sft")
    tokenizer.save(root / "sft")
    deps = {"models/sft": root / "sft", "models/reward": root / "reward", "data/clean": root / "clean"}
    return deps, RewardModel(make_model(tokenizer, 7))


def run_rlhf(deps: dict[str, Path], out: Path, params: rlhf.Params) -> dict:
    """Run the stage into out/policy and out/control."""
    paths = Paths("rlhf", deps, {f"models/{arm}": out / arm for arm in ("policy", "control")})
    paths.__dict__["scratch"] = out / "scratch"
    return rlhf.run(params, paths)
