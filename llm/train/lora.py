"""LoRA: low-rank additions to frozen projections, trained in their place; saved as PEFT reads them, merged for export.

    y = W x + (alpha / rank) B A x        A [rank, in] random, B [out, rank] zero: it starts as the base, to the bit

Our qkv and gate_up are several of PEFT's matrices in one: each part has an A and a B of its own, which add to the
part's rows. The core knows nothing of this: `add_adapters` puts `AdaptedLinear` in the place of its projections.
Embeddings and norms stay as they are. Rollouts, scores and gradients all run through the adapted model; only what is
saved is merged, into the fp32 weights of the base as they lie on disk.

Left out: dropout, biases, adapters of embeddings, several adapters at a time.
Source: LoRA, arXiv:2106.09685; over a 4-bit base QLoRA, arXiv:2305.14314.
"""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from llm.config import BaseParams, require
from llm.model.folder import list_parts, load_model, save_model
from llm.model.transformer import Transformer

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLACES = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
FOLDER = "adapter"


class LoraConfig(BaseParams):
    """Which matrices get an addition of which rank."""

    rank: int = Field(16, ge=1, le=1024, description="inner size of each addition")
    alpha: int = Field(32, ge=1, description="the addition is scaled by alpha / rank")
    targets: tuple[Target, ...] = Field(get_args(Target), min_length=1, description="Qwen3's names of the matrices")
    base_bits: Literal[4] | None = Field(None, description="4: frozen weights in NF4 (a GPU with bitsandbytes)")

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        require(len(set(targets)) == len(targets), f"targets={list(targets)} names a matrix twice")
        return targets


class Adapter(nn.Module):
    """scale * B A x of one of Qwen3's matrices."""

    def __init__(self, like: Tensor, rows: int, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        columns = like.shape[1]
        bound = 1 / math.sqrt(columns)  # as nn.Linear starts, and PEFT
        random = torch.empty(config.rank, columns).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(random.to(like))
        self.lora_B = nn.Parameter(torch.zeros(rows, config.rank).to(like))
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A) * self.scale, self.lora_B)


class AdaptedLinear(nn.Module):
    """A frozen projection, and the additions to the rows of its parts.

    Args: parts: rows of each part in order, under Qwen3's names ("self_attn.q_proj").
    """

    def __init__(self, base: nn.Linear, parts: Mapping[str, int], config: LoraConfig, generator: torch.Generator):
        super().__init__()
        self.base = base
        self.parts = {name.split(".")[1]: rows for name, rows in parts.items()}
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(base.weight, rows, config, generator)
                for name, rows in self.parts.items()
                if name in config.targets
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        added = [
            self.adapters[name](x) if name in self.adapters else y.new_zeros(*y.shape[:-1], rows)
            for name, rows in self.parts.items()
        ]
        return y + torch.cat(added, dim=-1)


def add_adapters(model: Transformer, config: LoraConfig, seed: int) -> None:
    """Freeze a model and give it adapters, the only parameters that learn; its output stays the same to the bit."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        for place in PLACES:
            parts = list_parts(place, model.config)
            if not any(part.split(".")[1] in config.targets for part in parts):
                continue
            owner, name = block.get_submodule(place.split(".")[0]), place.split(".")[1]
            setattr(owner, name, AdaptedLinear(getattr(owner, name), parts, config, generator))
    if config.base_bits == 4:
        quantise_bases(model)


def adapt_copy(model: Transformer, config: LoraConfig, seed: int) -> Transformer:
    """Return a copy with adapters whose frozen weights lie in the memory of the given model's."""
    with torch.device("meta"):
        copy = Transformer(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    add_adapters(copy, config, seed)
    return copy


def quantise_bases(model: Transformer) -> None:
    """Turn the frozen projections under the adapters into NF4; they compute in bf16. Never run on a GPU so far."""
    device = model.embedding.weight.device
    require(
        device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None,
        f"lora.base_bits: 4 needs a model on a GPU (it is on {device}) and bitsandbytes (`pip install bitsandbytes`); "
        f"leave base_bits out to keep the frozen weights in base.dtype",
    )
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            weight = module.base.weight.detach()
            rows, columns = weight.shape
            base = bitsandbytes.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
            packed = bitsandbytes.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
            base.weight = packed  # rounded when it moves to the device
            module.base = base.to(device)


def adapter_state(model: Transformer) -> dict[str, Tensor]:
    """Return A and B of every adapter in fp32 under PEFT's names."""
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            _, layer, place = name.split(".", 2)
            for part in list_parts(place, model.config):
                if (short := part.split(".")[1]) in module.adapters:
                    for matrix, tensor in module.adapters[short].named_parameters():
                        key = f"base_model.model.model.layers.{layer}.{part}.{matrix}.weight"
                        state[key] = tensor.detach().float().cpu().contiguous()
    return state


@torch.no_grad()
def merge_adapters(model: Transformer, state: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Add what adapters learned to the weights of a model without adapters: W + (alpha / rank) B A, in fp32."""
    for layer, block in enumerate(model.blocks):
        for place in PLACES:
            parts = list_parts(place, model.config)
            weight = block.get_parameter(f"{place}.weight")
            for part, rows in zip(parts, weight.split(list(parts.values())), strict=True):
                prefix = f"base_model.model.model.layers.{layer}.{part}"
                if f"{prefix}.lora_A.weight" in state:
                    low, high = state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"]
                    rows += (config.alpha / config.rank) * (high @ low)


def save_adapted(model: Transformer, config: LoraConfig, base: Path, folder: Path) -> None:
    """Write the merged model, a folder like any other, and the adapter alone in `adapter/`, for PEFT.

    Args: base: the folder of the weights without adapters.
    """
    state = adapter_state(model)
    merged = load_model(base)
    merge_adapters(merged, state, config)
    save_model(merged, folder)
    (folder / FOLDER).mkdir()
    save_file(state, folder / FOLDER / "adapter_model.safetensors", metadata={"format": "pt"})
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / FOLDER / "adapter_config.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
