"""Torch on the Hugging Face folder: exact log-probabilities, biases, all penalties, and no need of OpenVINO.

Requests take turns, one row each. A batch would be faster, but a matrix product of other rows beside it sums in
another order, and an answer must not depend on who else asks. It has no grammars.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm.infer.sampler import choose_tokens, draw_uniforms
from llm.model.folder import load_model
from llm.model.transformer import KVCache
from llm.serve.backend import Event, Finish, Sampling, TokenScore
from llm.serve.penalties import adjust

SCORED_ROWS = 256  # whose logits are held at a time


@dataclass
class _Row:
    tokens: list[int]  # not yet in the cache: the prompt, then the last token
    sampling: Sampling
    cache: KVCache
    uniforms_T: Tensor
    in_prompt_V: Tensor
    counts_V: Tensor  # of each token in the answer so far
    num_done: int = 0


class TorchBackend:
    """The model, and the cache of each running request."""

    name = "torch"
    unsupported = frozenset({"json_schema"})
    max_running = None
    cache_use = 0.0  # each request brings its own cache, as large as its answer can get

    def __init__(self, folder: Path):
        self._model = load_model(folder).eval()
        self._rows: dict[int, _Row] = {}

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        """Start a request; its seed gives the text that llm.infer.generate gives for the same seed."""
        cache = self._model.new_cache(1, len(ids) + sampling.max_tokens)
        uniforms = draw_uniforms([(sampling.seed % 2**64, 0)], sampling.max_tokens)
        in_prompt_V = torch.zeros(self._model.config.vocab_size, dtype=torch.bool)
        in_prompt_V[ids] = True
        self._rows[request] = _Row(list(ids), sampling, cache, uniforms[0], in_prompt_V, torch.zeros(len(in_prompt_V)))

    def step(self) -> list[tuple[int, Event]]:
        """Advance every request by one token."""
        return [(request, self._advance(request, row)) for request, row in list(self._rows.items())]

    def cancel(self, request: int) -> None:
        """Drop a request and its cache."""
        self._rows.pop(request, None)

    @torch.inference_mode()
    def score(self, ids: list[int], num_top: int) -> list[TokenScore]:
        """Return the exact log-probabilities of all ids but the first, and the most probable ones at each place."""
        if len(ids) < 2:
            return []
        hidden_TD = self._model(torch.tensor([ids[:-1]]))[0]
        scores: list[TokenScore] = []
        for rows_TD, targets_T in zip(
            hidden_TD.split(SCORED_ROWS), torch.tensor(ids[1:]).split(SCORED_ROWS), strict=True
        ):
            scores += _score(self._model.unembed(rows_TD), targets_T, num_top)
        return scores

    @torch.inference_mode()
    def _advance(self, request: int, row: _Row) -> Event:
        hidden_BTD = self._model(torch.tensor([row.tokens]), row.cache)
        logits_BV = self._model.unembed(hidden_BTD[:, -1])
        sampling = row.sampling
        chosen_B = choose_tokens(
            adjust(logits_BV[0], row.in_prompt_V, row.counts_V, sampling)[None],
            row.uniforms_T[row.num_done : row.num_done + 1],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        token = int(chosen_B)
        row.tokens, row.num_done = [token], row.num_done + 1
        row.counts_V[token] += 1
        finish: Finish | None = None
        if token in sampling.stop_ids:
            finish = "stop"
        elif row.num_done == sampling.max_tokens:
            finish = "length"
        if finish:
            self.cancel(request)
        scores = [] if sampling.num_top is None else _score(logits_BV, chosen_B, sampling.num_top)
        return Event([token], finish, scores)


def _score(logits_TV: Tensor, targets_T: Tensor, num_top: int) -> list[TokenScore]:
    logp_TV = logits_TV.float().log_softmax(dim=-1)
    chosen_T = logp_TV.gather(1, targets_T[:, None])[:, 0].tolist()
    top = logp_TV.topk(num_top, dim=-1)
    rows = zip(chosen_T, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenScore(one, dict(zip(best, values, strict=True))) for one, best, values in rows]
