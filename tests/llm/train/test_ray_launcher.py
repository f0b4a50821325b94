"""Two CPU workers under Ray Train and DeepSpeed follow the local launcher's curve."""

import shutil

import numpy as np
import pytest
import torch

from llm.config import Base, ConfigError
from llm.data.loader import WindowLoader
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import train

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_size=32, mlp_size=96, context=64
)
BASE = Base(dtype="fp32", threads=2)
CONFIG = TrainConfig(optimiser="adamw", steps=12, batch_size=8, checkpoint_every=6, log_every=1, lr=0.003)


def make_parts(tmp_path, config=CONFIG):
    path = tmp_path / "train.bin"
    (np.random.default_rng(0).integers(0, 40, 4000).cumsum() % 300).astype(np.uint16).tofile(path)
    model = Transformer(SHAPE)
    init_weights(model, BASE.seed)
    return model, WindowLoader(np.memmap(path, dtype=np.uint16, mode="r"), 32, config.batch_size, BASE.seed)


def test_ray_refuses_muon(tmp_path):
    from llm.train.ray_launcher import Layout, train_with_ray

    config = CONFIG.model_copy(update={"optimiser": "muon"})
    model, loader = make_parts(tmp_path, config)
    with pytest.raises(ConfigError, match=r"pretrain\.optimiser: adamw"):
        train_with_ray(model, loader, config, BASE, tmp_path, Layout(workers=2))


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first run compiles DeepSpeed's communication op
def test_two_workers_follow_the_local_curve(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: DeepSpeed builds its communication op with it")
    from llm.train.ray_launcher import Layout, train_with_ray

    model, loader = make_parts(tmp_path)
    local = train(LocalEngine(model, CONFIG), loader.batch, CONFIG, BASE, None)
    spread, loader = make_parts(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ray = train_with_ray(spread, loader, CONFIG, BASE, scratch, Layout(workers=2, zero_stage=2))
    ours, theirs = ([point["loss"] for point in one.trace] for one in (local, ray))
    # fp32 sums in another order; negative control below: another learning rate leaves the band
    assert np.allclose(ours, theirs, atol=2e-4), (ours, theirs)
    assert torch.allclose(model.norm.weight, spread.norm.weight, atol=1e-3)
    slower = CONFIG.model_copy(update={"lr": 0.002})
    model, loader = make_parts(tmp_path)
    control = train(LocalEngine(model, slower), loader.batch, slower, BASE, None)
    assert not np.allclose(ours, [point["loss"] for point in control.trace], atol=2e-4)
