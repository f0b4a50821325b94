"""Starting from a model: the recipe writes it, the stages check it, and a Qwen3 of another hand goes through them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm.config import Base, ConfigError, InitFrom
from llm.data.schema import Conversation, Document, write_rows
from llm.data.shards import open_shard
from llm.data.tokenizer import Tokenizer, adopt_tokenizer
from llm.export.gguf import write_gguf
from llm.export.openvino import OpenVinoScorer
from llm.infer.score import score
from llm.model.files import digest_folder
from llm.model.folder import load_model
from stages import pretrain, sft, tokenize
from stages.plumbing import recipe
from stages.plumbing.stage import Paths, parse_params
from tests.qwen3 import TEXTS, write_qwen3, write_tokenizer

SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_size": 32, "mlp_size": 64}
WIDE = 1e-4  # nats or logits; fp32 rounding of two orders of summation


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded bf16 Qwen3 with 18 rows more than its tokenizer has entries."""
    folder = tmp_path_factory.mktemp("qwen") / "Qwen3-tiny"
    write_qwen3(folder, dtype=torch.bfloat16, shards=True)
    write_tokenizer(folder)
    return folder


def start_from(folder: Path) -> Base:
    return Base(threads=1, init_from=InitFrom(path=str(folder), digest=digest_folder(folder)))


def write_clean(folder: Path) -> Path:
    folder.mkdir()
    splits = {f"g{i}": "val" if i % 5 == 0 else "train" for i in range(40)}
    documents = [Document(f"d{i}", f"{TEXTS[0]} {i}", "books", "", "", "{}", f"g{i}") for i in range(40)]
    write_rows(folder / "documents.parquet", Document, documents, splits)
    talks = []
    for i in range(40):
        turns = [{"role": "user", "content": f"When, {i}?"}, {"role": "assistant", "content": f"At noon, {i % 3}."}]
        talks.append(Conversation(f"c{i}", f"g{i}", "chat", "qa", turns))
    write_rows(folder / "conversations.parquet", Conversation, talks, splits)
    return folder


def run_stages(base: Base, clean: Path, root: Path, steps: int) -> dict[str, Any]:
    """Run tokenize and pretrain, and return pretrain's metrics."""
    outs = {name: root / name for name in ("data/tokens", "data/chats", "models/tokenizer")}
    tokenize.run(tokenize.Params(base=base, fertility_bytes=2000), Paths("tokenize", {"data/clean": clean}, outs))
    params = pretrain.Params(
        base=base, steps=steps, batch_size=2, context=32, optimiser="adamw", lr=1e-4, embedding_lr=1e-4, **SHAPE
    )
    paths = Paths("pretrain", outs, {"models/base": root / "models/base"})
    paths.__dict__["scratch"] = root / "scratch"
    return pretrain.run(params, paths)


@pytest.mark.slow
def test_a_qwen3_of_another_hand_goes_through_the_stages(qwen: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, clean = start_from(qwen), write_clean(tmp_path / "clean")
    metrics = run_stages(base, clean, tmp_path, steps=0)
    assert (metrics["steps"], metrics["tokens_seen"], metrics["final_loss"]) == (0, 0, None)

    # tokenize used its tokenizer
    shard = open_shard(tmp_path / "data/tokens", "train")
    assert shard.tokens[: shard.offsets[1] - 1].tolist() == adopt_tokenizer(qwen).encode(f"{TEXTS[0]} 1")

    # pretrain passed it through: every weight to the bit, and transformers' logits
    before = {name: t.float() for file in qwen.glob("*.safetensors") for name, t in load_file(file).items()}
    after = load_file(tmp_path / "models/base/model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    theirs = AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32)
    ours = load_model(tmp_path / "models/base")
    tokens_BT = torch.randint(0, 302, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(tokens_BT).logits - ours.unembed(ours(tokens_BT))).abs().max() < WIDE
    read = AutoTokenizer.from_pretrained(tmp_path / "models/base")
    assert read(TEXTS[0], add_special_tokens=False)["input_ids"] == adopt_tokenizer(qwen).encode(TEXTS[0])

    # sft learns on top of it
    params = sft.Params(base=base, steps=20, batch_size=8, optimiser="adamw", lr=3e-3, embedding_lr=3e-3)
    deps = {"models/base": tmp_path / "models/base", "data/chats": tmp_path / "data/chats"}
    paths = Paths("sft", deps, {"models/sft": tmp_path / "models/sft"})
    paths.__dict__["scratch"] = tmp_path / "scratch-sft"
    loss = sft.run(params, paths)["held_out_loss"]
    assert loss["after"] < loss["before"] - 0.5

    # and the served file has rows beyond the tokenizer, which the engine reads
    model, tokenizer = load_model(tmp_path / "models/sft"), Tokenizer.load(tmp_path / "models/sft")
    write_gguf(tmp_path / "f16.gguf", model, tokenizer, "f16")
    scorer = OpenVinoScorer(tmp_path / "f16.gguf", vocab_size=320, context=256, threads=1)
    ids = tokenizer.encode(TEXTS[0])
    gap = torch.tensor(scorer.score([ids])[0]) - torch.tensor(score(model, [ids], [1])[0])
    assert gap.abs().max() < 0.02  # f16 weights; measured 4e-3


def test_training_goes_on_from_the_folder(qwen: Path, tmp_path: Path) -> None:
    """The first loss is that of the model as it came, and the shape is its own, whatever pretrain's keys say."""
    clean, theirs = write_clean(tmp_path / "clean"), load_model(qwen)
    metrics = run_stages(start_from(qwen), clean, tmp_path, steps=4)
    assert metrics["steps"] == 4
    trained = load_model(tmp_path / "models/base")
    assert trained.config == theirs.config
    moved = (trained.embedding.weight - theirs.embedding.weight).abs().max()
    assert 0 < moved < 0.05  # four steps of at most 1e-4, and the rounding of training in bf16


def test_what_changed_since_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder, clean = shutil.copytree(qwen, tmp_path / "model"), write_clean(tmp_path / "clean")
    base = start_from(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"base.init_from: .* has digest .*restore the folder.*make run INIT_FROM="):
        run_stages(base, clean, tmp_path, steps=0)


def test_no_steps_need_a_model_to_start_from() -> None:
    section = {"steps": 0, "batch_size": 1, **SHAPE}
    with pytest.raises(ConfigError, match=r"pretrain\.steps: 0 leaves random weights.*base\.init_from"):
        parse_params("pretrain", pretrain.Params, {"pretrain": section})
    with pytest.raises(
        ConfigError, match=r"base\.init_from\.where: unknown key; allowed in base\.init_from: path, dig"
    ):
        parse_params("pretrain", pretrain.Params, {"pretrain": section, "base": {"init_from": {"where": "x"}}})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    text = "# smoke\nbase: {seed: 1}\ningest:\n  sources: {}\npretrain:\n  steps: 7  # few\n"
    (tmp_path / "recipes" / "smoke.yaml").write_text(text)
    return tmp_path


def test_the_recipe_writes_folder_and_digest(workspace: Path, qwen: Path) -> None:
    recipe.write_params("smoke", None, str(qwen))
    written = recipe.read_yaml(Path("params.yaml"))
    assert written["base"] == {"seed": 1, "init_from": {"path": str(qwen), "digest": digest_folder(qwen)}}
    assert written["pretrain"] == {"steps": 0}
    text = Path("params.yaml").read_text()
    assert "# few" in text
    recipe.write_params("smoke", None, str(qwen))  # again: nothing that could be lost
    Path("params.yaml").write_text(text.replace("steps: 0", "steps: 30"))
    recipe.write_params(None, None, str(qwen))  # steps that were set since stay
    assert recipe.read_yaml(Path("params.yaml"))["pretrain"] == {"steps": 30}


def test_what_cannot_be_started_from_is_named(workspace: Path, qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INIT_FROM=./nowhere: no such folder, and no release hash"):
        recipe.write_params("smoke", None, "./nowhere")
    small = shutil.copytree(qwen, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    with pytest.raises(ConfigError, match=r"301 embeddings, its tokenizer 302 tokens.*resize_token_embeddings"):
        recipe.write_params("smoke", None, str(small))
    assert not Path("params.yaml").exists()
