"""Two CPU workers under Ray Train follow the local launcher's curve, also when one of them is killed in mid-run."""

import json
import shutil
import threading

import numpy as np
import psutil
import pytest
import torch

from llm.config import Base, ConfigError
from llm.data.loader import WindowLoader
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.layout import Layout
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import train
from llm.train.parts import list_parts
from llm.train.ray_launcher import CURVE, INITIAL, describe_job, run_worker, train_with_ray, write_initial
from tests.llm.train.ranks import run_ranks

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, head_size=32, mlp_size=96, context=64
)
BASE = Base(dtype="fp32", threads=2)
CONFIG = TrainConfig(
    optimiser="adamw", steps=40, batch_size=8, micro_batch=4, checkpoint_every=2, log_every=1, lr=0.003
)
TOLERANCE = 2e-4  # fp32 sums in another order, over forty steps


def make_parts(tmp_path, config=CONFIG):
    path = tmp_path / "train.bin"
    (np.random.default_rng(0).integers(0, 40, 4000).cumsum() % 300).astype(np.uint16).tofile(path)
    model = Transformer(SHAPE)
    init_weights(model, BASE.seed)
    return model, WindowLoader(np.memmap(path, dtype=np.uint16, mode="r"), 32, config.batch_size, BASE.seed)


def local_curve(tmp_path, config=CONFIG):
    model, loader = make_parts(tmp_path)
    return [point["loss"] for point in train(LocalEngine(model, config), loader.batch, config, BASE, None).trace], model


def test_ray_refuses_muon(tmp_path):
    config = CONFIG.model_copy(update={"optimiser": "muon"})
    model, loader = make_parts(tmp_path, config)
    with pytest.raises(ConfigError, match=r"pretrain\.optimiser: adamw"):
        train_with_ray(model, loader, config, BASE, tmp_path, Layout(workers=2))


def test_ray_refuses_what_cannot_be_split(tmp_path):
    model, loader = make_parts(tmp_path)
    with pytest.raises(ConfigError, match="tie_embeddings: false"):
        train_with_ray(model, loader, CONFIG, BASE, tmp_path, Layout(2, 3, 1, 2))


def kill_one_worker(scratch, killed):
    """Send SIGKILL to one of this process's Ray workers once a checkpoint is there."""
    while not list_parts(scratch):
        if killed.wait(0.01):
            return
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()) and not (scratch / CURVE).exists():
            process.kill()
            killed.set()
            return


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first run compiles DeepSpeed's communication op
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed builds its communication op with g++")
def test_two_workers_follow_the_local_curve_though_one_is_killed(tmp_path, torch_extensions):
    ours, model = local_curve(tmp_path)
    spread, loader = make_parts(tmp_path)
    scratch, killed = tmp_path / "scratch", threading.Event()
    scratch.mkdir()
    killer = threading.Thread(target=kill_one_worker, args=(scratch, killed))
    killer.start()
    try:
        ray = train_with_ray(spread, loader, CONFIG, BASE, scratch, Layout(2, zero_stage=2))
        assert killed.is_set(), "no worker was killed in mid-run"
    finally:
        killed.set()
        killer.join()
    theirs = [point["loss"] for point in ray.trace]
    assert np.allclose(ours, theirs, atol=TOLERANCE), np.abs(np.subtract(ours, theirs)).max()
    control, _ = local_curve(tmp_path, CONFIG.model_copy(update={"lr": 0.002}))
    assert not np.allclose(ours, control, atol=TOLERANCE)
    assert torch.allclose(model.norm.weight, spread.norm.weight, atol=1e-3)


@pytest.mark.slow
def test_a_worker_serves_a_tensor_parallel_layout(tmp_path, torch_extensions):
    """The function that Ray runs on a worker, on two ranks without Ray: it chooses the engine by the layout."""
    config = CONFIG.model_copy(update={"steps": 6})
    model, loader = make_parts(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_initial(model, scratch / INITIAL)
    job = describe_job(model, loader, config, BASE, scratch, Layout(2, tensor_parallel=2))
    run_ranks(run_worker, 2, tmp_path, {"job": job.model_dump_json()})
    theirs = [point["loss"] for point in json.loads((scratch / CURVE).read_text())["trace"]]
    assert np.allclose(local_curve(tmp_path, config)[0], theirs, atol=TOLERANCE)
