"""AdamW over all fp32 weights of a model that are not frozen, at one rate: preference learning takes few, small steps.

`llm.train.optimiser` keeps masters of a bf16 model and treats hidden matrices apart; here the weights are the
masters, and heads or embeddings learn like the rest.
"""

import torch
from torch import nn

from llm.config import ConfigError

CLIP_NORM = 1.0


class Optimiser:
    """Clips, checks and steps."""

    def __init__(self, model: nn.Module, lr: float):
        self.lr = lr
        self.params = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(p.dtype == torch.float32 for p in self.params)
        self.adamw = torch.optim.AdamW(self.params, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, lr_scale: float) -> float:
        """Take one step at `lr_scale` times the peak rate and return the gradient norm before clipping.

        Raises ConfigError before anything changes when the norm is not finite.
        """
        norm = float(nn.utils.clip_grad_norm_(self.params, CLIP_NORM))
        if not torch.isfinite(torch.tensor(norm)):
            raise ConfigError(f"the gradient is {norm}: lower lr (now {self.lr}) or use base.dtype: fp32")
        self.adamw.param_groups[0]["lr"] = self.lr * lr_scale
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm
