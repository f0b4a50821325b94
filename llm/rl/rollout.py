"""Rollouts: answers sampled from a policy, closed, rewarded and scored.

An answer is drawn at temperature 1 without truncation: only then are its log-probabilities those of the
distribution it came from, and the divergence estimates unbiased.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.infer.generate import Completion, generate
from llm.infer.score import TokenScores, score_tokens
from llm.model.transformer import Transformer
from llm.rl.losses import estimate_sequence_kl
from llm.rl.reward_model import RewardModel

# Rewards of answers, given each answer's prompt and completion.
RewardFunction = Callable[[Sequence[list[int]], Sequence[Completion]], Tensor]


@dataclass
class Rollout:
    """Answers to prompts, one row each: `prompts` repeats a prompt for each of its answers."""

    prompts: list[list[int]]
    completions: list[Completion]
    reward_B: Tensor

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


def sample_rollout(
    policy: Transformer,
    prompts: Sequence[list[int]],
    answers_per_prompt: int,
    reward: RewardFunction,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int,
) -> Rollout:
    """Return `answers_per_prompt` answers to each prompt, neighbours answering the same prompt."""
    repeated = [prompt for prompt in prompts for _ in range(answers_per_prompt)]
    completions = generate(policy, repeated, max_new_tokens=max_new_tokens, stop_ids=stop_ids, seed=seed)
    return Rollout(repeated, completions, reward(repeated, completions))


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


def make_reward(model: RewardModel, end_id: int) -> RewardFunction:
    """Return the reward head of a reward model as a function of answers."""

    def reward(prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Tensor:
        context = model.trunk.config.context
        return model.compute_logits(close_answers(prompts, completions, end_id, context))[:, 0]

    return reward


def measure_kl(policy: Transformer, reference: Transformer, rollout: Rollout, batch_size: int = 64) -> Tensor:
    """Return the k3 estimate of KL(policy || reference) of each answer [nats], [B]; see `estimate_sequence_kl`.

    The answers must have been sampled from the policy.
    """
    kl: list[Tensor] = []
    for first in range(0, len(rollout.prompts), batch_size):
        part = slice(first, first + batch_size)
        rows = Rollout(rollout.prompts[part], rollout.completions[part], rollout.reward_B[part])
        ours, theirs = rows.score(policy), rows.score(reference)
        kl.append(estimate_sequence_kl(ours.logp_BT, theirs.logp_BT, ours.mask_BT))
    return torch.cat(kl)
