"""What the layers see: second moments of the inputs of every matrix, over a few training windows.

For a matrix W with inputs x the squared output error of a rounded W' is  tr((W - W') H (W - W')^T),
H = E[x x^T]. So H says which rounding errors matter, and its diagonal how much each column matters.
Shapes: I inputs of a matrix, N windows, B of them at a time, T tokens.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from llm.model.transformer import Transformer

BATCH = 8

# Matrices of a Hugging Face layer that share one of our modules' inputs (ours are fused).
SHARED_INPUTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}


@torch.inference_mode()
def collect_moments(model: Transformer, windows_NT: Tensor) -> dict[str, Tensor]:
    """Return H = E[x x^T] [I, I], fp64, for each matrix, by its Hugging Face name.

    Args: windows_NT: token ids of equally long stretches of training text.

    The embedding gets the moments of the final hidden states: where it is tied, its rows are the unembedding.
    """
    assert windows_NT.numel() > 0, "calibration needs at least one window"
    sums: dict[str, Tensor] = {}

    def add(module_name: str, x: Tensor) -> None:
        x_NI = x.reshape(-1, x.shape[-1])
        # fp32 within a batch, fp64 over batches: fp64 products throughout took five times as long.
        sums[module_name] = sums.get(module_name, torch.zeros(())) + (x_NI.T @ x_NI).double()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "head":
                handle = module.register_forward_pre_hook(lambda _m, args, name=name: add(name, args[0]))
                stack.callback(handle.remove)
        for windows_BT in windows_NT.split(BATCH):
            add("final", model(windows_BT))
    return _by_hf_name({name: total / windows_NT.numel() for name, total in sums.items()}, model)


def _by_hf_name(moments: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    final = moments.pop("final")
    named = {"model.embed_tokens.weight": final}
    if not model.config.tie_embeddings:
        named["lm_head.weight"] = final
        # Untied, the embedding is only looked up: every column of a row is used as it is.
        named["model.embed_tokens.weight"] = torch.eye(model.config.hidden_size, dtype=torch.float64)
    for name, moment in moments.items():
        _, layer, rest = name.split(".", 2)
        for part in SHARED_INPUTS[rest]:
            named[f"model.layers.{layer}.{part}.weight"] = moment
    return named
