"""The same loop on several workers: a Ray Train TorchTrainer around a DeepSpeed engine.

On CPUs the workers talk through gloo; RAY_ADDRESS names a running cluster, without it Ray starts on this machine.
The optimiser is AdamW: under ZeRO torch's Muon raises, because parameters are flattened.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.config import Base, BaseParams, ConfigError, require
from llm.data.loader import Batch, WindowLoader
from llm.model.config import ModelConfig
from llm.model.folder import start_model
from llm.model.transformer import Transformer
from llm.train.local import TrainConfig, model_loss
from llm.train.loop import Trained, train
from llm.train.meter import Meter
from llm.train.optimiser import NonFiniteError, OptimiserConfig, is_hidden_matrix

log = logging.getLogger(__name__)
WEIGHTS, CURVE = "weights.safetensors", "trained.json"


class DeepSpeedEngine:
    """One worker's share: its rows of the global batch; gradients, optimiser state and step are DeepSpeed's."""

    def __init__(self, model: Transformer, config: TrainConfig, base: Base, zero_stage: int):
        import deepspeed

        self.world, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.peaks = (config.lr, config.embedding_lr)
        optimiser = torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.95))
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimiser,
            config=deepspeed_config(config, base, zero_stage, self.world),
            dist_init_required=False,
        )

    def step(self, batch: Batch, lr_scale: float) -> dict[str, Tensor | float]:
        share = slice(self.rank, None, self.world)
        segments = None if batch.segments is None else batch.segments[share]
        mine = Batch(batch.tokens[share], batch.targets[share], segments).to(self.engine.device)
        for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_scale
        loss = model_loss(self.engine, mine)
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        value = float(mean) / self.world
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value}: lower lr, or use base.dtype: fp32. The last checkpoint is kept")
        self.engine.backward(loss)
        self.engine.step()
        return {"loss": value, "grad": float(self.engine.get_global_grad_norm() or 0.0)}

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        self.engine.save_checkpoint(str(folder), tag=f"step-{step:08d}", client_state={"step": step, "extra": extra})
        if self.rank == 0:
            for old in sorted(folder.glob("step-*"))[:-2]:
                shutil.rmtree(old)

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        path, client = self.engine.load_checkpoint(str(folder))
        return None if path is None else (client["step"], client["extra"])

    def agree(self, wish: bool) -> bool:
        wishes = torch.tensor(float(wish), device=self.engine.device)
        torch.distributed.all_reduce(wishes)
        return bool(wishes > 0)

    def full_weights(self) -> dict[str, Tensor]:
        """Return all fp32 weights; every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        named = self.engine.module.named_parameters()
        return {name: _full(safe_get_full_fp32_param(parameter), parameter) for name, parameter in named}


def _full(gathered: Tensor | None, parameter: Tensor) -> Tensor:
    """Without ZeRO, and in fp32 below stage 3, the parameter itself is the master."""
    return (parameter if gathered is None else gathered).detach().float().cpu().clone()


def parameter_groups(model: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Return the local optimiser's two groups, so that both launchers train alike."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if is_hidden_matrix(n, p)]
    rest = [p for n, p in named if not is_hidden_matrix(n, p)]
    return [
        {"params": hidden, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": rest, "lr": config.embedding_lr, "weight_decay": 0.0},
    ]


def deepspeed_config(config: TrainConfig, base: Base, zero_stage: int, world: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON configuration."""
    require(
        config.batch_size % world == 0,
        f"pretrain.batch_size={config.batch_size} must be a multiple of pretrain.workers={world}",
    )
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // world,
        "gradient_clipping": config.clip,
        "bf16": {"enabled": base.dtype == "bf16"},
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


class Job(BaseParams):
    """What a worker needs, as plain data."""

    shape: ModelConfig
    train: TrainConfig
    base: Base
    zero_stage: int
    tokens: str
    tokens_dtype: str
    context: int
    scratch: str


def run_worker(config: dict[str, Any]) -> None:
    """Train on one Ray worker; rank 0 leaves the weights and the curve in scratch."""
    job = Job.model_validate_json(config["job"])
    import numpy as np

    scratch = Path(job.scratch)
    rank = torch.distributed.get_rank()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    torch.set_num_threads(max(1, job.base.threads // torch.distributed.get_world_size()))
    tokens = np.memmap(job.tokens, dtype=job.tokens_dtype, mode="r")
    loader = WindowLoader(tokens, job.context, job.train.batch_size, job.base.seed)
    model = start_model(job.shape, job.base)
    engine = DeepSpeedEngine(model.to(job.base.torch_dtype), job.train, job.base, job.zero_stage)
    meter = Meter(job.train.steps, job.base, model, job.train.batch_size * job.context)
    trained = train(engine, loader.batch, job.train, job.base, scratch, meter)
    weights = engine.full_weights()
    if rank == 0:
        save_file(weights, scratch / WEIGHTS)
        (scratch / CURVE).write_text(json.dumps(trained._asdict()))


def train_with_ray(
    model: Transformer,
    loader: WindowLoader,
    config: TrainConfig,
    base: Base,
    scratch: Path,
    workers: int,
    zero_stage: int,
) -> Trained:
    """Train `model` in place on `workers` Ray workers; scratch must be a path that all of them see."""
    if config.optimiser != "adamw":
        raise ConfigError("pretrain.launcher: ray trains with AdamW; set pretrain.optimiser: adamw")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = torch.cuda.is_available()
    memmap: Any = loader.tokens
    job = Job(
        shape=model.config,
        train=TrainConfig(**{name: getattr(config, name) for name in TrainConfig.model_fields}),
        base=base,
        zero_stage=zero_stage,
        tokens=str(Path(memmap.filename).resolve()),
        tokens_dtype=str(memmap.dtype),
        context=loader.context,
        scratch=str(scratch.resolve()),
    )
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        num_cpus=None if "RAY_ADDRESS" in os.environ else max(workers + 1, os.cpu_count() or 1),
        include_dashboard=False,
        runtime_env={"env_vars": worker_environment(scratch, gpu)},
    )
    try:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(name="pretrain", storage_path=str((scratch / "ray").resolve())),
        )
        trainer.fit()
    finally:
        ray.shutdown()
    model.load_state_dict(load_file(scratch / WEIGHTS))
    return Trained(**json.loads((scratch / CURVE).read_text()))


def worker_environment(scratch: Path, gpu: bool) -> dict[str, str]:
    """Return what DeepSpeed needs to know before it is imported."""
    extensions = (scratch / "torch_extensions").resolve()
    # A build that was killed leaves a lock on which every later run would wait for ever.
    for lock in extensions.rglob("lock"):
        lock.unlink()
    paths = {"PYTHONPATH": str(Path.cwd()), "TORCH_EXTENSIONS_DIR": str(extensions)}
    return paths | ({} if gpu else {"DS_ACCELERATOR": "cpu"})
