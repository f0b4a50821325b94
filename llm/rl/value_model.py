"""The value model: a trunk, and one linear head that says at every position what reward is still to come.

It starts as a copy of the reward model, as in InstructGPT, arXiv:2203.02155, appendix C.4: the reward head, which
judges an answer by its last token, is a first guess at the value of every token.

Shape suffixes: B answers, T sampled positions, N sampled positions of all answers, D model.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm.infer.score import pad_right
from llm.model.transformer import Transformer
from llm.rl.reward_model import HEADS, RewardModel


class ValueModel(nn.Module):
    """Trunk and head; the head starts at zero, so that an untrained model expects nothing."""

    def __init__(self, trunk: Transformer):
        super().__init__()
        self.trunk = trunk
        self.weight_D = nn.Parameter(torch.zeros(trunk.config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> "ValueModel":
        """Return a value model that starts as a copy of a reward model."""
        model = cls(copy.deepcopy(reward_model.trunk))
        head = HEADS.index("reward")
        with torch.no_grad():
            model.weight_D.copy_(reward_model.weight_HD[head])
            model.bias.copy_(reward_model.bias_H[head])
        return model

    def forward(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Return fp32 values [B, T]; column j of a row is that of the state in which its token `start + j` is chosen.

        That state is all that stands before the token, so that no value knows the choice it is a baseline for.
        Args: as `llm.infer.score.score_tokens`, with whose columns these line up; 0 where a row has no token.
        """
        device = self.weight_D.device
        tokens_BT, lengths_B = pad_right(sequences, device)
        starts_B = torch.tensor(list(starts), device=device)
        columns_BT = starts_B[:, None] + torch.arange(max(1, int((lengths_B - starts_B).max())), device=device)
        rows_N, places_N = (columns_BT < lengths_B[:, None]).nonzero(as_tuple=True)
        hidden_BTD = self.trunk(tokens_BT)
        state_ND = hidden_BTD[rows_N, columns_BT[rows_N, places_N] - 1].float()
        # Product and sum, not a matrix product: autocast would round the values to bf16.
        value_N = (state_ND * self.weight_D).sum(dim=-1) + self.bias
        return torch.zeros(columns_BT.shape, device=device).index_put((rows_N, places_N), value_N)
