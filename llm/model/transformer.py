"""The core transformer: the Qwen3 dense shape, so that its weights load unchanged everywhere.

Pre-norm RMSNorm, RoPE (half-split), grouped-query attention with per-head QK-norm, SwiGLU, no biases,
optionally tied embeddings. Query/key/value and gate/up are one matrix each: fewer, larger products.
Extensions wrap this class; it has no switches for them.

Shapes: B batch, T new positions, S positions seen so far, D hidden, H query heads, G key/value heads,
K head size, V vocabulary.  Source: Qwen3 report, arXiv:2505.09388; RoPE, arXiv:2104.09864.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import ModelConfig

SHORT_T = 512  # the longest window that `attend_short` takes


class KVCache:
    """Keys and values of the positions seen so far, per layer [B, G, length, K], filled from the left."""

    def __init__(self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.used = 0

    def extend(self, layer: int, key_BGTK: Tensor, value_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return all positions so far."""
        end = self.used + key_BGTK.shape[2]
        assert end <= self.keys.shape[3], f"cache holds {self.keys.shape[3]} positions, {end} needed"
        self.keys[layer, :, :, self.used : end] = key_BGTK
        self.values[layer, :, :, self.used : end] = value_BGTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only these batch rows (finished sequences are dropped)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class _Rotate(torch.autograd.Function):
    """Turns pairs (i, i + K/2) by their angles; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BTK, sin_BTK)
        return _turn(x_BHTK, cos_BTK, sin_BTK, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos_BTK, sin_BTK = ctx.saved_tensors
        return _turn(grad_outputs[0], cos_BTK, sin_BTK, -1), None, None


def _turn(x_BHTK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor, sign: int) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    half = first.shape[-1]
    cos, sin = cos_BTK[..., :half], sin_BTK[..., :half]
    turned = (first * cos).addcmul_(second, sin, value=-sign), (second * cos).addcmul_(first, sin, value=sign)
    return torch.cat(turned, dim=-1)


def rotate(x_BHTK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> Tensor:
    """Return x turned by its position's angles (RoPE, half-split pairs: element i with i + K/2)."""
    return _Rotate.apply(x_BHTK, cos_BTK, sin_BTK)  # type: ignore[no-any-return]


def attend(query_BHTK: Tensor, key_BGSK: Tensor, value_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v [B, H, T, K]; without a mask T == S, and a query sees no later key.

    The bf16 kernel of a GPU reads a key head for its whole group of query heads; the kernels for masks, for fp32, and
    for cards without bf16 would fall back to all T x S scores at once: they get copies, as the CPU does.
    """
    group = query_BHTK.shape[1] // key_BGSK.shape[1]
    native = query_BHTK.is_cuda and query_BHTK.dtype == torch.bfloat16 and mask is None
    if group > 1 and not native:
        key_BGSK, value_BGSK = key_BGSK.repeat_interleave(group, 1), value_BGSK.repeat_interleave(group, 1)
    if (mask is None or mask.dtype == torch.bfloat16) and is_short(query_BHTK, query_BHTK.shape[2]):
        return attend_short(query_BHTK, key_BGSK, value_BGSK, mask)
    return F.scaled_dot_product_attention(
        query_BHTK, key_BGSK, value_BGSK, attn_mask=mask, is_causal=mask is None, enable_gqa=group > 1 and native
    )


def is_short(x: Tensor, T: int) -> bool:
    """Say whether attention among T positions of the type and device of x is faster through all scores."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and T <= SHORT_T


def attend_short(query_BHTK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, bias_B1TT: Tensor | None = None) -> Tensor:
    """Return attention through all T x T scores, as three large products; causal, or as the bias (0 or -inf) says.

    In bf16 on a CPU this takes two fifths of the time of torch's flash kernel, forward and backward together, at
    256 tokens and at 512; from 1,024 on the scores no longer fit into the cache.
    """
    B, H, T, K = query_BHTK.shape
    query, key, value = (x.reshape(B * H, T, K) for x in (query_BHTK, key_BHTK, value_BHTK))
    if bias_B1TT is None:
        bias = torch.full((T, T), -torch.inf, dtype=query.dtype).triu(1).expand(B * H, T, T)
    else:
        bias = bias_B1TT.expand(B, H, T, T).reshape(B * H, T, T)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=K**-0.5)
    return torch.bmm(scores.softmax(dim=-1), value).view(B, H, T, K)


class Attention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sizes = [n * config.head_size for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.head_size = config.head_size
        self.qkv = nn.Linear(config.hidden_size, sum(self.sizes), bias=False)
        self.out = nn.Linear(self.sizes[0], config.hidden_size, bias=False)
        self.query_norm = RMSNorm(config.head_size, config.norm_eps)
        self.key_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        query, key, value = self.project(x_BTD, rope)
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        mixed = attend(query, key, value, mask)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]

    def project(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return query [B, H, T, K], key and value [B, G, T, K]; query and key are normalised and turned."""
        B, T, _ = x_BTD.shape
        parts = self.qkv(x_BTD).split(self.sizes, dim=-1)
        query, key, value = (part.view(B, T, -1, self.head_size).transpose(1, 2) for part in parts)
        return rotate(self.query_norm(query), *rope), rotate(self.key_norm(key), *rope), value


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Token ids -> hidden states -> logits."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm.

        Args:    tokens_BT: int64 ids.  cache: extended in place by T positions.
                 positions_BT: default cache.used + 0..T-1 (give them for left-padded rows).
                 attention_mask: bool [B, S], False on padding keys, S = positions in the cache + T.
        Returns: hidden_BTD in the weights' dtype.
        """
        T = tokens_BT.shape[1]
        start = cache.used if cache is not None else 0
        if positions_BT is None:
            positions_BT = torch.arange(start, start + T, device=tokens_BT.device).unsqueeze(0)
        rope = self._angles(positions_BT)
        mask = self._mask(T, start, attention_mask, tokens_BT.device)
        if segments_BT is not None:
            assert mask is None, "documents are packed for training, not for decoding"
            same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
            mask = same & torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
            if is_short(self.embedding.weight, T):
                mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)
        x = self.embedding(tokens_BT)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, cache, layer)
        if cache is not None:
            cache.used += T
        return self.norm(x)  # type: ignore[no-any-return]

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits of hidden states [..., D]."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight).float()

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Return an empty cache for `batch` rows of at most `length` positions."""
        weight = self.embedding.weight
        return KVCache(self.config, batch, length, weight.dtype, weight.device)

    def _angles(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.embedding.weight
        if self._rope is None or self._rope[0].dtype != weight.dtype or self._rope[0].device != weight.device:
            self._rope = rope_tables(self.config, weight.dtype, weight.device)
        cos, sin = self._rope
        return cos[positions_BT].unsqueeze(1), sin[positions_BT].unsqueeze(1)

    @staticmethod
    def _mask(T: int, start: int, keys_BS: Tensor | None, device: torch.device) -> Tensor | None:
        """Return None for the plain causal case, else bool [B|1, 1, T, S]: may query t see key s?"""
        if keys_BS is None and start == 0:
            return None
        causal = torch.ones(T, start + T, dtype=torch.bool, device=device).tril(start)[None, None]
        if keys_BS is None:
            return causal
        mask = causal & keys_BS[:, None, None, :]
        # A padding query sees no key at all; its softmax would be NaN and poison the cache: let it see itself.
        itself = torch.eye(T, start + T, dtype=torch.bool, device=device).roll(start, dims=1)
        return mask | itself


def rope_tables(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin [context, K]; angles in fp32, theta ** (-2i/K) per pair i, as transformers computes them."""
    pairs = torch.arange(0, config.head_size, 2, dtype=torch.float32, device=device) / config.head_size
    frequency = 1.0 / (config.rope_theta**pairs)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32, device=device), frequency)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def init_weights(model: Transformer, seed: int) -> None:
    """Fill the weights from one seeded generator, the same on every device."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                std = initial_std(name, parameter, model.config)
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def initial_std(name: str, matrix: Tensor, config: ModelConfig) -> float:
    """Return the standard deviation that a matrix starts with.

    1/sqrt(fan_in), which keeps activations at unit scale; the two that write into the residual stream are divided
    by sqrt(2 layers) so that its variance does not grow with depth (GPT-2). Embedding: 0.02; it is also the
    unembedding, and larger rows would start with confident logits.
    """
    if name == "embedding.weight":
        return 0.02
    std = 1.0 / math.sqrt(matrix.shape[1])
    return std / math.sqrt(2 * config.num_layers) if name.endswith(("out.weight", "down.weight")) else std
