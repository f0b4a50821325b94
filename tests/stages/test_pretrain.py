"""Pretrain's params: presets and the dial fill in what is left out, and an impossible mix is told at once."""

import math
from pathlib import Path

import pytest
import yaml

from llm.config import ConfigError
from llm.data.shards import write_shard
from llm.data.tokenizer import train_tokenizer
from llm.model.presets import PRESETS
from llm.train.dial import turn_dial
from stages.plumbing.stage import Paths, parse_params
from stages.pretrain import DERIVED, Params, run

ROOT = Path(__file__).parents[2]
OWN = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_size": 96}


def parse(**section):
    return parse_params("pretrain", Params, {"pretrain": section})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_enough(name):
    params = parse(preset=name)
    shape = PRESETS[name]
    assert params.shape(shape.vocab_size) == shape
    settings = turn_dial(shape, shape.context, "muon")
    assert tuple(getattr(params, name) for name in DERIVED) == settings[:5]


def test_what_is_given_overrides_the_preset():
    params = parse(preset="mini", num_layers=6, context=256, batch_size=16, lr=0.02)
    assert (params.num_layers, params.hidden_size, params.lr) == (6, 256, 0.02)
    deeper = PRESETS["mini"].model_copy(update={"num_layers": 6})
    settings = turn_dial(deeper, 256, "muon", 16)
    assert (params.embedding_lr, params.batch_size, params.steps) == (settings.embedding_lr, 16, settings.steps)


def test_a_shape_of_ones_own_is_enough():
    assert parse(**OWN, batch_size=8, steps=5).lr == turn_dial(parse(**OWN).shape(300), 256, "muon", 8).lr


def test_rates_and_batch_do_not_depend_on_steps():
    short, long = (parse(preset="mini", steps=steps) for steps in (100, 100_000))
    assert long.model_dump(exclude={"steps"}) == short.model_dump(exclude={"steps"})


def test_the_report_says_what_really_ran(tmp_path, caplog):
    (tmp_path / "tokens").mkdir()
    texts = ["one two three four five six seven eight nine ten. " * 30] * 4
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save(tmp_path / "tokenizer")
    write_shard(tmp_path / "tokens", "train", [(str(i), text) for i, text in enumerate(texts)], tokenizer)
    deps = {"data/tokens": tmp_path / "tokens", "models/tokenizer": tmp_path / "tokenizer"}
    paths = Paths("pretrain", deps, {"models/base": tmp_path / "base"})
    paths.scratch = tmp_path / "scratch"
    base = {"threads": 1}
    params = parse_params("pretrain", Params, {"base": base, "pretrain": {"preset": "nano", "steps": 2, "context": 64}})
    metrics = run(params, paths)
    settings = turn_dial(PRESETS["nano"], 64, "muon")
    assert (metrics["lr"], metrics["embedding_lr"], metrics["batch_size"]) == settings[:3]
    assert (metrics["steps"], metrics["context"], metrics["optimiser"]) == (2, 64, "muon")
    assert metrics["shape"] == params.shape(tokenizer.vocab_size).model_dump()
    assert "passes over the text" in caplog.text


def test_null_is_left_out():
    assert parse(preset="nano", lr=None, hidden_size=None) == parse(preset="nano")


def test_the_default_recipe_is_the_preset_mini_at_the_measured_point():
    params = parse_params("pretrain", Params, yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert params.shape(4096) == PRESETS["mini"]
    settings = turn_dial(PRESETS["mini"], params.context, params.optimiser, tokens=700 * 4096)
    assert tuple(getattr(params, name) for name in DERIVED) == settings[:5]


def test_without_a_preset_every_missing_size_is_named():
    with pytest.raises(ConfigError) as error:
        parse(hidden_size=64)
    for name in ("num_layers", "num_heads", "num_kv_heads", "mlp_size"):
        assert f"pretrain.{name}: missing: give it, or a preset (nano, mini" in str(error.value)
    assert "hidden_size: missing" not in str(error.value)


def test_an_impossible_mix_lists_every_problem():
    mix = {"num_kv_heads": 3, "launcher": "ray", "tensor_parallel": 5, "pipeline_parallel": 3, "workers": 8}
    with pytest.raises(ConfigError) as error:
        parse(preset="1b", **mix)
    lines = str(error.value).splitlines()
    for key in ("num_kv_heads", "optimiser", "tensor_parallel", "pipeline_parallel", "workers"):
        assert sum(f"pretrain.{key}: " in line for line in lines) >= 1, (key, lines)
    assert "tensor_parallel x pipeline_parallel = 15 (got 8)" in str(error.value)


def test_ranks_share_the_batch_evenly():
    with pytest.raises(ConfigError, match=r"pretrain\.batch_size: must be a multiple of the 6 ranks"):
        parse(preset="small", launcher="ray", optimiser="adamw", workers=6)
    with pytest.raises(ConfigError, match=r"8 ranks that share it x micro_batch=32 \(got 128\)"):
        parse(preset="small", launcher="ray", optimiser="adamw", workers=8, micro_batch=32)
    assert parse(preset="small", launcher="ray", optimiser="adamw", workers=8, micro_batch=16).batch_size == 128


def test_the_local_launcher_refuses_ranks():
    with pytest.raises(ConfigError, match=r"pretrain\.workers: launcher: local is one process"):
        parse(preset="nano", workers=2)


def test_faulty_values_are_told_by_their_fields_alone():
    with pytest.raises(ConfigError) as error:
        parse(preset="mini", hidden_size="wide", decay=3, lr=math.nan, batch_size=-1)
    text = str(error.value)
    assert all(f"pretrain.{key}: " in text for key in ("hidden_size", "decay", "lr", "batch_size"))
    assert "pretrain.steps" not in text
    with pytest.raises(ConfigError, match=r"pretrain\.preset: Input should be 'nano'"):
        parse(preset="huge", **OWN)
