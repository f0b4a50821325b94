"""PPO's estimators by hand, wrong ones that must fail, and a value model that learns what is to come."""

import copy

import pytest
import torch

from llm.rl.ppo import Critic, PPOConfig, compute_gae, compute_value_loss, spread_reward, whiten
from llm.rl.reward_model import RewardModel
from llm.rl.value_model import ValueModel
from tests.llm.rl.tiny import VOCAB, make_model

CONFIG = PPOConfig(value_lr=1e-2)


def test_gae_equals_the_hand_worked_value():
    """gamma 0.9, lambda 0.5.

    delta: 0.9 * 0.4 - 0.5 = -0.14;  0.9 * 0.6 - 0.4 = 0.14;  1 - 0.6 = 0.4
    A:     -0.14 + 0.45 * 0.32 = 0.004;  0.14 + 0.45 * 0.4 = 0.32;  0.4
    """
    reward, value = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.6]])
    advantage, returns = compute_gae(reward, value, torch.ones(1, 3), 0.9, 0.5)
    assert torch.allclose(advantage, torch.tensor([[0.004, 0.32, 0.4]]), atol=1e-6)
    assert torch.allclose(returns, torch.tensor([[0.504, 0.72, 1.0]]), atol=1e-6)
    # Negative control: the value of the state itself, in place of the next one's, gives another delta.
    wrong = reward + 0.9 * value - value
    assert not torch.allclose(compute_gae(reward, value, torch.ones(1, 3), 0.9, 0.0)[0], wrong, atol=1e-2)


def test_gae_lies_between_sampled_returns_and_one_step():
    generator = torch.Generator().manual_seed(0)
    reward, value = (torch.randn(4, 6, generator=generator) for _ in range(2))
    mask = torch.ones(4, 6)
    sampled = reward.flip(1).cumsum(1).flip(1)
    advantage, returns = compute_gae(reward, value, mask, 1.0, 1.0)
    assert torch.allclose(returns, sampled, atol=1e-5)  # whatever the value model says
    assert torch.allclose(advantage, sampled - value, atol=1e-5)
    next_value = torch.cat([value[:, 1:], torch.zeros(4, 1)], dim=1)
    one_step, _ = compute_gae(reward, value, mask, 0.9, 0.0)
    assert torch.allclose(one_step, reward + 0.9 * next_value - value, atol=1e-5)


def test_gae_of_a_short_answer_does_not_see_the_padding():
    reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.2]])
    alone, _ = compute_gae(reward, value, torch.ones(1, 2), 0.9, 0.5)
    padded_reward, padded_value = (torch.cat([x, torch.tensor([[torch.nan, 7.0]])], dim=1) for x in (reward, value))
    mask = torch.tensor([[1, 1, 0, 0]])
    padded, returns = compute_gae(padded_reward, padded_value, mask, 0.9, 0.5)
    assert torch.equal(padded[:, :2], alone)
    assert padded[:, 2:].abs().sum() == returns[:, 2:].abs().sum() == 0
    # Negative control: without the mask the last token would expect the padding's value behind it.
    wrong, _ = compute_gae(padded_reward.nan_to_num(), padded_value.nan_to_num(1.0), torch.ones(1, 4), 0.9, 0.5)
    assert not torch.allclose(wrong[:, :2], alone, atol=1e-2)


def test_rewards_are_spread_as_worked_by_hand():
    # log ratios 0.5, -1 (a row of two tokens) and 2 (a row of one): at price 0.1, -0.05, 0.1 + 3, -0.2 - 1.
    logp, ref_logp = torch.tensor([[-1.0, -2.0], [-1.0, 9.0]]), torch.tensor([[-1.5, -1.0], [-3.0, torch.inf]])
    spread = spread_reward(torch.tensor([3.0, -1.0]), logp, ref_logp, torch.tensor([[1, 1], [1, 0]]), 0.1)
    assert torch.allclose(spread, torch.tensor([[-0.05, 3.1], [-1.2, 0.0]]))
    assert spread_reward(torch.ones(1), logp[:1], logp[:1], torch.zeros(1, 2), 0.1).abs().sum() == 0


def test_whitening_is_over_the_mask_alone():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(5, 7, generator=generator) * 3 + 2
    mask = torch.arange(7) < torch.tensor([1, 7, 3, 0, 5])[:, None]
    white = whiten(value.masked_fill(~mask, torch.nan), mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white[mask].std(unbiased=False).item() == pytest.approx(1.0, abs=1e-5)
    assert white[~mask].abs().sum() == 0
    # Negative control: statistics that count the padding's zeros leave neither.
    wrong = (value * mask - (value * mask).mean()) / (value * mask).std(unbiased=False)
    assert abs(wrong[mask].mean()) > 0.1
    for equal in (torch.full((2, 3), 0.1), torch.zeros(2, 3)):
        assert whiten(equal, torch.ones(2, 3)).abs().max() < 1e-3


def test_value_loss_equals_the_hand_worked_value():
    """Clip 0.2, old values 0, returns 1, 1, -1: errors are those of 0.1; of the clipped 0.2, not of 0.9; of 0.9."""
    value = torch.tensor([[0.1, 0.9, 0.9]], requires_grad=True)
    old, returns, mask = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3)
    loss = compute_value_loss(value, old, returns, mask, 0.2)
    assert loss.item() == pytest.approx((0.9**2 + 0.8**2 + 1.9**2) / 6, abs=1e-6)
    loss.backward()
    # What has moved further than the clip towards its return stands still; away from it, it is called back.
    assert torch.allclose(value.grad, torch.tensor([[-0.9, 0.0, 1.9]]) / 3)
    # Negative control: min for max would forgive what moved too far, in both directions: 0.9, 0.1 and 1.2.
    assert loss.item() > (0.9**2 + 0.1**2 + 1.2**2) / 6 + 0.1
    masked = compute_value_loss(torch.tensor([[0.1, torch.nan, 0.9]]), old, returns, torch.tensor([[1, 0, 0]]), 0.2)
    assert masked.item() == pytest.approx(0.9**2 / 2, abs=1e-6)


def test_bad_arguments_are_named():
    one, two = torch.zeros(1, 1), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="gae_lambda 1.5"):
        compute_gae(one, one, one, 1.0, 1.5)
    with pytest.raises(ValueError, match="value_clip is 0"):
        compute_value_loss(one, one, one, one, 0.0)
    calls = (
        lambda: compute_gae(one, two, one, 1.0, 1.0),
        lambda: spread_reward(torch.zeros(2), one, one, one, 0.1),
        lambda: whiten(one, two),
        lambda: compute_value_loss(one, two, one, one, 0.2),
    )
    for call in calls:
        with pytest.raises(ValueError, match="shapes differ"):
            call()


def test_a_value_is_that_of_the_state_before_the_token():
    model = ValueModel(make_model())
    with torch.no_grad():
        model.weight_D.normal_(generator=torch.Generator().manual_seed(0))
        model.bias.fill_(0.5)
        values = model([[5, 6, 7, 8], [9, 5]], [2, 1])
        hidden = model.trunk(torch.tensor([[5, 6, 7, 8]]))[0]
        expected = hidden @ model.weight_D + 0.5
        assert torch.allclose(values[0], expected[1:3], atol=1e-5)
        assert values.shape == (2, 2)
        assert values[1, 1] == 0
        # Another last token changes nothing: the baseline must not know the choice.
        assert torch.equal(model([[5, 6, 7, 99]], [2]), values[:1])
        assert not torch.equal(model([[5, 6, 99, 8]], [2])[0, 1], values[0, 1])
    assert ValueModel(make_model())([[5, 6, 7]], [1]).abs().sum() == 0


def test_a_value_model_starts_as_the_reward_model():
    judge = RewardModel(make_model())
    with torch.no_grad():
        judge.weight_HD.normal_(generator=torch.Generator().manual_seed(0))
        judge.bias_H.fill_(0.25)
        model = ValueModel.from_reward_model(judge)
        said = model([[5, 6, 7, 8]], [3]).item()
    assert said == pytest.approx(judge.compute_logits([[5, 6, 7]])[0, 0].item(), abs=1e-5)
    before = copy.deepcopy(judge.state_dict())
    Critic(model, CONFIG, torch.float32).update([[5, 6]], [1], torch.zeros(1, 1), torch.ones(1, 1), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.state_dict().items())


def test_a_critic_learns_what_is_to_come():
    """Answers to one prompt are paid 1 at their end, answers to the other 0: it tells the prompts apart."""
    generator = torch.Generator().manual_seed(0)
    critic = Critic(ValueModel(make_model()), CONFIG, torch.float32)
    starts, reward = [2] * 16, torch.zeros(16, 4)
    reward[:8, -1] = 1.0
    for _ in range(30):
        answers = torch.randint(2, VOCAB, (16, 4), generator=generator).tolist()
        sequences = [[9, 5 if i < 8 else 250, *row] for i, row in enumerate(answers)]
        old = critic.estimate(sequences, starts)
        _, returns = compute_gae(reward, old, torch.ones(16, 4), 1.0, 0.95)
        critic.update(sequences, starts, old, returns, 1.0)
    value = critic.estimate([[9, 5, 77], [9, 250, 77]], [2, 2])
    assert value.flatten().tolist() == pytest.approx([1.0, 0.0], abs=0.2)
