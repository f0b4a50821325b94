"""A model folder is a Hugging Face folder: config.json and model.safetensors under Qwen3's names. No pickle.

Our fused matrices are split on writing and joined on reading; both are exact. Folders of other hands are read too,
sharded ones, and bf16 or fp16 files, whose values fp32 holds exactly; what the core cannot compute is refused by
name. Written is always one fp32 file.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.config import Base, ConfigError, require
from llm.model.config import ModelConfig
from llm.model.files import list_weights, open_start
from llm.model.transformer import Transformer, init_weights

_PLAIN = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_FUSED = {
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_PLAIN_ROPE = (None, "default")


def save_model(model: Transformer, folder: Path) -> None:
    """Write config.json and model.safetensors (fp32)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_to_hf_config(model.config), indent=2, sort_keys=True) + "\n")
    save_file(to_hf_state(model), folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return the model of a folder. Raises ConfigError when a file is missing or its shape is not Qwen3 dense."""
    config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    state = read_weights(folder, config)
    try:
        model.load_state_dict(from_hf_state(state, config), assign=True)
    except RuntimeError as error:  # torch lists every tensor whose shape differs
        raise ConfigError(f"{folder}: the weights do not fit config.json: {error}") from None
    return model.to(dtype)


def start_model(shape: ModelConfig, base: Base) -> Transformer:
    """Return the fp32 model that training begins with: that of base.init_from, else a new one of this shape."""
    if base.init_from is not None:
        return load_model(open_start(base.init_from))
    model = Transformer(shape)
    init_weights(model, base.seed)
    return model


def read_weights(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors under Qwen3's names, all of them and no other. Raises ConfigError naming what is wrong."""
    state = {name: tensor for file in list_weights(folder) for name, tensor in load_file(file).items()}
    if config.tie_embeddings and "lm_head.weight" in state:  # some writers repeat the embedding there
        require(
            torch.equal(state.pop("lm_head.weight"), state.get("model.embed_tokens.weight", torch.empty(0))),
            f"{folder}: config.json ties the embeddings, but lm_head.weight is not model.embed_tokens.weight: "
            f"set tie_word_embeddings: false there",
        )
    expected = hf_names(config)
    wrong = [f"{name} is missing" for name in sorted(expected - state.keys())]
    wrong += [f"{name} has no place in the core" for name in sorted(state.keys() - expected)]
    wrong += [
        f"{name} is {tensor.dtype}; allowed are float32, bfloat16 and float16"
        for name, tensor in state.items()
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ]
    require(not wrong, f"{folder}: {len(wrong)} tensors do not fit config.json: {'; '.join(wrong[:4])}")
    return state


def read_config(folder: Path) -> ModelConfig:
    """Return the model's shape from a Hugging Face config.json. Raises ConfigError for what the core cannot compute."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; is {folder} a model folder?")
    hf = json.loads(path.read_text())
    if hf.get("model_type") != "qwen3":
        raise ConfigError(f"{path}: model_type is {hf.get('model_type')!r}; only the dense 'qwen3' shape can be read")
    unsupported = list_unsupported(hf)
    require(not unsupported, f"{path}: the core computes none of: {'; '.join(unsupported)}")
    rope = hf.get("rope_parameters") or {}
    try:
        return ModelConfig(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=hf["num_attention_heads"],
            num_kv_heads=hf["num_key_value_heads"],
            head_size=hf["head_dim"],
            mlp_size=hf["intermediate_size"],
            context=hf["max_position_embeddings"],
            rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10_000.0)),
            norm_eps=hf["rms_norm_eps"],
            tie_embeddings=hf.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ConfigError(f"{path}: lacks {error}; write it anew with transformers' save_pretrained") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: a shape that the core does not have: {error}") from None


def list_unsupported(hf: dict[str, Any]) -> list[str]:
    """Return what a Qwen3 config.json asks for beyond the core, each with its value."""
    ropes = [hf.get(key) or {} for key in ("rope_parameters", "rope_scaling")]  # of transformers 5, and before
    layers = set(hf.get("layer_types") or []) - {"full_attention"}
    asked = {
        "attention_bias": hf.get("attention_bias"),
        "use_sliding_window": hf.get("use_sliding_window"),
        "layer_types": sorted(layers),
        "rope scaling": [
            kind for rope in ropes if (kind := rope.get("rope_type", rope.get("type"))) not in _PLAIN_ROPE
        ],
        "partial_rotary_factor": [f for rope in ropes if (f := rope.get("partial_rotary_factor", 1.0)) != 1.0],
        "hidden_act": hf.get("hidden_act") if hf.get("hidden_act", "silu") != "silu" else None,
        "attention_dropout": hf.get("attention_dropout"),
        "quantization_config": hf.get("quantization_config"),
    }
    return [f"{name}={value!r}" for name, value in asked.items() if value]


def hf_names(config: ModelConfig) -> set[str]:
    """Return the names of all tensors of a folder."""
    parts = [*_PLAIN.values(), *(part for names in _FUSED.values() for part in names)]
    names = {f"model.layers.{layer}.{part}" for layer in range(config.num_layers) for part in parts}
    return (
        names
        | {"model.embed_tokens.weight", "model.norm.weight"}
        | (set() if config.tie_embeddings else {"lm_head.weight"})
    )


def to_hf_state(model: Transformer) -> dict[str, Tensor]:
    """Return fp32 tensors under Qwen3's names."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.float32)
        if not name.startswith("blocks."):
            state[
                {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}.get(
                    name, "lm_head.weight"
                )
            ] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        prefix = f"model.layers.{layer}."
        if rest in _PLAIN:
            state[prefix + _PLAIN[rest]] = tensor
        else:
            parts = list_parts(rest.removesuffix(".weight"), model.config)
            for part, piece in zip(parts, tensor.split(list(parts.values())), strict=True):
                state[f"{prefix}{part}.weight"] = piece
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def list_parts(projection: str, config: ModelConfig) -> dict[str, int]:
    """Return what Qwen3 calls a block's projection ("attention.qkv", "mlp.down"): its parts in order, with rows."""
    rows = {
        "attention.qkv": [n * config.head_size for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)],
        "attention.out": [config.hidden_size],
        "mlp.gate_up": [config.mlp_size, config.mlp_size],
        "mlp.down": [config.hidden_size],
    }
    matrix = f"{projection}.weight"
    names = _FUSED.get(matrix) or (_PLAIN[matrix],)
    return {name.removesuffix(".weight"): size for name, size in zip(names, rows[projection], strict=True)}


def from_hf_state(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our state dict from tensors under Qwen3's names."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_embeddings:
        ours["head.weight"] = state["lm_head.weight"]
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for mine, theirs in _PLAIN.items():
            ours[f"blocks.{layer}.{mine}"] = state[prefix + theirs]
        for mine, parts in _FUSED.items():
            ours[f"blocks.{layer}.{mine}"] = torch.cat([state[prefix + part] for part in parts])
    return ours


def _to_hf_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,  # read by transformers 4 and llama.cpp; version 5 reads rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "torch_dtype": "float32",
    }
