"""The same loop on several workers of a Ray cluster: a Ray Train TorchTrainer around one of two engines.

With `tensor_parallel` and `pipeline_parallel` at 1, DeepSpeed's ZeRO over all workers (llm/train/deepspeed_engine.py);
otherwise torch's tensor and pipeline parallelism (llm/train/parallel.py). The optimiser is AdamW in both.
On CPUs the workers talk through gloo; RAY_ADDRESS names a running cluster (RAY_AUTH_MODE=token
and RAY_AUTH_TOKEN as its head has them), without it Ray starts on this machine.
A worker that dies is started again with all the others, from the last checkpoint.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llm.config import Base, BaseParams, require
from llm.data.loader import Batch, WindowLoader
from llm.data.shards import open_shard
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.train.layout import Layout, check_layout
from llm.train.local import TrainConfig
from llm.train.loop import Engine, Trained, train
from llm.train.meter import Meter
from llm.train.parts import keep_only_parts, open_parts
from llm.train.schedule import count_stable_steps

log = logging.getLogger(__name__)
INITIAL, CURVE = "initial.safetensors", "trained.json"
MAX_FAILURES = 3  # restarts of a run; then the fault is not the machine's


class Job(BaseParams):
    """What a worker needs, as plain data."""

    shape: ModelConfig
    train: TrainConfig
    base: Base
    layout: Layout
    tokens: str
    tokens_dtype: str
    confined: bool
    context: int
    scratch: str


def run_worker(config: dict[str, Any]) -> None:
    """Train on one Ray worker; the last checkpoint in scratch and rank 0's curve are what the driver reads."""
    job = Job.model_validate_json(config["job"])
    import numpy as np

    if job.base.torch_device.type == "cuda":
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    scratch = Path(job.scratch)
    rank = torch.distributed.get_rank()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("llm").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    torch.set_num_threads(max(1, job.base.threads // torch.distributed.get_world_size()))
    tokens = np.memmap(job.tokens, dtype=job.tokens_dtype, mode="r")
    segments_of = open_shard(Path(job.tokens).parent, "train").segments if job.confined else None
    loader = WindowLoader(tokens, job.context, job.train.batch_size, job.base.seed, segments_of)
    with safe_open(scratch / INITIAL, framework="pt") as initial:
        engine = make_engine(job, initial.get_tensor)
    with torch.device("meta"):
        model = Transformer(job.shape)
    meter = Meter(job.train.steps, job.base, model, job.train.batch_size * job.context)
    trained = train(engine, loader.batch, job.train, job.base, scratch, meter)
    if rank == 0:
        (scratch / CURVE).write_text(json.dumps(trained._asdict()))


def make_engine(job: Job, initial: Any) -> Engine[Batch]:
    """Return the engine that serves the layout."""
    layout = job.layout
    if layout.is_sharded:
        from llm.train.parallel import ParallelEngine

        parallel = layout.tensor_parallel, layout.pipeline_parallel
        return ParallelEngine(job.shape, initial, job.train, job.base, *parallel)
    from llm.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(job.shape, initial, job.train, job.base, job.layout.zero_stage)


def train_with_ray(
    model: Transformer, loader: WindowLoader, config: TrainConfig, base: Base, scratch: Path, layout: Layout
) -> Trained:
    """Train `model` in place on Ray workers; scratch must be a path that all of them see."""
    require(config.optimiser == "adamw", "pretrain.launcher: ray trains with AdamW; set pretrain.optimiser: adamw")
    check_layout(model.config, layout, config.batch_size, loader.context)
    require(base.dtype != "fp16", "pretrain.launcher: ray computes in bf16 or fp32; set base.dtype")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = base.torch_device.type == "cuda"
    job = describe_job(model, loader, config, base, scratch, layout)
    write_initial(model, scratch / INITIAL)
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        num_cpus=None if "RAY_ADDRESS" in os.environ else max(layout.workers + 1, os.cpu_count() or 1),
        include_dashboard=False,
        runtime_env={"env_vars": worker_environment(scratch, gpu)},
    )
    try:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(num_workers=layout.workers, use_gpu=gpu),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(
                name="pretrain",
                storage_path=str((scratch / "ray").resolve()),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        trainer.fit()
    finally:
        ray.shutdown()
    parts = open_parts(scratch)
    assert parts is not None, f"the workers left no checkpoint in {scratch}"
    model.load_state_dict({name: parts.tensor(f"master/{name}") for name, _ in model.named_parameters()})
    keep_only_parts(scratch, count_stable_steps(config.steps, config))
    return Trained(**json.loads((scratch / CURVE).read_text()))


def describe_job(
    model: Transformer, loader: WindowLoader, config: TrainConfig, base: Base, scratch: Path, layout: Layout
) -> Job:
    """Return what the workers need; they read the tokens from the file that the loader has mapped."""
    memmap: Any = loader.tokens
    return Job(
        shape=model.config,
        train=TrainConfig(**{name: getattr(config, name) for name in TrainConfig.model_fields}),
        base=base,
        layout=layout,
        tokens=str(Path(memmap.filename).resolve()),
        tokens_dtype=str(memmap.dtype),
        confined=loader.segments_of is not None,
        context=loader.context,
        scratch=str(scratch.resolve()),
    )


def write_initial(model: Transformer, path: Path) -> None:
    """Write the weights that all workers start from; a later process starts from the same ones."""
    partial = path.with_suffix(".partial")
    save_file({name: p.detach().float().contiguous() for name, p in model.named_parameters()}, partial)
    os.replace(partial, path)


def worker_environment(scratch: Path, gpu: bool) -> dict[str, str]:
    """Return what DeepSpeed needs to know before it is imported."""
    extensions = Path(os.environ.get("TORCH_EXTENSIONS_DIR", scratch / "torch_extensions")).resolve()
    # A build that was killed leaves a lock on which every later run would wait for ever.
    for lock in extensions.rglob("lock"):
        lock.unlink()
    paths = {"PYTHONPATH": str(Path.cwd()), "TORCH_EXTENSIONS_DIR": str(extensions)}
    return paths | ({} if gpu else {"DS_ACCELERATOR": "cpu"})
