"""One process: forward and backward in base.dtype, the step in fp32."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm.data.loader import IGNORE, Batch
from llm.model.transformer import Transformer
from llm.train.checkpoint import load_checkpoint, save_checkpoint
from llm.train.loop import LoopConfig
from llm.train.loss import count_targets, next_token_loss
from llm.train.optimiser import Optimiser, OptimiserConfig


class TrainConfig(LoopConfig, OptimiserConfig):
    """How a model learns the next token."""

    batch_size: int = Field(ge=1, le=1 << 16, description="sequences per step, over all workers")
    micro_batch: int | None = Field(None, ge=1, description="sequences per pass; smaller needs less memory")
    checkpoint_activations: bool = Field(False, description="compute blocks twice instead of keeping what is in them")


class LocalEngine:
    """Gradients over the parts of a batch, then one step."""

    def __init__(self, model: Transformer, config: OptimiserConfig, compile: bool = False):
        self.model = model
        self.optimiser = Optimiser(model, config)
        self.device = next(model.parameters()).device
        self.rows = getattr(config, "micro_batch", None) or 1 << 30
        self.kept: dict[str, Tensor] = {}  # master weights that the run returns to at its end
        if getattr(config, "checkpoint_activations", False):
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compile:
            if self.device.type == "cpu":  # compiled sums repeat over two threads only under deterministic algorithms
                torch.use_deterministic_algorithms(True)
            self.model.compile()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where base.dtype is fp32

    def step(self, batch: Batch, lr_scale: float) -> dict[str, Tensor | float]:
        batch = batch.to(self.device)
        count = count_targets(batch.targets, batch.weights)
        total = torch.zeros((), device=self.device)
        for part in batch.split(self.rows):
            loss = model_loss(self.model, part, count)
            (loss * self.optimiser.loss_scale).backward()  # type: ignore[no-untyped-call]
            self.optimiser.collect()
            total += loss.detach()
        return {"loss": total, "grad": self.optimiser.step(lr_scale, total)}

    def save(self, folder: Path, step: int, extra: dict[str, Any], keep: int) -> None:
        save_checkpoint(folder, step, self.optimiser.state() | self.kept, extra, keep)

    def load(self, folder: Path, fits: Callable[[int, dict[str, Any]], bool]) -> tuple[int, dict[str, Any]] | None:
        if (found := load_checkpoint(folder, fits)) is None:
            return None
        step, state, extra = found
        self.optimiser.load(state)
        self.kept = {key: tensor for key, tensor in state.items() if key.startswith("kept.")}
        return step, extra

    def agree(self, wish: bool) -> bool:
        return wish

    def keep_weights(self) -> None:
        """Hold the present weights, to return to."""
        pairs = zip(self.optimiser.names, self.optimiser.masters, strict=True)
        self.kept = {f"kept.{name}": master.detach().clone() for name, master in pairs}

    def return_to_kept(self) -> None:
        """Take the weights held, if any."""
        with torch.no_grad():
            for name, master in zip(self.optimiser.names, self.optimiser.masters, strict=True):
                if self.kept:
                    master.copy_(self.kept[f"kept.{name}"])
        self.optimiser.write_back()

    def restore_masters(self) -> None:
        """Turn the model into fp32 with the master weights, for saving."""
        self.model.float()
        with torch.no_grad():
            for parameter, master in zip(self.optimiser.params, self.optimiser.masters, strict=True):
                parameter.copy_(master)


def model_loss(model: Transformer, batch: Batch, count: Tensor | None = None) -> Tensor:
    """Return the mean next-token loss of a batch; `count` divides instead of what its targets count."""
    head = model.embedding if model.head is None else model.head
    hidden = model(batch.tokens, segments_BT=batch.segments)
    return next_token_loss(hidden, head.weight, batch.targets, count=count, weights_BT=batch.weights)


@torch.no_grad()
def evaluate_loss(model: Transformer, batches: Sequence[Batch]) -> float | None:
    """Return the mean loss in nats per learned token, or None without batches."""
    total = count = 0.0
    device = next(model.parameters()).device
    for batch in batches:
        batch = batch.to(device)
        learned = float((batch.targets != IGNORE).sum() if batch.weights is None else batch.weights.sum())
        total += float(model_loss(model, batch)) * learned
        count += learned
    return round(total / count, 5) if count else None
