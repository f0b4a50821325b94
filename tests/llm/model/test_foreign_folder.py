"""Folders that transformers wrote: read with its logits, written with its tensors, refused by name where not ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.config import Base, ConfigError, InitFrom
from llm.model.config import ModelConfig
from llm.model.files import digest_folder, list_weights, open_start
from llm.model.folder import load_model, read_config, save_model, start_model
from tests.qwen3 import write_qwen3, write_tokenizer


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shards", [False, True], ids=["one", "sharded"])
def test_enters_with_equal_logits_and_leaves_bit_identical(tmp_path: Path, tie, dtype, shards):
    theirs = write_qwen3(tmp_path / "in", tie=tie, dtype=dtype, shards=shards)
    assert (len(list_weights(tmp_path / "in")) > 1) == shards
    ours = load_model(tmp_path / "in")
    tokens = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = (theirs(tokens).logits - ours.unembed(ours(tokens))).abs().max()
    assert gap < 1e-4  # fp32 rounding of two orders of summation; measured 0 at this size
    save_model(ours, tmp_path / "out")
    before = {name: t for file in list_weights(tmp_path / "in") for name, t in load_file(file).items()}
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor.float()) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types=\['sliding_attention'\]"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, r"rope scaling=\['yarn'\]"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope scaling=\['linear'\]"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "qwen3_moe"}, "only the dense 'qwen3' shape"),
        ({"head_dim": 17}, "head_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 330}, "do not fit config.json"),
        ({"num_hidden_layers": 3}, r"11 tensors.*model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, r"11 tensors.*layers.1.input_layernorm.weight has no place in the core"),
    ],
)
def test_what_the_core_cannot_compute_is_named(tmp_path: Path, change, message):
    write_qwen3(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)


def test_rope_theta_is_read_as_old_and_new_versions_write_it(tmp_path: Path):
    write_qwen3(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 1e6, "rope_scaling": None}))
    assert read_config(tmp_path).rope_theta == 1e6
    (tmp_path / "config.json").write_text(json.dumps({key: v for key, v in config.items() if key != "head_dim"}))
    with pytest.raises(ConfigError, match="lacks 'head_dim'"):
        read_config(tmp_path)


def test_a_tied_folder_may_repeat_its_embedding(tmp_path: Path):
    write_qwen3(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    plain = load_model(tmp_path).state_dict()
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors")
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        load_model(tmp_path)


def test_pickle_and_lost_shards_are_refused(tmp_path: Path):
    write_qwen3(tmp_path, shards=True)
    list_weights(tmp_path)[0].unlink()
    with pytest.raises(ConfigError, match="model-00001-of-.*copy the whole folder"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')
    with pytest.raises(ConfigError, match=r"\.\./model.safetensors, no file of"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="save_pretrained"):
        load_model(tmp_path)


def test_the_digest_is_of_what_is_read(tmp_path: Path):
    write_qwen3(tmp_path, shards=True)
    write_tokenizer(tmp_path)
    digest = digest_folder(tmp_path)
    start = InitFrom(path=str(tmp_path), digest=digest)
    assert open_start(start) == tmp_path
    (tmp_path / "README.md").write_text("not read")
    assert digest_folder(tmp_path) == digest
    for file in [*list_weights(tmp_path), tmp_path / "config.json", tmp_path / "tokenizer.json"]:
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        with pytest.raises(ConfigError, match=f"make run INIT_FROM={tmp_path}"):
            open_start(start)
        file.write_bytes(content)
    assert open_start(start) == tmp_path
    with pytest.raises(ConfigError, match=r"does not exist.*`make run INIT_FROM=0123456789abcdef`"):
        open_start(InitFrom(path="models/start/0123456789abcdef", digest=digest, release="0123456789abcdef"))


def test_training_starts_from_the_folder_or_anew(tmp_path: Path):
    write_qwen3(tmp_path)
    write_tokenizer(tmp_path)
    shape = ModelConfig(
        vocab_size=300, hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, head_size=32, mlp_size=64, context=32
    )
    start = InitFrom(path=str(tmp_path), digest=digest_folder(tmp_path))
    assert start_model(shape, Base(init_from=start)).config == read_config(tmp_path)
    new = start_model(shape, Base(seed=4))
    assert new.config == shape
    assert not torch.equal(new.embedding.weight, start_model(shape, Base(seed=5)).embedding.weight)
