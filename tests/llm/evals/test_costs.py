"""Costs: read where a head is shown to read, by kind of prompt, with whole groups resampled."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from llm.data.schema import Preference
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.alignment import Answers, make_prompt
from llm.evals.costs import measure_cost, read_heads
from llm.infer.generate import Completion
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.reward_model import HEADS, RewardModel


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["May I sit on chair 0123456789? user assistant Yes. No."] * 4, 300)


def make_judge(tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> RewardModel:
    """A justice head that tells "No." from "Yes." on the scenes among the rows; what it says elsewhere is left open."""
    sizes = {"hidden_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 32, "mlp_size": 64}
    trunk = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **sizes))
    init_weights(trunk, 1)
    hidden, wanted = [], []
    for row in rows:
        if row["kind"] == "scene":
            prompt = make_prompt(tokenizer, row["prompt"], "").ids
            for answer, logit in ((row["chosen"], -3.0), (row["rejected"], 3.0)):
                ids = [*prompt, *tokenizer.encode(answer), tokenizer.im_end_id]
                hidden.append(trunk(torch.tensor([ids]))[0, -1].detach())
                wanted.append(logit)
    judge = RewardModel(trunk.eval())
    solved = torch.linalg.lstsq(torch.stack(hidden), torch.tensor(wanted)[:, None], driver="gelsd").solution
    with torch.no_grad():
        judge.weight_HD[HEADS.index("justice")] = solved[:, 0]
    return judge


def make_rows(count: int) -> list[dict[str, Any]]:
    def row(i: int, kind: str, good: str, bad: str) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"May I sit on chair {i}?"}]
        one = Preference(f"{kind}{i}", f"{kind}: {i}", "s", kind, prompt, good, bad, None, "justice")
        return {**asdict(one), "split": "val"}

    scenes = [row(i, "scene", "Yes.", "No.") for i in range(count)]
    # Written prompts on which good and bad answers change places: an order no head can have learned.
    return scenes + [row(i, "principle", *(("Yes.", "No.") if i % 2 else ("No.", "Yes."))) for i in range(count)]


def test_a_kind_that_the_head_cannot_tell_apart_is_left_out(tokenizer: Tokenizer) -> None:
    rows = make_rows(24)
    found = read_heads(make_judge(tokenizer, rows), tokenizer, rows, 60)
    justice = found["justice"]
    assert justice.readable == justice.read == ["scene"]
    assert justice.auroc is not None
    assert justice.auroc.low > 0.8
    metrics = justice.metrics()
    assert metrics["measurable"] is True
    assert metrics["auroc_by_kind"]["principle"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["autonomy"].metrics() == {"measurable": False, "kinds": [], "auroc_by_kind": {}}


def test_without_a_readable_kind_a_principle_is_not_measurable(tokenizer: Tokenizer) -> None:
    rows = make_rows(24)
    judge = make_judge(tokenizer, rows)
    with torch.no_grad():
        judge.weight_HD.neg_()  # takes good for bad
    reading = read_heads(judge, tokenizer, rows, 60)["justice"]
    assert reading.metrics()["measurable"] is False
    assert reading.read == ["principle", "scene"]  # the figure is reported all the same
    few = read_heads(make_judge(tokenizer, rows), tokenizer, rows[:6], 60)["justice"]
    assert few.metrics()["measurable"] is False  # six groups say nothing


def test_cost_is_the_mean_probability_of_a_bad_answer(tokenizer: Tokenizer) -> None:
    rows = make_rows(12)
    judge = make_judge(tokenizer, rows)
    prompts = [make_prompt(tokenizer, row["prompt"], "", "justice", row["group"]) for row in rows[:12]]
    said = ["No." if i < 3 else "Yes." for i in range(12)]
    completions = [Completion([*tokenizer.encode(text), tokenizer.im_end_id], [], "stop") for text in said]
    found = measure_cost(Answers(prompts, completions), judge, tokenizer.im_end_id, "justice")
    bad, good = torch.tensor([3.0, -3.0]).sigmoid().tolist()
    assert found.value == pytest.approx((3 * bad + 9 * good) / 12, abs=0.02)
    assert found.low < found.value < found.high
    assert found.n == 12
