"""Muon for the hidden matrices, AdamW for the rest, over fp32 master weights.

The model computes in its own dtype; the optimiser sees fp32 copies, and writes them back after each step. Frozen
parameters (requires_grad False) have neither master nor state.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llm.config import BaseParams, ConfigError

GROWTH_STEPS = 2000  # good steps after which the loss scale of fp16 doubles, as in torch.amp.GradScaler


class NonFiniteError(ConfigError):
    """The loss or the gradient is no number; no weight was changed."""


class OptimiserConfig(BaseParams):
    """Rates are peak values; the schedule scales both by the same factor."""

    optimiser: Literal["muon", "adamw"] = Field("muon", description="for hidden matrices; the rest is AdamW's")
    lr: float = Field(0.01, gt=0, le=1, description="peak rate of the hidden matrices")
    embedding_lr: float = Field(0.005, gt=0, le=1, description="peak rate of embedding and norms (AdamW)")
    weight_decay: float = Field(0.05, ge=0, le=1, description="decoupled, on hidden matrices only")
    clip: float = Field(1.0, gt=0, description="largest global gradient norm")


class Optimiser:
    """Gathers gradients, clips, steps and writes back; `state` and `load` carry everything a resumed run needs."""

    def __init__(self, model: nn.Module, config: OptimiserConfig):
        self.config = config
        learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names, self.params = [name for name, _ in learned], [parameter for _, parameter in learned]
        self.masters = [p.detach().clone().float() if p.dtype != torch.float32 else p for p in self.params]
        self.half = any(p.dtype == torch.float16 for p in self.params)
        self.loss_scale, self.good_steps = (2.0**16 if self.half else 1.0), 0
        matrices = [m for n, m in zip(self.names, self.masters, strict=True) if is_hidden_matrix(n, m)]
        rest = [m for n, m in zip(self.names, self.masters, strict=True) if not is_hidden_matrix(n, m)]
        self.optimisers: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            self.optimisers.append((_hidden_optimiser(matrices, config), config.lr))
        if rest:
            self.optimisers.append((_adamw(rest, config.embedding_lr, 0.0), config.embedding_lr))

    def collect(self) -> None:
        """Add the model's gradients to the masters' in fp32, and free them: once per backward pass."""
        for parameter, master in zip(self.params, self.masters, strict=True):
            if parameter is not master and parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad += parameter.grad
                parameter.grad = None

    def step(self, lr_scale: float, loss: Tensor | None = None) -> Tensor:
        """Take one step at `lr_scale` times the peak rates; return the gradient norm before clipping.

        Gradients are those of `loss_scale` times the loss. Raises NonFiniteError before anything changes when the
        norm, or the loss, is not finite; in fp16 a norm that is not finite halves `loss_scale` and leaves the step out.
        """
        self.collect()
        if self.loss_scale != 1.0:
            torch._foreach_mul_([m.grad for m in self.masters if m.grad is not None], 1.0 / self.loss_scale)
        norm = nn.utils.clip_grad_norm_(self.masters, self.config.clip, foreach=True)
        # The one time in a step that the host waits for the device.
        finite = torch.stack([norm, norm if loss is None else loss.to(norm)]).isfinite().tolist()
        if not all(finite):
            self._skip(finite[1] and loss is not None, float(norm), loss)
            return norm
        self._count_good_step()
        for optimiser, peak in self.optimisers:
            optimiser.param_groups[0]["lr"] = peak * lr_scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.write_back()
        return norm

    def _skip(self, loss_is_finite: bool, norm: float, loss: Tensor | None) -> None:
        if self.half and loss_is_finite and self.loss_scale > 1.0:
            self.loss_scale, self.good_steps = self.loss_scale / 2, 0
            for master in self.masters:
                master.grad = None
            return
        said = f"the gradient is {norm}" if loss is None or loss_is_finite else f"the loss is {float(loss)}"
        raise NonFiniteError(
            f"{said}: lower lr (now {self.config.lr}) or use base.dtype: fp32. The last checkpoint is kept"
        )

    def _count_good_step(self) -> None:
        self.good_steps += self.half
        if self.good_steps >= GROWTH_STEPS:
            self.loss_scale, self.good_steps = self.loss_scale * 2, 0

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters into the model's own dtype."""
        pairs = [(p, m) for p, m in zip(self.params, self.masters, strict=True) if p is not m]
        if pairs:
            params, masters = zip(*pairs, strict=True)
            torch._foreach_copy_(params, masters)

    def state(self) -> dict[str, Tensor]:
        """Return master weights and optimiser state under flat names."""
        state = {f"master.{name}": master.detach() for name, master in zip(self.names, self.masters, strict=True)}
        state |= {key: holder[slot] for key, holder, slot in self._slots()}
        if self.half:
            state["loss_scale"] = torch.tensor([self.loss_scale, self.good_steps], dtype=torch.float64)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned in an earlier process."""
        with torch.no_grad():
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(state[f"master.{name}"])
        places = {name: i for i, name in enumerate(self.names)}
        for key, tensor in state.items():
            kind, name, slot = (key.split("/") + ["", ""])[:3]
            if kind != "optimiser":
                continue
            master = self.masters[places[name]]
            owner = next(o for o, _ in self.optimisers if any(master is p for p in o.param_groups[0]["params"]))
            owner.state[master][slot] = tensor.to(master.device, copy=True)
        if "loss_scale" in state:
            self.loss_scale, self.good_steps = float(state["loss_scale"][0]), int(state["loss_scale"][1])
        self.write_back()

    def _slots(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        names = {id(master): name for name, master in zip(self.names, self.masters, strict=True)}
        for optimiser, _ in self.optimisers:
            for master, slots in optimiser.state.items():
                for slot in slots:
                    yield f"optimiser/{names[id(master)]}/{slot}", slots, slot


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether Muon (or weight decay) applies: a matrix inside a block."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def _adamw(params: list[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)


def _hidden_optimiser(matrices: list[Tensor], config: OptimiserConfig) -> torch.optim.Optimizer:
    if config.optimiser == "muon":
        # match_rms_adamw scales each update by 0.2 sqrt(max(rows, columns)), so that one rate suits every
        # shape and is comparable with AdamW's (Moonlight, arXiv:2502.16982).
        return torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
    return _adamw(matrices, config.lr, config.weight_decay)
