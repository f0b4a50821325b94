"""Run a function on several gloo ranks, and the tiny training problem that the tests of all engines share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

from llm.config import Base
from llm.data.loader import Batch, WindowLoader
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.local import LocalEngine, TrainConfig
from llm.train.loop import train

SHAPE = ModelConfig(
    vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, head_size=16, mlp_size=96, context=64
)
UNTIED = SHAPE.model_copy(update={"tie_embeddings": False})
BASE = Base(dtype="fp32", threads=1)
CONFIG = TrainConfig(
    optimiser="adamw", steps=6, batch_size=4, checkpoint_every=4, log_every=1, lr=0.01, warmup_steps=1, micro_batch=1,
    checkpoint_activations=True,
)  # fmt: skip
# fp32 sums in another order; the largest difference seen over six steps was 2e-6
TOLERANCE = 5e-5


def make_loader() -> WindowLoader:
    """Return windows of a sequence that can be learned, with attention confined to documents of 20 tokens."""
    tokens = (np.random.default_rng(0).integers(0, 3, 4000).cumsum() % 320).astype(np.uint16)
    return WindowLoader(tokens, 32, CONFIG.batch_size, BASE.seed, lambda start, stop: np.arange(start, stop) // 20)


def make_model(shape: ModelConfig) -> Transformer:
    model = Transformer(shape)
    init_weights(model, BASE.seed)
    return model


def local_curve(shape: ModelConfig = SHAPE, batch_of: Callable[[int], Batch] | None = None) -> list[float]:
    """Return the losses of one process."""
    model = make_model(shape)
    trained = train(LocalEngine(model, CONFIG), batch_of or make_loader().batch, CONFIG, BASE, None)
    return [point["loss"] for point in trained.trace]


def run_ranks(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run `work(*arguments)` on `world` gloo ranks; return what each returned, through JSON."""
    store = folder / f"store-{world}-{len(list(folder.iterdir()))}"
    mp.spawn(_enter, args=(world, str(store), work, arguments), nprocs=world)
    return [json.loads(Path(f"{store}-{rank}.json").read_text()) for rank in range(world)]


def _enter(rank: int, world: int, store: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_SIZE": world}
    os.environ.update({name: str(value) for name, value in names.items()}, DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    Path(f"{store}-{rank}.json").write_text(json.dumps(work(*arguments)))
    torch.distributed.destroy_process_group()
