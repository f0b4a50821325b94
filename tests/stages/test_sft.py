"""The sft stage with adapters: a merged folder like any other, the adapter beside it, the base untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm.config import Base, ConfigError
from llm.data.chat_shards import write_chats
from llm.data.loader import pad_batch
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer, init_weights
from llm.train.local import evaluate_loss
from llm.train.lora import LoraConfig
from stages import sft
from stages.plumbing.stage import Paths, parse_params

TALKS = [
    {
        "id": f"c{i}",
        "kind": "qa",
        "messages": [
            {"role": "user", "content": f"When does mill {i} stop?"},
            {"role": "assistant", "content": f"Mill {i} stops at noon."},
        ],
    }
    for i in range(60)
]
PARAMS = sft.Params(
    base=Base(threads=1), steps=30, batch_size=8, optimiser="adamw", lr=0.02, embedding_lr=0.02,
    lora=LoraConfig(rank=8, alpha=16),
)  # fmt: skip


@pytest.fixture(scope="module")
def deps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sft")
    tokenizer = train_tokenizer([turn["content"] for talk in TALKS for turn in talk["messages"]], 320)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_size=32,
        mlp_size=96, context=128,
    )  # fmt: skip
    model = Transformer(shape)
    init_weights(model, 1)
    save_model(model, root / "base")
    tokenizer.save(root / "base")
    for split, talks in (("train", TALKS[:48]), ("val", TALKS[48:])):
        write_chats(root / "chats", split, talks, tokenizer)
    return {"models/base": root / "base", "data/chats": root / "chats"}


def run(deps: dict[str, Path], root: Path, params: sft.Params = PARAMS) -> dict[str, Any]:
    paths = Paths("sft", deps, {"models/sft": root / "sft"})
    paths.__dict__["scratch"] = root / "scratch"
    return sft.run(params, paths)


def test_adapters_learn_and_are_merged(deps: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(deps, tmp_path)
    loss = metrics["held_out_loss"]
    assert loss["after"] < loss["before"] - 0.5
    before, after = (load_file(folder / "model.safetensors") for folder in (deps["models/base"], tmp_path / "sft"))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        adapted = name.split(".")[-2].endswith("_proj")
        assert torch.equal(tensor, after[name]) != adapted, name
    assert sorted(path.name for path in (tmp_path / "sft" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    # The merged folder is what was measured, but for the bf16 of training.
    rows = sft.read_conversations(deps["data/chats"], PARAMS)[0]["val"]
    merged = evaluate_loss(load_model(tmp_path / "sft"), [pad_batch(rows, Tokenizer.load(tmp_path / "sft").eos_id)])
    assert merged == pytest.approx(loss["after"], abs=0.02)  # measured 0.002


def test_the_same_bytes_again(deps: dict[str, Path], tmp_path: Path) -> None:
    short = PARAMS.model_copy(update={"steps": 4})
    assert run(deps, tmp_path / "one", short) == run(deps, tmp_path / "two", short)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "trace.jsonl"):
        assert (tmp_path / "one/sft" / name).read_bytes() == (tmp_path / "two/sft" / name).read_bytes()


def test_an_unknown_key_of_lora_is_explained() -> None:
    tree = {"sft": {"steps": 1, "batch_size": 1, "lora": {"rnk": 4}}}
    with pytest.raises(ConfigError, match=r"sft.lora.rnk: unknown key; allowed in sft.lora: rank, alpha, targets"):
        parse_params("sft", sft.Params, tree)
