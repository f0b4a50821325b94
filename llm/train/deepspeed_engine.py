"""Data parallelism through DeepSpeed: ZeRO 0 to 3 shard gradients, optimiser state and weights over the ranks.

The optimiser is AdamW: torch's Muon raises on ZeRO's flattened parameters, and DeepSpeed's own takes other steps at the
same rate (docs/log.md). Sharding of weights inside a layer is llm/train/parallel.py.  Source: ZeRO, arXiv:1910.02054.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.config import Base, require
from llm.data.loader import Batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.train.local import TrainConfig, model_loss
from llm.train.loss import count_targets
from llm.train.optimiser import NonFiniteError, OptimiserConfig, is_hidden_matrix
from llm.train.parts import open_parts, save_parts

MOMENTS = ("exp_avg", "exp_avg_sq")


class _WithLoss(nn.Module):
    """Unembedding and loss inside forward, for ZeRO 3 has a weight on a rank only while a forward needs it."""

    def __init__(self, model: Transformer):
        import deepspeed

        super().__init__()
        self.model = model
        head = model.embedding if model.head is None else model.head
        deepspeed.zero.register_external_parameter(self, head.weight)

    def forward(self, batch: Batch, count: Tensor) -> Tensor:
        return model_loss(self.model, batch, count)


class DeepSpeedEngine:
    """One worker's share: its rows of the global batch; gradients, optimiser state and step are DeepSpeed's.

    Args: initial: returns a weight by name; every rank asks for all of them.
    """

    def __init__(
        self, shape: ModelConfig, initial: Callable[[str], Tensor], config: TrainConfig, base: Base, zero_stage: int
    ):
        import deepspeed  # at the top of the file it would set up logging for whoever imports this

        self.world, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.peaks = (config.lr, config.embedding_lr)
        settings = deepspeed_config(config, base, zero_stage, self.world, shape)
        # Under stage 3 a layer is sharded as soon as it is built: no rank ever holds the whole model.
        with deepspeed.zero.Init(config_dict_or_path=settings, enabled=zero_stage == 3):
            self.model = Transformer(shape).to(base.torch_dtype)
        for name, parameter in self.model.named_parameters():
            self._write(parameter, initial(name))
        if config.checkpoint_activations:
            for block in self.model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        groups = parameter_groups(self.model, config)
        stepped = [parameter for group in groups for parameter in group["params"]]
        self.engine, *_ = deepspeed.initialize(
            model=_WithLoss(self.model),
            optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.95)),
            config=settings,
            dist_init_required=False,
        )
        # Without ZeRO every parameter has a master of its own; in fp32 that is the parameter.
        self.own_masters = dict(zip(stepped, self.flat_masters(), strict=True)) if zero_stage == 0 else {}

    def step(self, batch: Batch, lr_scale: float) -> dict[str, Tensor | float]:
        batch = batch.to(self.engine.device)
        mine = Batch(*(None if part is None else part[self.rank :: self.world] for part in batch))  # type: ignore[arg-type]
        for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_scale
        # DeepSpeed averages over ranks and micro-batches; the loss is the mean over all learned tokens.
        count = count_targets(batch.targets) / (self.world * self.engine.gradient_accumulation_steps())
        total = torch.zeros((), device=self.engine.device)
        parts = list(mine.split(self.engine.train_micro_batch_size_per_gpu()))
        for i, part in enumerate(parts):
            loss = self.engine(part, count)
            total += loss.detach() / len(parts)
            if i == len(parts) - 1:
                torch.distributed.all_reduce(total)
                self._check_finite(value := float(total) / self.world)
            self.engine.backward(loss)
            self.engine.step()
        return {"loss": value, "grad": float(self.engine.get_global_grad_norm() or 0.0)}

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        self._link_moments()
        mine = {}
        for i, (name, parameter) in enumerate(self.model.named_parameters()):
            for kind in ("master", *MOMENTS):
                whole = self._read(parameter, kind)  # collective: every rank takes part, one keeps it
                if i % self.world == self.rank:
                    mine[f"{kind}/{name}"] = whole.detach().float().cpu().clone()
        save_parts(folder, step, mine, extra, keep)

    def agree(self, wish: bool) -> bool:
        wishes = torch.tensor(float(wish), device=self.engine.device)
        torch.distributed.all_reduce(wishes)
        return bool(wishes > 0)

    @torch.no_grad()
    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if (parts := open_parts(folder, fits)) is None:
            return None
        self._make_moments(parts.step)
        for name, parameter in self.model.named_parameters():
            whole = {kind: parts.tensor(f"{kind}/{name}") for kind in ("master", *MOMENTS)}
            self._write(parameter, whole["master"])
            if parameter in self.own_masters:
                self.own_masters[parameter].copy_(whole["master"])
                for kind in MOMENTS:
                    self._adamw().state[self.own_masters[parameter]][kind].copy_(whole[kind])
                continue
            safe_set_full_fp32_param(parameter, whole["master"])
            for kind in MOMENTS:
                safe_set_full_optimizer_state(parameter, whole[kind], kind)
        return parts.step, parts.extra

    def flat_masters(self) -> list[Tensor]:
        """Return this rank's tensors that AdamW steps: flat fp32 shards under ZeRO, else one of each parameter."""
        outer = self.engine.optimizer
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            if hasattr(outer, name):
                return list(getattr(outer, name))
        return [master for group in self._adamw().param_groups for master in group["params"]]

    def moments(self) -> list[Tensor]:
        """Return this rank's tensors of AdamW's two moments."""
        return [state[kind] for state in self._adamw().state.values() for kind in MOMENTS]

    @staticmethod
    def _check_finite(loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}: lower lr, or use base.dtype: fp32. The last checkpoint is kept")

    def _adamw(self) -> torch.optim.Optimizer:
        outer = self.engine.optimizer
        return outer if isinstance(outer, torch.optim.AdamW) else outer.optimizer  # type: ignore[no-any-return]

    def _make_moments(self, step: int) -> None:
        """Give each master the state that AdamW makes in its first step, for `load` to fill."""
        for master in self.flat_masters():
            moments = {kind: torch.zeros_like(master) for kind in MOMENTS}
            self._adamw().state[master] = {"step": torch.tensor(float(step))} | moments
        self._link_moments()

    def _link_moments(self) -> None:
        """Under stages 1 and 2, refresh the views by which whole moments are read and set.

        DeepSpeed makes them once, after its first group's first step, when the second group has no moments yet.
        """
        outer = self.engine.optimizer
        if hasattr(outer, "_hp_optimizer_states_linked"):
            outer._hp_optimizer_states_linked = False
            outer._lazy_init_hp_params_optimizer_state()

    def _read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """Return a whole fp32 tensor; collective under ZeRO."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if parameter in self.own_masters:
            master = self.own_masters[parameter]
            kept: Tensor = master if kind == "master" else self._adamw().state[master][kind]
            return kept
        if kind == "master":
            found: Tensor | None = safe_get_full_fp32_param(parameter)
        else:
            found = safe_get_full_optimizer_state(parameter, kind)
        assert found is not None, f"DeepSpeed holds no {kind} of a parameter of shape {tuple(parameter.shape)}"
        return found

    @staticmethod
    @torch.no_grad()
    def _write(parameter: nn.Parameter, whole: Tensor) -> None:
        """Set the compute weight; under stage 3 gathered for that moment, and sharded again."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if parameter.numel() == whole.numel():
                parameter.copy_(whole)


def parameter_groups(model: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Return the local optimiser's two groups, so that all launchers train alike."""
    named = [(name, p, getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()]  # ZeRO 3 hides shapes
    hidden = [is_hidden_matrix(name, torch.empty(shape, device="meta")) for name, _, shape in named]
    return [
        {
            "params": [p for (_, p, _), one in zip(named, hidden, strict=True) if one],
            "lr": config.lr,
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for (_, p, _), one in zip(named, hidden, strict=True) if not one],
            "lr": config.embedding_lr,
            "weight_decay": 0.0,
        },
    ]


def deepspeed_config(
    config: TrainConfig, base: Base, zero_stage: int, world: int, shape: ModelConfig
) -> dict[str, Any]:
    """Return DeepSpeed's JSON configuration."""
    rows = config.batch_size // world
    micro = min(config.micro_batch or rows, rows)
    require(
        config.batch_size % (world * micro) == 0,
        f"pretrain.batch_size={config.batch_size} must be a multiple of pretrain.workers={world} times "
        f"pretrain.micro_batch={micro}",
    )
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_clipping": config.clip,
        "bf16": {"enabled": base.dtype == "bf16"},
        "zero_optimization": {
            "stage": zero_stage,
            # Vectors stay whole on every rank: gathering them costs more than they weigh.
            "stage3_param_persistence_threshold": max(shape.hidden_size, shape.head_size) + 1,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
