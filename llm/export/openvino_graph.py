"""Build the OpenVINO graph of a GGUF file, in the form that GenAI's continuous batching turns into paged attention.

GenAI reads GGUF files too. Here query, key and value are one matrix product, angles come from a table, q8_0 keeps
its signed codes and nothing is turned around between heads and positions: fewer, larger nodes, which is time, because
every node costs some microseconds in every step.
GenAI looks for attention over what was said before (a variable `past.*`) joined with what is new, takes past and mask
away and gives each attention node its pages, causal; it feeds the new tokens of all requests as rows of one position.
Only so can the graph be run: without pages, several positions in a row would not see one another.

Shapes: B rows, each of one new position, S all positions, D hidden, H query heads, G key/value heads, K head size,
O output rows and I input columns of a matrix, V vocabulary.  Model: `llm.model.transformer`, whose names these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from gguf import GGML_QUANT_SIZES, GGUFReader, ReaderTensor
from gguf import GGMLQuantizationType as Kind
from openvino import Node, Output
from openvino import opset13 as op

from llm.config import require

CODES = {Kind.Q8_0: ov.Type.i8, Kind.Q4_0: ov.Type.i4}  # signed, without a zero point
LEAST_LOGIT = np.float32(2)  # the largest presence penalty: what is left of a logit after it is not negative


def build_graph(path: Path) -> ov.Model:
    """Return a model from input_ids and position_ids [B, 1] to logits [B, 1, V], fp32; its matrices stay packed.

    Raises:  ConfigError: the file is of another architecture, or a matrix of a type that is not f16, q8_0 or q4_0.
    """
    return _Builder(path).build()


class _Builder:
    """The file, and what all layers share."""

    def __init__(self, path: Path):
        self.path = path
        reader = GGUFReader(path)
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.kinds = {tensor.tensor_type for tensor in reader.tensors}
        architecture = self._read("general.architecture")
        require(architecture == "qwen3", f"{path}: general.architecture is {architecture!r}; only 'qwen3' is served")
        self.num_heads = self._read("qwen3.attention.head_count")
        self.num_kv_heads = self._read("qwen3.attention.head_count_kv")
        self.head_size = self._read("qwen3.attention.key_length")
        self.eps = np.float32(self._read("qwen3.attention.layer_norm_rms_epsilon"))
        self.inputs: list[Node] = []
        self.sinks: list[Node] = []

    def _read(self, key: str) -> Any:
        require(key in self.fields, f"{self.path}: no {key}; write the file with llm.export.gguf")
        return self.fields[key].contents()

    def build(self) -> ov.Model:
        ids_B, positions_B = (
            op.reshape(self._input([-1, -1], np.int64, name), np.array([-1]), False)
            for name in ("input_ids", "position_ids")
        )
        self.mask_BH1S = self._input([-1, 1, -1, -1], np.float32, "attention_mask")
        self.rows_B = self._input([-1], np.int32, "beam_idx")
        self.cos_B11K, self.sin_B11K = (
            op.unsqueeze(op.gather(table, positions_B, np.int64(0)), np.array([1, 2])) for table in self._angles()
        )
        embedding_VD = self._matrix(["token_embd"])
        x_BD = op.gather(embedding_VD, ids_B, np.int64(0))
        for layer in range(self._read("qwen3.block_count")):
            block = f"blk.{layer}"
            x_BD = op.add(x_BD, self._attend(self._norm(x_BD, f"{block}.attn_norm"), block))
            x_BD = op.add(x_BD, self._mlp(self._norm(x_BD, f"{block}.ffn_norm"), block))
        x_B1D = self._norm(op.unsqueeze(x_BD, np.int64(1)), "output_norm")
        head_VD = self._matrix(["output"]) if "output.weight" in self.tensors else embedding_VD
        logits_B1V = self._lift(op.matmul(x_B1D, head_VD, False, True))
        logits_B1V.output(0).set_names({"logits"})
        model = ov.Model([op.result(logits_B1V)], self.sinks, self.inputs, "gristmill")
        if not self.kinds & set(CODES):
            model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])  # as GenAI does; else it is 8 bits
        return model

    def _lift(self, logits_B1V: Node) -> Node:
        """Add what makes the least logit LEAST_LOGIT, which leaves every probability as it is.

        GenAI adds a frequency or presence penalty to a negative logit, where it should be subtracted. As an addition
        to the product this form lets GenAI compute a prompt's last position only.
        """
        least_B11 = op.reduce_min(logits_B1V, np.array([-1]), True)
        return op.add(logits_B1V, op.subtract(LEAST_LOGIT, least_B11))

    def _input(self, shape: Sequence[int], dtype: type, name: str) -> Node:
        node = op.parameter(shape, dtype)
        node.friendly_name = name
        node.output(0).set_names({name})
        self.inputs.append(node)
        return node

    def _angles(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return cos and sin [context, K]. Source: `llm.model.transformer.rope_tables`."""
        pairs = np.arange(0, self.head_size, 2, dtype=np.float32) / np.float32(self.head_size)
        frequency = 1 / np.float32(self._read("qwen3.rope.freq_base")) ** pairs
        angles = np.outer(np.arange(self._read("qwen3.context_length"), dtype=np.float32), np.tile(frequency, 2))
        return np.cos(angles), np.sin(angles)

    def _attend(self, x_BD: Node, block: str) -> Node:
        parts = self._project(x_BD, [f"{block}.attn_q", f"{block}.attn_k", f"{block}.attn_v"])
        query, key, value = (op.reshape(part, np.array([0, -1, 1, self.head_size]), True) for part in parts)
        query = self._rotate(self._norm(query, f"{block}.attn_q_norm"))
        key = self._rotate(self._norm(key, f"{block}.attn_k_norm"))
        key, value = self._extend(key, f"past.{block}.key"), self._extend(value, f"past.{block}.value")
        mixed_BH1K = op.scaled_dot_product_attention(query, key, value, self.mask_BH1S)
        mixed_BD = op.reshape(mixed_BH1K, np.array([0, -1]), True)
        return self._project(mixed_BD, [f"{block}.attn_output"])[0]

    def _rotate(self, x_BH1K: Node) -> Node:
        """Turn the pairs (i, i + K/2) by the angles of their positions."""
        half = self.head_size // 2  # the plugin makes one node of this form, with axis 3 and not -1
        first, second = op.variadic_split(x_BH1K, np.int64(3), np.array([half, half])).outputs()
        swapped = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        return op.add(op.multiply(x_BH1K, self.cos_B11K), op.multiply(swapped, self.sin_B11K))

    def _extend(self, new_BG1K: Node, past: str) -> Node:
        """Return past and new keys or values, each head as often as query heads share it, [B, H, S, K]."""
        none_1G0K = np.zeros((1, self.num_kv_heads, 0, self.head_size), np.float32)
        read = op.read_value(none_1G0K, past, np.float32, [-1, self.num_kv_heads, -1, self.head_size])
        all_BGSK = op.concat([op.gather(read, self.rows_B, np.int64(0)), new_BG1K], 2)
        self.sinks.append(op.assign(all_BGSK, past))
        group = self.num_heads // self.num_kv_heads
        if group == 1:
            return all_BGSK
        copies = op.broadcast(op.unsqueeze(all_BGSK, np.int64(2)), np.array([1, 1, group, 1, 1]), None, "BIDIRECTIONAL")
        return op.reshape(copies, np.array([0, self.num_heads, -1, self.head_size]), True)

    def _mlp(self, x_BD: Node, block: str) -> Node:
        """Return down(silu(gate) * up); gate and up stay apart: silu is then part of a product and nothing is split."""
        (gate,), (up,) = (self._project(x_BD, [f"{block}.{name}"]) for name in ("ffn_gate", "ffn_up"))
        return self._project(op.multiply(op.swish(gate), up), [f"{block}.ffn_down"])[0]

    def _norm(self, x: Node, name: str) -> Node:
        """Return x / rms(x) * weight over the last dimension."""
        mean = op.reduce_mean(op.power(x, np.float32(2)), np.array([-1]), True)
        scaled = op.multiply(x, op.divide(np.float32(1), op.sqrt(op.add(mean, self.eps))))
        return op.multiply(scaled, self._weight(name).data)

    def _project(self, x: Node, names: Sequence[str]) -> list[Output]:
        """Return x times the transpose of each matrix: one product for all that are stored alike."""
        found: dict[str, Output] = {}
        for kind in {self._weight(name).tensor_type: None for name in names}:
            alike = [name for name in names if self._weight(name).tensor_type == kind]
            product = op.matmul(x, self._matrix(alike), False, True)
            if len(alike) > 1:
                rows = np.array([self._weight(name).data.shape[0] for name in alike])
                product = op.variadic_split(product, np.int64(-1), rows)
            found |= dict(zip(alike, product.outputs(), strict=True))
        return [found[name] for name in names]

    def _matrix(self, names: Sequence[str]) -> Node:
        """Return matrices of one kind below one another [O, I], as a constant and what makes fp32 of it."""
        kind = self._weight(names[0]).tensor_type
        data = np.concatenate([self._weight(name).data for name in names])
        if kind == Kind.F16:
            return op.convert(ov.op.Constant(data), "f32")
        require(kind in CODES, f"{self.path}: {names[0]}.weight is {kind.name}; served are F16, Q8_0 and Q4_0")
        num_codes, num_bytes = GGML_QUANT_SIZES[kind]
        blocks_OGB = data.reshape(len(data), -1, num_bytes)  # each an f16 scale, then its codes
        scale_OG1 = np.ascontiguousarray(blocks_OGB[..., :2]).view(np.float16)
        body = np.ascontiguousarray(blocks_OGB[..., 2:])
        if kind == Kind.Q4_0:
            body = _pair_up(body)
        tensor = ov.Tensor(body, [*blocks_OGB.shape[:2], num_codes], CODES[kind])
        codes = ov.op.Constant(tensor, shared_memory=False)  # a tensor does not keep its array alive
        weight = op.multiply(op.convert(codes, "f16"), ov.op.Constant(scale_OG1))
        return op.convert(op.reshape(weight, np.array([len(data), -1]), False), "f32")

    def _weight(self, name: str) -> ReaderTensor:
        return self.tensors[f"{name}.weight"]


def _pair_up(nibbles_OGB: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return codes 0..15 of q4_0 as two's complement of code - 8, in bytes of two neighbours.

    GGUF has number i of a block in the low half of byte i and number i + 16 in the high half.
    """
    signed = nibbles_OGB ^ np.uint8(0x88)
    codes = np.concatenate([signed & 15, signed >> 4], axis=-1)
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << 4, dtype=np.uint8)
