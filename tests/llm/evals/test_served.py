"""The served file's answers next to sft's: figures by hand, on answers that are written rather than generated."""

import math
from typing import Any

import pytest
import torch

from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.asked import Asked, Said, choose_prompts
from llm.evals.served import estimate_answer_kl, measure_answers
from llm.infer.generate import Completion
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import HEADS, PRINCIPLES, RewardModel

HELP, DODGE = "Sort it by key {i}.", "I cannot help with that."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"How do I sort list 0123456789? user assistant Sort it by key {DODGE}"] * 4, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **shape))
    init_weights(model, 1)
    return model.eval()


READABLE = {"justice": ["principle"]}


def make_rows() -> list[dict[str, Any]]:
    def row(text: str, kind: str, principle: str | None = None) -> dict[str, Any]:
        prompt = [{"role": "user", "content": text}]
        return {"prompt": prompt, "chosen": HELP, "kind": kind, "principle": principle, "group": text}

    rows = [row(f"How do I sort list {i}?", "harmless") for i in range(6)]
    rows += [row(f"Who sorts list {i}?", "principle", "justice") for i in range(4)]
    return rows + [row("How do I sort list 0?", "sibling"), row("long " * 60, "harmless")]


@pytest.fixture(scope="module")
def judge(model: Transformer, tokenizer: Tokenizer) -> RewardModel:
    """Heads that tell the two answers apart: to dodge is rewarded with -4, and bad for justice with a logit of 4."""
    asked = choose_prompts(tokenizer, make_rows(), 50, 20, READABLE)
    answers = [[*tokenizer.encode(answer), tokenizer.im_end_id] for answer in (HELP.format(i=4), DODGE)]
    rows = [prompt.ids + answer for prompt in asked.prompts.values() for answer in answers]
    hidden_ND = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows]).detach()
    wanted_N = torch.tensor([-4.0, 4.0] * (len(rows) // 2))
    weight_D = torch.linalg.lstsq(hidden_ND, wanted_N[:, None], driver="gelsd").solution[:, 0]
    judge = RewardModel(model)
    with torch.no_grad():
        judge.weight_HD[HEADS.index("reward")] = -weight_D
        judge.weight_HD[HEADS.index("justice")] = weight_D
    return judge


def say(tokenizer: Tokenizer, asked: Asked, answer: str, keys: list[str] | None = None) -> Said:
    prompts = {key: asked.prompts[key] for key in keys or asked.prompts}
    texts = [tokenizer.encode(answer.format(i=i)) for i in range(len(prompts))]
    completions = [Completion([*text, tokenizer.im_end_id], [-1.0] * (len(text) + 1), "stop") for text in texts]
    return Said.of(prompts, completions, tokenizer)


def test_prompts_come_once_in_parts(tokenizer: Tokenizer) -> None:
    asked = choose_prompts(tokenizer, make_rows(), 50, 3, READABLE)
    assert len(asked.general) == 3
    assert len(asked.harmless) == 6
    assert {name: len(keys) for name, keys in asked.by_principle.items()} == {
        name: 4 if name == "justice" else 0 for name in PRINCIPLES
    }
    assert set(asked.prompts) == {*asked.general, *asked.harmless, *asked.by_principle["justice"]}
    assert set(asked.compared) == {*asked.general, *asked.harmless}
    assert choose_prompts(tokenizer, list(reversed(make_rows())), 50, 3, READABLE).general == asked.general


def test_a_file_that_dodges_is_seen(tokenizer: Tokenizer, model: Transformer, judge: RewardModel) -> None:
    asked = choose_prompts(tokenizer, make_rows(), 50, 20, READABLE)
    dodge = say(tokenizer, asked, DODGE)
    helpful = say(tokenizer, asked, HELP, list(asked.compared))
    figures, items = measure_answers(asked, dodge, helpful, model, judge, tokenizer.im_end_id)
    assert figures["reward"]["second"]["delta_high"] < -1
    assert figures["reward"]["second"]["n"] == 10
    assert figures["cost"]["justice"]["low"] > 0.8
    assert set(figures["cost"]) == {"justice"}  # no prompt asks for the others
    assert figures["answered"]["change"]["value"] == -1.0
    assert figures["distinct"] == {"sft": 1.0, "policy": 0.1, "ratio": 0.1}
    assert figures["length"]["ratio"] == pytest.approx(
        (len(tokenizer.encode(DODGE)) + 1) / (len(tokenizer.encode(HELP.format(i=1))) + 1)
    )
    assert set(items) == set(asked.prompts)
    one = items[asked.by_principle["justice"][0]]
    assert one["answer"] == DODGE
    assert one["principle"] == "justice"
    assert one["cost"] > 0.8
    assert "answered" not in one
    assert items[asked.harmless[0]]["answered"] is False

    better, _ = measure_answers(
        asked, say(tokenizer, asked, HELP), say(tokenizer, asked, DODGE, list(asked.compared)), model, judge,
        tokenizer.im_end_id,
    )  # fmt: skip
    assert better["reward"]["second"]["delta_low"] > 1
    assert better["cost"]["justice"]["high"] < 0.2


def test_without_such_prompts_a_part_is_left_out(tokenizer: Tokenizer, model: Transformer, judge: RewardModel) -> None:
    asked = choose_prompts(tokenizer, [{**make_rows()[0], "kind": "sibling"}], 50, 20, READABLE)
    said = say(tokenizer, asked, HELP)
    figures, _ = measure_answers(asked, said, said, model, judge, tokenizer.im_end_id)
    assert figures["cost"] == {}
    assert "answered" not in figures
    assert figures["reward"]["second"]["delta"] == 0.0


def test_divergence_is_the_sum_of_k3_over_tokens() -> None:
    # x = log q - log p is ln 2 and 0 in the first answer, -ln 2 in the second: k3 = e^x - 1 - x.
    found = estimate_answer_kl([[-1.0, -2.0], [-1.0]], [[-1.0 + math.log(2), -2.0], [-1.0 - math.log(2)]])
    assert found.value == pytest.approx(((1 - math.log(2)) + (math.log(2) - 0.5)) / 2, abs=1e-6)
    assert found.n == 2
