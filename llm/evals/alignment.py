"""What preference learning did to the model: reward, length, divergence and costs on held-out prompts.

Every model answers the same prompts from the same uniform numbers, sampled at temperature 1 as in training, so
figures are paired by prompt. Rewards are differences within one prompt: only their change has a meaning, not
their level, and a second reward model, trained on other pairs, says whether the first one was merely pleased.
All of it runs in fp32.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm.data.chat import render
from llm.data.schema import Message, hash_id
from llm.data.tokenizer import Tokenizer
from llm.evals.statistics import Interval, bootstrap_interval, paired_difference
from llm.infer.generate import Completion, generate
from llm.model.transformer import Transformer
from llm.rl.reward_model import HEADS, RewardModel
from llm.rl.rollout import Rollout, close_answers, measure_kl


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt; `reference` is the answer that its author preferred."""

    messages: list[Message]
    ids: list[int]
    reference: str
    principle: str | None
    group: str = ""  # prompts of one group hang together


@dataclass(frozen=True)
class Answers:
    """One model's answers to the prompts, in their order."""

    prompts: list[Prompt]
    completions: list[Completion]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer, the stop token included."""
        return [len(completion.tokens) for completion in self.completions]

    def rewards(self, model: RewardModel, end_id: int, head: str = "reward") -> list[float]:
        """One head's score of every answer: a reward, or the probability of a bad answer."""
        prompts = [prompt.ids for prompt in self.prompts]
        closed = close_answers(prompts, self.completions, end_id, model.trunk.config.context)
        scores: list[float] = model.score(closed)[:, HEADS.index(head)].tolist()
        return scores


def collect_prompts(candidates: Iterable[Prompt], max_tokens: int, limit: int | None = None) -> list[Prompt]:
    """Different prompts in the order of their hashes, at most `limit`; those over `max_tokens` are left out."""
    found: dict[str, Prompt] = {}
    for prompt in candidates:
        if len(prompt.ids) <= max_tokens:
            found.setdefault(hash_id("prompt", *(message["content"] for message in prompt.messages)), prompt)
    return [found[key] for key in sorted(found)][:limit]


def make_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], reference: str, principle: str | None = None, group: str = ""
) -> Prompt:
    """A prompt with its ids: the messages and an opened assistant turn."""
    ids, _ = render(tokenizer, messages, add_generation_prompt=True)
    return Prompt(list(messages), ids, reference, principle, group)


def answer_prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Answers:
    """A model's answers; prompt i draws from (seed, i) whichever model it is."""
    completions = generate(
        model,
        [prompt.ids for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop_ids=(tokenizer.im_end_id, tokenizer.eos_id),
        seed=seed,
    )
    return Answers(list(prompts), completions)


def answer_text(tokenizer: Tokenizer, completion: Completion) -> str:
    """The text of an answer, without the stop token."""
    return tokenizer.decode(completion.tokens, skip_special=True).strip()


@dataclass(frozen=True)
class RewardChange:
    """Mean rewards of two models' answers, and their paired difference."""

    sft: float
    policy: float
    delta: Interval

    def metrics(self) -> dict[str, float | int]:
        """As reports hold it."""
        return {
            "sft": self.sft,
            "policy": self.policy,
            "delta": self.delta.value,
            "delta_low": self.delta.low,
            "delta_high": self.delta.high,
            "n": self.delta.n,
        }


def compare_rewards(sft: Answers, policy: Answers, model: RewardModel, end_id: int) -> RewardChange:
    """Rewards of both models' answers to the same prompts."""
    ours, theirs = policy.rewards(model, end_id), sft.rewards(model, end_id)
    return RewardChange(float(np.mean(theirs)), float(np.mean(ours)), paired_difference(ours, theirs))


def estimate_divergence(policy: Transformer, sft: Transformer, answers: Answers) -> Interval:
    """Return KL(policy || sft) in nats per answer, the mean over the policy's own answers.

    Args:    answers: sampled from the policy at temperature 1, without truncation of its distribution.
    Returns: Interval of the mean of the k3 estimates, each summed over the tokens of an answer.
    Source:  `llm.rl.losses.estimate_sequence_kl`.
    """
    ids = [prompt.ids for prompt in answers.prompts]
    rollout = Rollout(ids, answers.completions)
    return bootstrap_interval(measure_kl(policy, sft, rollout).double().numpy())
