"""Decoding with fixed shapes: on a GPU one token is the replay of one CUDA graph.

An eager step launches some thirty kernels per layer from Python; with one stream the launches, not the memory, then
set the pace. Here every tensor of a step keeps its address and shape: the cache has its full length from the start,
the position is a tensor, new keys and values are copied to it, and positions not yet written are masked. So a step
can be captured once and replayed. With `compile`, torch fuses the kernels between the matrix products of a layer,
and at batch 1 writes the products themselves as reductions, which read a matrix nearer to the memory's pace.

Greedy, and all rows have one length: sampling and uneven rows are `generate`'s. On a CPU the same step runs eagerly
(`compile` works there too): what tests compare with the ordinary cache is what the graph holds.

Shapes: B rows, T prompt positions, S positions of the cache, D hidden, H query heads, G key/value heads,
K head size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.transformer import Block, Transformer, rope_tables

ALIGNMENT = 64  # the cache's length is a multiple: a kernel that reads the mask wants whole vectors
WARM_UPS = 3  # steps before the capture: they compile and choose kernels, which a capture cannot


class StaticDecoder:
    """Some rows being decoded greedily: `prefill` a prompt, then `step`.

    Attributes: logits_BV: fp32 logits of the next token.  tokens_B1: the token that the next step reads.
    """

    def __init__(self, model: Transformer, batch: int, length: int, *, compile: bool = False):
        """Hold `batch` rows of at most `length` positions; capture the step where there is a GPU."""
        assert length <= model.config.context, f"{length} positions, and a context of {model.config.context}"
        self.model = model
        weight = model.embedding.weight
        self.length = length
        self.cache = model.new_cache(batch, -(-length // ALIGNMENT) * ALIGNMENT)
        self.logits_BV = torch.zeros(batch, model.config.vocab_size, device=weight.device)
        self.tokens_B1 = torch.zeros(batch, 1, dtype=torch.long, device=weight.device)
        self._position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self._rope = rope_tables(model.config, weight.dtype, weight.device)
        self._enter, self._decode_layer, self._leave = (_compile(part) if compile else part for part in _PARTS)
        self._graph = self._capture() if weight.is_cuda else None

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> None:
        """Forget what was decoded and read a prompt, one for each row."""
        assert 0 < tokens_BT.shape[1] <= self.length, f"a prompt of {tokens_BT.shape[1]} in a cache of {self.length}"
        self.rewind(0)
        hidden_BTD = self.model(tokens_BT, self.cache)
        self._position.fill_(tokens_BT.shape[1])
        self.logits_BV.copy_(self.model.unembed(hidden_BTD[:, -1]))
        self.tokens_B1.copy_(self.logits_BV.argmax(-1, keepdim=True))

    @torch.no_grad()
    def step(self) -> None:
        """Read tokens_B1 at the next position, write logits_BV and the most probable token; nothing waits for it."""
        assert self.cache.used < self.length, f"the cache's {self.length} positions are full"
        self.cache.used += 1
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()

    def rewind(self, used: int) -> None:
        """Go back to the first `used` positions; what stands after them is overwritten."""
        self.cache.used = used
        self._position.fill_(used)

    def _advance(self) -> None:
        head = self.model.embedding if self.model.head is None else self.model.head
        cache = self.cache
        x_B1D, rope, bias_S = self._enter(
            self.model.embedding.weight, self._rope, self.tokens_B1, self._position, cache.keys.shape[3]
        )
        for layer, block in enumerate(self.model.blocks):
            keys, values = cache.keys[layer], cache.values[layer]
            x_B1D = self._decode_layer(cast(Block, block), x_B1D, rope, bias_S, self._position, keys, values)
        self._leave(self.model.norm, head.weight, x_B1D, self.logits_BV, self.tokens_B1, self._position)

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.rewind(0)
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self.rewind(0)
        return graph


def decode_layer(
    block: Block,
    x_B1D: Tensor,
    rope: tuple[Tensor, Tensor],
    bias_S: Tensor,
    position: Tensor,
    keys_BGSK: Tensor,
    values_BGSK: Tensor,
) -> Tensor:
    """Return what `block` makes of one new position, whose key and value enter the cache.

    Args:    bias_S: 0 where a key may be seen, -inf elsewhere, in the weights' dtype.  position: int64 [1].
    Differs: from Attention.forward, the heads that share a key are its queries, so that keys need no copies.
    """
    query, key, value = block.attention.project(block.attention_norm(x_B1D), rope)
    keys_BGSK.index_copy_(2, position, key)
    values_BGSK.index_copy_(2, position, value)
    B, G, S, K = keys_BGSK.shape
    query_BGRK = query.reshape(B, G, -1, K)
    bias_BGRS = bias_S.expand(B, G, query_BGRK.shape[2], S)
    mixed = F.scaled_dot_product_attention(query_BGRK, keys_BGSK, values_BGSK, attn_mask=bias_BGRS)
    x_B1D = x_B1D + block.attention.out(mixed.reshape(B, 1, -1))
    return x_B1D + block.mlp(block.mlp_norm(x_B1D))  # type: ignore[no-any-return]


def _enter(
    embedding_VD: Tensor, rope: tuple[Tensor, Tensor], tokens_B1: Tensor, position: Tensor, length: int
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Return the embedded tokens, cos and sin of their position, and the mask of written positions as a bias."""
    is_hidden_S = torch.arange(length, device=position.device) > position
    bias_S = torch.zeros(length, dtype=embedding_VD.dtype, device=position.device)
    cos, sin = (table[position][None, None] for table in rope)
    return F.embedding(tokens_B1, embedding_VD), (cos, sin), bias_S.masked_fill(is_hidden_S, -torch.inf)


def _leave(
    norm: nn.Module, head_VD: Tensor, x_B1D: Tensor, logits_BV: Tensor, tokens_B1: Tensor, position: Tensor
) -> None:
    """Write the logits, the most probable token and the next position where the next step reads them."""
    logits = F.linear(norm(x_B1D)[:, 0], head_VD).float()
    logits_BV.copy_(logits)
    tokens_B1.copy_(logits.argmax(-1, keepdim=True))
    position.add_(1)


_PARTS: tuple[Callable[..., Any], ...] = (_enter, decode_layer, _leave)


def _compile(part: Callable[..., Any]) -> Callable[..., Any]:
    # The layers share one compiled function: they differ in their tensors only.
    return torch.compile(part, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})
