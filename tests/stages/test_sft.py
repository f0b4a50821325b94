"""The sft stage: adapters, packed rows, weights, early stopping, and what it refuses or counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm.config import Base, ConfigError
from llm.data.chat_shards import write_chats
from llm.data.loader import Batch, ConversationLoader, pad_batch
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer, init_weights
from llm.train.checkpoint import load_checkpoint
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
    rows = sft.read_conversations(deps["data/chats"], 128, {})[0]["val"]
    merged = evaluate_loss(load_model(tmp_path / "sft"), [pad_batch(rows, Tokenizer.load(tmp_path / "sft").eos_id)])
    assert merged == pytest.approx(loss["after"], abs=0.02)  # measured 0.002


def test_the_same_bytes_again(deps: dict[str, Path], tmp_path: Path) -> None:
    short = PARAMS.model_copy(update={"steps": 4})
    assert run(deps, tmp_path / "one", short) == run(deps, tmp_path / "two", short)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "trace.jsonl"):
        assert (tmp_path / "one/sft" / name).read_bytes() == (tmp_path / "two/sft" / name).read_bytes()


def test_packed_rows_learn_as_well(deps: dict[str, Path], tmp_path: Path) -> None:
    """As many conversations a step, so the same epochs: three share a row of 128 tokens."""
    full = PARAMS.model_copy(update={"lora": None, "lr": 0.005, "embedding_lr": 0.005, "batch_size": 12})
    padded = run(deps, tmp_path / "padded", full)["held_out_loss"]
    packed = run(deps, tmp_path / "packed", full.model_copy(update={"pack": True, "batch_size": 4}))["held_out_loss"]
    assert packed["before"] == padded["before"]
    assert packed["after"] == pytest.approx(padded["after"], abs=0.1)
    assert packed["after"] < packed["before"] - 1


def test_early_stopping_keeps_the_best_and_says_so(deps: dict[str, Path], tmp_path: Path) -> None:
    """At a rate that is far too high every held-out loss but the first few is worse."""
    hot = PARAMS.model_copy(update={"lora": None, "lr": 0.2, "embedding_lr": 0.2, "eval_every": 1, "patience": 2})
    loss = run(deps, tmp_path / "stopped", hot)["held_out_loss"]
    losses = [point["loss"] for point in loss["curve"]]
    assert len(losses) < hot.steps
    assert loss["after"] == min(losses) < losses[-1]
    assert loss["kept_step"] == losses.index(min(losses)) + 1
    saved = evaluate_loss(
        load_model(tmp_path / "stopped/sft").to(torch.bfloat16),
        [pad_batch(sft.read_conversations(deps["data/chats"], 128, {})[0]["val"], 0)],
    )
    assert saved == pytest.approx(loss["after"], abs=1e-4)  # the same rows, padded to another width


def test_weights_change_what_is_learned(deps: dict[str, Path], tmp_path: Path) -> None:
    """An answer of weight 0 teaches nothing: held-out answers like it stay as unlikely as without it."""
    tokenizer = Tokenizer.load(deps["models/base"])
    turns = TALKS[0]["messages"]
    wrong = [{"role": "user", "content": "And at night?"}, {"role": "assistant", "content": "when when when when"}]
    talks: list[dict[str, Any]] = [{**talk, "messages": [*turns, *wrong]} for talk in TALKS]  # type: ignore[misc]
    learned = {}
    for name, weights in (("zero", [1.0, 0.0]), ("ten", [1.0, 10.0])):
        write_chats(tmp_path / name, "train", [{**talk, "weights": weights} for talk in talks], tokenizer)
        write_chats(tmp_path / name, "val", [{**talk, "weights": [0.0, 1.0]} for talk in talks[:8]], tokenizer)
        full = PARAMS.model_copy(update={"lora": None, "steps": 10})
        learned[name] = run({**deps, "data/chats": tmp_path / name}, tmp_path / name, full)["held_out_loss"]
    assert learned["ten"]["after"] < 1 < learned["zero"]["after"] - 2


def test_conversations_over_the_context_are_counted(deps: dict[str, Path], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "mill " * 200}, {"role": "assistant", "content": "No."}]
    long = {"id": "long", "kind": "qa", "messages": turns}
    write_chats(tmp_path / "chats", "train", [*TALKS, long], Tokenizer.load(deps["models/base"]))
    write_chats(tmp_path / "chats", "val", [], Tokenizer.load(deps["models/base"]))
    metrics = run({**deps, "data/chats": tmp_path / "chats"}, tmp_path, PARAMS.model_copy(update={"steps": 1}))
    assert (metrics["too_long"], metrics["conversations"]["train"]) == (1, len(TALKS))
    with pytest.raises(ConfigError, match="sft.eval_every: there is no held-out conversation"):
        run({**deps, "data/chats": tmp_path / "chats"}, tmp_path, PARAMS.model_copy(update={"eval_every": 1}))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    deps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(ConversationLoader):
        def batch(self, step: int) -> Batch:
            batch = super().batch(step)
            return batch._replace(weights=torch.full(batch.targets.shape, torch.nan)) if step == 5 else batch

    monkeypatch.setattr(sft, "ConversationLoader", Poisoned)
    with pytest.raises(ConfigError, match=r"step 6: the loss is nan: .*The last checkpoint is kept.*documents: c\d"):
        run(deps, tmp_path, PARAMS.model_copy(update={"checkpoint_every": 2, "log_every": 1}))
    found = load_checkpoint(tmp_path / "scratch")
    assert found is not None
    step, _, extra = found
    assert step == 4
    assert [point["step"] for point in extra["trace"]] == [1, 2, 3, 4]
    assert not (tmp_path / "sft").exists()
    monkeypatch.undo()
    mended = run(deps, tmp_path, PARAMS.model_copy(update={"checkpoint_every": 2, "log_every": 1}))
    assert mended == run(deps, tmp_path / "whole", PARAMS.model_copy(update={"checkpoint_every": 2, "log_every": 1}))


def test_an_unknown_key_of_lora_is_explained() -> None:
    tree = {"sft": {"steps": 1, "batch_size": 1, "lora": {"rnk": 4}}}
    with pytest.raises(ConfigError, match=r"sft.lora.rnk: unknown key; allowed in sft.lora: rank, alpha, targets"):
        parse_params("sft", sft.Params, tree)
