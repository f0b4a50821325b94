"""DPO: a policy learns from pairs of answers, the better one and the worse, without a model of rewards in its loss.

    loss = -log sigmoid(beta * [(log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))])

The best policy for a reward r under a KL price beta is ref * exp(r / beta) / Z; solved for r, the reward of a policy
is beta * log(pi / ref) up to a term of the prompt, which falls out of a pair: the loss is Bradley-Terry's on it.

A pair is two answers to one prompt that the policy has just sampled and its judge ranked, the costs and the length
priced as for the other algorithms, so that the same multipliers hold its costs, length and KL.  The loss alone never
calls back a policy that ranks its pairs rightly: over its target, KL is priced besides, by k3 at the excess of its
multiplier over the least one.

Source: arXiv:2305.18290, eq. 7 (the loss), eq. 4-6 (why).  Differs: pairs are sampled anew at every step from the
policy, not once from the reference, as in online DPO, arXiv:2402.04792, section 3: no pair is met twice, and the
reference reads each once.

Shape suffixes: N pairs; P prompts, G answers per prompt; B answers, T sampled positions.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from llm.config import BaseParams
from llm.infer.score import TokenScores
from llm.model.transformer import Transformer
from llm.rl.grpo import compute_grpo_advantages
from llm.rl.losses import average_tokens, estimate_kl
from llm.rl.policy_engine import PolicyEngine, Task, split_strided
from llm.rl.rollout import Rollout


class DPOConfig(BaseParams):
    """How a policy learns from pairs."""

    beta: float = Field(0.3, gt=0, le=100, description="price of KL in the reward that pairs imply")


def compute_dpo_loss(
    chosen_N: Tensor, rejected_N: Tensor, ref_chosen_N: Tensor, ref_rejected_N: Tensor, beta: float
) -> Tensor:
    """Return the DPO loss, averaged over pairs.

    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected));  loss = mean(-log sigmoid(margin)).

    Args:    log-probabilities [nats] of whole answers, fp32: the sum over an answer's tokens, not their mean; those of
             the reference are constants.  beta: > 0.
    Returns: scalar loss [nats per pair], ln 2 where the policy is the reference.
    Raises:  ValueError: shapes differ, there is no pair, or beta is not positive.
    Source:  DPO, arXiv:2305.18290, eq. 7.
    """
    if not chosen_N.shape == rejected_N.shape == ref_chosen_N.shape == ref_rejected_N.shape or not chosen_N.numel():
        raise ValueError(
            f"four log-probabilities per pair and at least one pair: {chosen_N.shape}, {rejected_N.shape}, "
            f"{ref_chosen_N.shape}, {ref_rejected_N.shape}"
        )
    if not beta > 0:
        raise ValueError(f"beta is {beta}, allowed is beta > 0")
    chosen_ratio_N, rejected_ratio_N = chosen_N - ref_chosen_N.detach(), rejected_N - ref_rejected_N.detach()
    return -F.logsigmoid(beta * (chosen_ratio_N - rejected_ratio_N)).mean()


def pair_answers(score_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the better and of the worse answers of pairs, [N] each; row p * G + g is answer g to prompt p.

    The best of a group is paired with its worst, the second with the last but one, and so on through the outer
    quarters: the loss weighs every pair alike, and which of two middling answers is better is mostly the judge's noise.
    Equal ones are no pair.
    """
    num_prompts, group = score_PG.shape
    pairs = max(1, group // 4)
    order_PG = score_PG.argsort(dim=1, descending=True, stable=True)
    better_PG, worse_PG = order_PG[:, :pairs], order_PG.flip(1)[:, :pairs]
    differ_PG = score_PG.gather(1, better_PG) > score_PG.gather(1, worse_PG)
    first_P1 = torch.arange(num_prompts)[:, None] * group
    return (first_P1 + better_PG)[differ_PG], (first_P1 + worse_PG)[differ_PG]


class DPOEngine(PolicyEngine):
    """The engine of a policy that learns from the pairs among its answers."""

    def __init__(self, policy: Transformer, task: Task, dpo: DPOConfig):
        super().__init__(policy, task)
        self.beta = dpo.beta

    def learn(
        self, rollout: Rollout, signal_B: Tensor, old: TokenScores, ref_BT: Tensor, lr_scale: float
    ) -> list[tuple[float, float]]:
        """Take the steps of a rollout by DPO; return each one's loss and gradient norm. No pair, no step."""
        group = self.config.answers_per_prompt
        # Its order within a group is that of the signal, but for length, which is priced.
        score_B = compute_grpo_advantages(signal_B, rollout.length_B, group, self.length_price.value)[:, 0]
        better_N, worse_N = pair_answers(score_B.view(-1, group))
        if not len(better_N):
            return [(0.0, 0.0)]
        excess = self.kl_price.value - self.kl_price.start
        taken = []
        for part in split_strided(len(better_N), self.config.minibatches):
            rows_B = torch.cat([better_N[part], worse_N[part]])
            new = self.score_rows(rollout, rows_B)
            ref_NT = ref_BT[rows_B, : new.logp_BT.shape[1]]
            chosen_N, rejected_N = new.logp_BT.sum(dim=1).split(len(part))
            ref_chosen_N, ref_rejected_N = ref_NT.sum(dim=1).split(len(part))
            loss = compute_dpo_loss(chosen_N, rejected_N, ref_chosen_N, ref_rejected_N, self.beta)
            loss = loss + excess * average_tokens(estimate_kl(new.logp_BT, ref_NT), new.mask_BT)
            taken.append(self.descend(loss, lr_scale))
        return taken
