"""Rollouts: answers sampled from a policy, closed and scored.

An answer is drawn at temperature 1 without truncation: only then are its log-probabilities those of the
distribution it came from, and the divergence estimates unbiased.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.infer.generate import Completion
from llm.infer.score import TokenScores, score_tokens
from llm.model.transformer import Transformer
from llm.rl.losses import estimate_sequence_kl

# Rewards of answers, given each answer's prompt and completion.
RewardFunction = Callable[[Sequence[list[int]], Sequence[Completion]], Tensor]


@dataclass
class Rollout:
    """Answers to prompts, one row each: `prompts` repeats a prompt for each of its answers."""

    prompts: list[list[int]]
    completions: list[Completion]

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and sampled tokens of each row."""
        return [prompt + one.tokens for prompt, one in zip(self.prompts, self.completions, strict=True)]

    @property
    def starts(self) -> list[int]:
        """Where the sampled tokens of each row begin."""
        return [len(prompt) for prompt in self.prompts]

    @property
    def length_B(self) -> Tensor:
        """Sampled tokens of each row, the stop token included."""
        return torch.tensor([float(len(one.tokens)) for one in self.completions])

    def score(self, model: Transformer, with_entropy: bool = False) -> TokenScores:
        """Return a model's scores of the sampled tokens, without gradients."""
        with torch.no_grad():
            return score_tokens(model, self.sequences, self.starts, with_entropy)


def close_answers(
    prompts: Sequence[list[int]], completions: Sequence[Completion], end_id: int, context: int
) -> list[list[int]]:
    """Return conversations as a reward model reads them: an answer cut by its length limit is closed too.

    So a cut answer looks like the truncated answers among the pairs, and is rewarded like one.
    """
    closed = []
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = completion.tokens[:-1] if completion.finish == "stop" else completion.tokens
        closed.append([*(prompt + tokens)[: context - 1], end_id])
    return closed


def measure_kl(policy: Transformer, reference: Transformer, rollout: Rollout, batch_size: int = 64) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) of each answer [nats], [B]; see `estimate_sequence_kl`.

    The answers must have been sampled from the policy.
    """
    kl: list[Tensor] = []
    for first in range(0, len(rollout.prompts), batch_size):
        part = slice(first, first + batch_size)
        rows = Rollout(rollout.prompts[part], rollout.completions[part])
        ours, theirs = rows.score(policy), rows.score(reference)
        kl.append(estimate_sequence_kl(ours.logp_BT, theirs.logp_BT, ours.mask_BT))
    return torch.cat(kl)
