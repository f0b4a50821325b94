"""A policy small enough to learn in a second, and a true reward that it can raise."""

import torch

from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.rollout import RewardFunction

VOCAB, STOP = 260, 1
LIKED = frozenset(range(2, 60))


def make_model(seed: int = 3) -> Transformer:
    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 64}
    model = Transformer(ModelConfig(vocab_size=VOCAB, context=32, **sizes))
    init_weights(model, seed)
    return model


def make_prompts(count: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (4,), generator=generator).tolist() for _ in range(count)]


def reward_liked(prompts, completions):
    """The share of liked tokens: 58 of 260 at the start."""
    return torch.tensor([sum(t in LIKED for t in c.tokens) / len(c.tokens) for c in completions])


def shuffle_rewards(reward: RewardFunction) -> RewardFunction:
    """The same rewards, dealt out among the answers of a rollout by chance."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(prompts, completions):
        reward_B = reward(prompts, completions)
        return reward_B[torch.randperm(len(reward_B), generator=generator)]

    return shuffled
