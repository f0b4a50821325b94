"""Batched generation with a KV cache.

Prompts of one batch are padded on the left, so that every row writes the same cache column; padding keys
are masked out and positions count from each row's own first token, so a row gets the same tokens alone and
in company (in fp32 to rounding: a matrix product may sum in another order).  Finished rows are dropped from
the cache.  Prompts are token ids: this module knows neither text nor chat templates.

Shape suffixes: B rows, T positions, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from llm.infer.sampler import choose_tokens, draw_uniforms
from llm.infer.score import score
from llm.model.transformer import Transformer

__all__ = ["Completion", "generate", "score"]

# Rows leave the cache when this share of them has finished: each time copies the whole cache.
_DROP_SHARE = 0.25


@dataclass
class Completion:
    """A generated answer; its last token is the stop token when `finish` is "stop".

    `logprobs` are the model's own [nats], before temperature and truncation, as `score` returns them.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_ids: Collection[int],
    seed: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
    batch_size: int = 128,
) -> list[Completion]:
    """Return one completion per prompt, in the order of the prompts.

    Args:    max_new_tokens: >= 1; a row also ends where the model's context ends.
             temperature: 0 is greedy.  top_p, top_k: see `sampler.truncate`.
             stop_ids: a row ends after any of these.
             seed: prompt i draws from (seed, i); a sequence names one seed per prompt, or the whole pair, and
             each answer is then the same whatever other prompts are given.
    Raises:  ValueError: an empty prompt, one that fills the context, or an option out of range.
    """
    context = model.config.context
    for prompt in prompts:
        if not 0 < len(prompt) < context:
            raise ValueError(f"a prompt has {len(prompt)} tokens; allowed are 1 to {context - 1}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
    if isinstance(seed, int):
        seeds = [(seed, row) for row in range(len(prompts))]
    else:
        seeds = [(s, 0) if isinstance(s, int) else s for s in seed]
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    completions = [Completion() for _ in prompts]
    # Neighbours in length share a batch: the least padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = _Batch(model, [prompts[i] for i in rows], [completions[i] for i in rows], max_new_tokens)
        uniforms_BT = draw_uniforms([seeds[i] for i in rows], max_new_tokens).to(batch.device)
        for step in range(max_new_tokens):
            tokens_B = choose_tokens(
                batch.logits_BV,
                uniforms_BT[batch.rows_B, step],
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
            )
            if not batch.advance(tokens_B, stop_ids, is_last=step + 1 == max_new_tokens):
                break
    return completions


class _Batch:
    """The rows still being generated: their cache, the logits of their next token, their completions."""

    def __init__(
        self,
        model: Transformer,
        prompts: list[Sequence[int]],
        completions: list[Completion],
        max_new_tokens: int,
    ):
        self.model, self.completions = model, completions
        self.device = model.embedding.weight.device
        self.room = [min(max_new_tokens, model.config.context - len(prompt)) for prompt in prompts]
        self.rows_B = torch.arange(len(prompts), device=self.device)
        width = max(len(prompt) for prompt in prompts)
        tokens_BT = torch.zeros(len(prompts), width, dtype=torch.long)
        self.is_key_BT = torch.ones(len(prompts), width + max_new_tokens, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            self.is_key_BT[row, : width - len(prompt)] = False
        self.padded = any(len(prompt) != width for prompt in prompts)
        self.is_key_BT = self.is_key_BT.to(self.device)
        self.position_B = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        positions_BT = (torch.arange(width, device=self.device) - width + self.position_B[:, None]).clamp(min=0)
        self.cache = model.new_cache(len(prompts), width + max_new_tokens)
        self.logits_BV = self._forward(tokens_BT.to(self.device), positions_BT)

    def advance(self, tokens_B: Tensor, stop_ids: Collection[int], is_last: bool) -> bool:
        """Record one token per unfinished row, compute the next logits; False when every row is finished."""
        logprobs = -torch.nn.functional.cross_entropy(self.logits_BV, tokens_B, reduction="none")
        unfinished = []
        for place, (row, token, logprob) in enumerate(
            zip(self.rows_B.tolist(), tokens_B.tolist(), logprobs.tolist(), strict=True)
        ):
            completion = self.completions[row]
            if completion.finish == "stop" or len(completion.tokens) == self.room[row]:
                continue
            completion.tokens.append(token)
            completion.logprobs.append(logprob)
            if token in stop_ids:
                completion.finish = "stop"
            elif len(completion.tokens) < self.room[row]:
                unfinished.append(place)
        if is_last or not unfinished:
            return False
        if len(unfinished) <= len(tokens_B) * (1 - _DROP_SHARE):
            tokens_B = self._keep(torch.tensor(unfinished, device=self.device), tokens_B)
        # A finished row that is still in the batch may stand at the end of the context: its result is unused.
        positions_B1 = self.position_B.clamp(max=self.model.config.context - 1)[:, None]
        self.logits_BV = self._forward(tokens_B[:, None], positions_B1)
        self.position_B = self.position_B + 1
        return True

    def _keep(self, places: Tensor, tokens_B: Tensor) -> Tensor:
        self.cache.select(places)
        self.rows_B, self.position_B = self.rows_B[places], self.position_B[places]
        self.is_key_BT = self.is_key_BT[places]
        return tokens_B[places]

    def _forward(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        num_keys = self.cache.used + tokens_BT.shape[1]
        mask = self.is_key_BT[:, :num_keys] if self.padded else None
        hidden_BTD = self.model(tokens_BT, self.cache, positions_BT, mask)
        return self.model.unembed(hidden_BTD[:, -1])
