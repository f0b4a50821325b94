"""The reward model: learns an order, keeps its word after a round trip, ignores padding."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.config import Base, ConfigError
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.pairs import Pair, plan_batches
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel
from llm.rl.reward_training import RewardConfig, compute_loss, fit_platt, train_reward_model

VOCAB, END = 260, 1
SHARES = {"made": 1.0, "principle": 1.0}
CONFIG = RewardConfig(steps=140, batch_pairs=16, lr=3e-3, cost_weight=1.0)


def make_model(seed: int = 0) -> RewardModel:
    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 64}
    config = ModelConfig(vocab_size=VOCAB, context=32, **sizes)
    trunk = Transformer(config)
    init_weights(trunk, seed)
    return RewardModel(trunk)


def make_pairs(count: int, seed: int, principle: str | None = None) -> list[Pair]:
    """A good answer repeats tokens of the prompt; a bad one has others.  Lengths say nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(2, VOCAB, (n,), generator=generator).tolist()

    kind = "principle" if principle else "made"
    pairs = []
    for i in range(count):
        prompt = draw(3)
        lengths = torch.randint(2, 7, (2,), generator=generator).tolist()
        good = (prompt * 3)[: lengths[0]]
        bad, tie = draw(lengths[1]), principle is not None
        pairs.append(Pair(f"{seed}-{i}", kind, principle, prompt, [*good, END], [*bad, END], 0.0, tie, 0))
    return pairs


@pytest.fixture(scope="module")
def trained() -> tuple[RewardModel, list[dict[str, float]]]:
    model = make_model()
    pairs = make_pairs(400, 1) + make_pairs(400, 2, "justice")
    batches, spared = plan_batches(pairs, 140, 16, SHARES, 0), make_pairs(200, 12, "justice")
    return model, train_reward_model(model, batches, spared, CONFIG, Base(dtype="fp32"), None)


def rewards(model: RewardModel, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = model.score([pair.prompt + pair.chosen for pair in pairs])
    return chosen, model.score([pair.prompt + pair.rejected for pair in pairs])


def test_untrained_model_has_no_opinion():
    scores = make_model().score([[5, 6, END], [7, END]])
    assert scores.tolist() == [[0.0, 0.5, 0.5, 0.5, 0.5]] * 2
    loss, accuracy = compute_loss(make_model(), make_pairs(4, 3), 1.0)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert accuracy == 0.0
    assert compute_loss(make_model(), make_pairs(4, 3, "justice"), 1.0)[1] == 0.5  # ties alone: nothing to be right on


def test_learns_the_order_of_pairs_it_has_not_seen(trained):
    model, trace = trained
    chosen, rejected = rewards(model, make_pairs(200, 7))
    accuracy = (chosen[:, 0] > rejected[:, 0]).float().mean().item()
    assert accuracy > 0.8
    assert trace[-1]["loss"] < trace[0]["loss"]
    assert list(trace[0]) == ["step", "lr", "loss", "accuracy", "grad"]
    assert [point["step"] for point in trace] == list(range(5, 141, 5))


def test_cost_head_learns_its_principle_and_others_stay_silent(trained):
    chosen, rejected = rewards(trained[0], make_pairs(200, 8, "justice"))
    justice, autonomy = HEADS.index("justice"), HEADS.index("autonomy")
    assert (rejected[:, justice] > chosen[:, justice]).float().mean().item() > 0.8
    assert (chosen[:, autonomy] == 0.5).all()


def test_reward_is_centred(trained):
    chosen, rejected = rewards(trained[0], make_pairs(200, 9))
    both = torch.cat([chosen[:, 0], rejected[:, 0]])
    assert abs(both.mean().item()) < both.std().item() / 2


def test_score_ignores_company_and_order(trained):
    rows = [pair.prompt + pair.chosen for pair in make_pairs(9, 4)]
    together = trained[0].score(rows, batch_size=4)
    alone = torch.cat([trained[0].score([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)  # rounding: other shapes sum in another order


def test_calibrated_costs_are_the_shares_of_bad_answers(trained):
    """On pairs that neither training nor calibration saw: as many of the answers are bad as is said."""
    justice = HEADS.index("justice")
    chosen, rejected = (side[:, justice] for side in rewards(trained[0], make_pairs(400, 13, "justice")))
    said, true = torch.cat([chosen, rejected]), torch.tensor([0.0, 1.0]).repeat_interleave(400)
    for side in (said > 0.5, said < 0.5):
        assert side.sum() > 200
        assert abs(said[side].mean() - true[side].mean()) < 0.08


def test_platt_scaling_equals_a_grid_search():
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(400, generator=generator, dtype=torch.float64)
    true_odds = 3.0 * logit - 1.0
    is_bad = (torch.rand(400, generator=generator, dtype=torch.float64) < true_odds.sigmoid()).double()
    scale, shift = fit_platt(logit, is_bad)

    def loss(log_a: float, b: float) -> float:
        scaled = math.exp(log_a) * logit + b
        mean = torch.nn.functional.binary_cross_entropy_with_logits(scaled, is_bad)
        return float(mean) + 0.01 * (log_a**2 + b**2)

    grid = [(i / 100, j / 100) for i in range(0, 200, 2) for j in range(-200, 50, 2)]
    best = min(grid, key=lambda point: loss(*point))
    assert math.log(scale) == pytest.approx(best[0], abs=0.03)
    assert shift == pytest.approx(best[1], abs=0.03)
    assert loss(math.log(scale), shift) <= loss(*best) < loss(0.0, 0.0)


def test_platt_scaling_of_a_perfect_order_stays_finite():
    scale, shift = fit_platt(
        torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    )
    assert 2.0 < scale < 100.0
    assert shift == pytest.approx(0.0, abs=1e-6)


def test_folder_round_trip_is_exact(trained, tmp_path):
    trained[0].readable = {"justice": ["scene"]}
    trained[0].save(tmp_path)
    assert RewardModel.load(tmp_path).readable == {"justice": ["scene"]}
    rows = [pair.prompt + pair.chosen for pair in make_pairs(5, 4)]
    assert torch.equal(RewardModel.load(tmp_path).score(rows), trained[0].score(rows))
    heads = load_file(tmp_path / "heads.safetensors")
    assert set(heads) == {f"{name}.{part}" for name in ("reward", *PRINCIPLES) for part in ("weight", "bias")}
    assert heads["reward.weight"].shape == (32,)


def test_missing_head_is_named(trained, tmp_path):
    trained[0].save(tmp_path)
    heads = load_file(tmp_path / "heads.safetensors")
    del heads["autonomy.bias"]
    save_file(heads, tmp_path / "heads.safetensors")
    with pytest.raises(ConfigError, match="autonomy"):
        RewardModel.load(tmp_path)
    (tmp_path / "heads.safetensors").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        RewardModel.load(tmp_path)


def test_same_batches_same_bytes(trained):
    model = make_model()
    pairs = make_pairs(400, 1) + make_pairs(400, 2, "justice")
    spared = make_pairs(200, 12, "justice")
    trace = train_reward_model(model, plan_batches(pairs, 140, 16, SHARES, 0), spared, CONFIG, Base(dtype="fp32"), None)
    assert trace == trained[1]
    for ours, theirs in zip(model.parameters(), trained[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_overlong_conversation_is_refused(trained):
    with pytest.raises(ValueError, match="33 tokens"):
        trained[0].score([[5] * 33])
