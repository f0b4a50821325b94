"""Write a model and its tokenizer as one GGUF file, which llama.cpp, Ollama and OpenVINO GenAI read.

llama.cpp's converter refuses tokenizers that it does not know by hash, so the file is written here, with
the `gguf` package. Nothing is permuted: architecture `qwen3` uses half-split RoPE, as the model does. Tied
embeddings leave `output.weight` out. Norms stay fp32; matrices are f16 or the blocks that the caller packed.
This module rounds nothing. It writes no date and no path: same model, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

from llm.config import require
from llm.data.tokenizer import CHAT_TEMPLATE, Tokenizer
from llm.model.config import ModelConfig
from llm.model.folder import to_hf_state
from llm.model.transformer import Transformer

Format = Literal["f16", "q8_0", "q4_0"]

# OpenVINO's reader fails without general.file_type.
FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
BLOCK_TYPES = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0}

TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class PackedMatrix(Protocol):
    """A matrix that is already in the bytes of a block format, [rows, bytes of a row]."""

    @property
    def kind(self) -> Literal["q8_0", "q4_0"]: ...

    @property
    def data(self) -> npt.NDArray[np.uint8]: ...


def rename(hf_name: str) -> str:
    """Return GGUF's name of a tensor that has this name in a Hugging Face folder."""
    if hf_name in TOP_NAMES:
        return TOP_NAMES[hf_name]
    _, _, layer, rest = hf_name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(
    path: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    file_format: Format,
    packed: Mapping[str, PackedMatrix] | None = None,
    name: str = "gristmill",
) -> None:
    """Write one GGUF file.

    Args:    file_format: what `general.file_type` says; `f16` needs no packed matrices.
             packed: Hugging Face name -> packed matrix; for q8_0 and q4_0 every matrix must be there (they
             may differ in kind: an embedding in q8_0 inside a q4_0 file is usual).
    Raises:  ConfigError: the model's vocabulary is smaller than the tokenizer's. ValueError: a matrix lacks.
    """
    packed = packed or {}
    state = {hf_name: tensor.numpy() for hf_name, tensor in to_hf_state(model).items()}
    missing = [n for n, t in state.items() if file_format != "f16" and t.ndim == 2 and n not in packed]
    if missing:
        raise ValueError(f"{file_format} needs every matrix packed; these are not: {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), "qwen3")
    _add_shape(writer, model.config, file_format, name)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for hf_name, array in state.items():
        if hf_name in packed:
            matrix = packed[hf_name]
            writer.add_tensor(rename(hf_name), matrix.data, raw_dtype=BLOCK_TYPES[matrix.kind])
        else:
            writer.add_tensor(rename(hf_name), array.astype(np.float16 if array.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, config: ModelConfig, file_format: Format, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[file_format])
    writer.add_quantization_version(2)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write vocabulary, merges, special ids and the chat template.

    Special tokens are CONTROL: readers then match them only where special tokens may be parsed. Entries that are
    found in text as a whole are USER_DEFINED. A model row beyond the tokenizer gets an UNUSED placeholder, because
    readers want one token for each row.
    """
    require(
        vocab_size >= tokenizer.vocab_size,
        f"the model has {vocab_size} embeddings, the tokenizer {tokenizer.vocab_size} tokens: "
        "the tokenizer was trained again after the model; run pretrain again",
    )
    types_of = dict.fromkeys(range(vocab_size), TokenType.UNUSED)
    types_of |= dict.fromkeys(range(tokenizer.vocab_size), TokenType.NORMAL)
    types_of |= dict.fromkeys(tokenizer.phrases, TokenType.USER_DEFINED)
    types_of |= dict.fromkeys(tokenizer.special_ids, TokenType.CONTROL)
    tokens = [tokenizer.backend.id_to_token(i) or f"[PAD{i}]" for i in range(vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([types_of[i] for i in range(vocab_size)])
    writer.add_token_merges(read_merges(tokenizer))
    writer.add_eos_token_id(tokenizer.im_end_id)
    writer.add_eot_token_id(tokenizer.im_end_id)
    writer.add_bos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def read_merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges in order, each as 'left right'."""
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]
