"""Muon for the hidden matrices, AdamW for the rest, over fp32 master weights.

The model computes in its own dtype; the optimiser sees fp32 copies, and writes them back after each step.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llm.config import BaseParams, ConfigError


class OptimiserConfig(BaseParams):
    """Rates are peak values; the schedule scales both by the same factor."""

    optimiser: Literal["muon", "adamw"] = Field("muon", description="for hidden matrices; the rest is AdamW's")
    lr: float = Field(0.01, gt=0, le=1, description="peak rate of the hidden matrices")
    embedding_lr: float = Field(0.005, gt=0, le=1, description="peak rate of embedding and norms (AdamW)")
    weight_decay: float = Field(0.05, ge=0, le=1, description="decoupled, on hidden matrices only")
    clip: float = Field(1.0, gt=0, description="largest global gradient norm")


class Optimiser:
    """Clips, steps and writes back; `state` and `load` carry everything a resumed run needs."""

    def __init__(self, model: nn.Module, config: OptimiserConfig):
        self.config = config
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [parameter for _, parameter in model.named_parameters()]
        self.masters = [p.detach().clone().float() if p.dtype != torch.float32 else p for p in self.params]
        matrices = [m for n, m in zip(self.names, self.masters, strict=True) if is_hidden_matrix(n, m)]
        rest = [m for n, m in zip(self.names, self.masters, strict=True) if not is_hidden_matrix(n, m)]
        self.optimisers: list[torch.optim.Optimizer] = [
            _hidden_optimiser(matrices, config),
            torch.optim.AdamW(rest, lr=config.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.peaks = [config.lr, config.embedding_lr]

    def step(self, lr_scale: float) -> float:
        """Take one step at `lr_scale` times the peak rates; return the gradient norm before clipping.

        Raises ConfigError before anything changes when the norm is not finite.
        """
        for parameter, master in zip(self.params, self.masters, strict=True):
            if parameter is not master and parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.masters, self.config.clip))
        if not torch.isfinite(torch.tensor(norm)):
            raise ConfigError(f"the gradient is {norm}: lower lr (now {self.config.lr}) or use base.dtype: fp32")
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * lr_scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.write_back()
        return norm

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters into the model's own dtype."""
        for parameter, master in zip(self.params, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Return master weights and optimiser state under flat names."""
        state = {f"master.{name}": master.detach() for name, master in zip(self.names, self.masters, strict=True)}
        return state | {key: holder[slot] for key, holder, slot in self._slots()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned in an earlier process."""
        with torch.no_grad():
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(state[f"master.{name}"])
        prefixes = {name: i for i, name in enumerate(self.names)}
        for key, tensor in state.items():
            kind, name, slot = (key.split("/") + ["", ""])[:3]
            if kind != "optimiser":
                continue
            master = self.masters[prefixes[name]]
            owner = next(o for o in self.optimisers if any(master is p for p in o.param_groups[0]["params"]))
            owner.state[master][slot] = tensor.clone()
        self.write_back()

    def _slots(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        names = {id(master): name for name, master in zip(self.names, self.masters, strict=True)}
        for optimiser in self.optimisers:
            for master, slots in optimiser.state.items():
                for slot in slots:
                    yield f"optimiser/{names[id(master)]}/{slot}", slots, slot


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether Muon (or weight decay) applies: a matrix inside a block."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def _hidden_optimiser(matrices: list[Tensor], config: OptimiserConfig) -> torch.optim.Optimizer:
    if config.optimiser == "muon":
        # match_rms_adamw scales each update by 0.2 sqrt(max(rows, columns)), so that one rate suits every
        # shape and is comparable with AdamW's (Moonlight, arXiv:2502.16982).
        return torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
    return torch.optim.AdamW(matrices, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)
