"""Memorisation: a model that has learned passages by heart is found out, and an honest one is not."""

import pytest
import torch

from llm.data.schema import Document, write_rows
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.memorisation import (
    CONTINUED_TOKENS,
    GIVEN_TOKENS,
    Memorisation,
    Recital,
    count_prefix,
    draw_passages,
    measure_memorisation,
    recite,
)
from llm.infer.score import score_tokens
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights

LENGTH = GIVEN_TOKENS + CONTINUED_TOKENS


def make_model() -> Transformer:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 64}
    model = Transformer(ModelConfig(vocab_size=300, context=64, **shape))
    init_weights(model, 0)
    return model


def draw(seed: int, count: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 300, (count, LENGTH), generator=random).tolist()


def test_a_model_that_learned_passages_by_heart_is_found_out() -> None:
    seen, unseen = draw(0, 6), draw(1, 30)
    model = make_model()
    honest = measure_memorisation(model.eval(), seen, unseen)
    assert honest.seen.share.value == honest.unseen.share.value == 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = -score_tokens(model.train(), seen, [1] * len(seen)).logp_BT.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = measure_memorisation(model.eval(), seen, unseen)
    assert (found.seen.share.value, found.unseen.share.value) == (1.0, 0.0)
    assert found.difference.low > 0.4
    metrics = found.metrics()
    assert (metrics["seen"]["n"], metrics["unseen"]["n"]) == (6, 30)
    assert metrics["prefix"]["seen"] == CONTINUED_TOKENS
    assert metrics["prefix"]["unseen"] < 2
    assert metrics["logprob"]["difference"]["low"] > 3


def test_the_figures_by_hand() -> None:
    seen, unseen = Recital([16, 16, 4, 0], [-0.5, -0.5, -2.0, -3.0], 16), Recital([1, 0, 0, 3], [-3.0] * 4, 16)
    found = Memorisation(seen, unseen).metrics()
    assert (found["seen"]["value"], found["unseen"]["value"], found["difference"]["value"]) == (0.5, 0.0, 0.5)
    # Newcombe: 0.5 - sqrt((0.5 - 0.15004)^2 + 0.48990^2), the ends being Wilson's of 2 of 4 and of 0 of 4.
    assert found["difference"]["low"] == pytest.approx(0.5 - (0.34996**2 + 0.48990**2) ** 0.5, abs=1e-4)
    assert (found["prefix"]["seen"], found["prefix"]["unseen"]) == (9.0, 1.0)
    assert found["prefix"]["difference"]["value"] == 8.0
    assert found["logprob"]["difference"]["value"] == pytest.approx(1.5)


def test_the_common_prefix() -> None:
    assert [count_prefix([1, 2, 3], other) for other in ([1, 2, 3], [1, 2, 4], [2, 2, 3], [1, 2], [])] == [
        3,
        2,
        0,
        2,
        0,
    ]


def test_likelihoods_are_of_the_continued_tokens_alone() -> None:
    model, (passage,) = make_model().eval(), draw(2, 1)
    found = recite(model, [passage])
    logits = model.unembed(model(torch.tensor([passage])))[0].log_softmax(-1)
    own = [logits[i - 1, passage[i]].item() for i in range(GIVEN_TOKENS, LENGTH)]
    assert found.logprobs == pytest.approx([sum(own) / CONTINUED_TOKENS], abs=1e-5)
    assert found.prefixes[0] == count_prefix([int(logits[GIVEN_TOKENS - 1].argmax())], passage[GIVEN_TOKENS:])


@pytest.mark.parametrize("passages", [[], [[1] * GIVEN_TOKENS], [[1] * LENGTH, [1] * (LENGTH - 1)]])
def test_passages_of_no_use_are_refused(passages: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="need some, of one length"):
        recite(make_model(), passages)


def test_passages_are_drawn_by_hash_one_per_document_of_the_split(tmp_path) -> None:
    words = [f"The {i}th sentence of a text that goes on and on, {i * i} times." for i in range(40)]
    tokenizer: Tokenizer = train_tokenizer(words, 300)
    texts = [" ".join(words[i:] + words[:i])[:600] for i in range(30)] + ["short"] * 30
    rows = [Document(f"d{i}", text, "s", "", "", "{}", f"g{i}") for i, text in enumerate(texts)]
    splits = {row.group: "val" if i % 3 == 0 else "train" for i, row in enumerate(rows)}
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        write_rows(tmp_path / name, Document, ordered, splits)
    train, again = (draw_passages(tmp_path / name, tokenizer, "train", 8) for name in ("a", "b"))
    assert train == again  # whatever the order in the file
    assert [len(one) for one in train] == [LENGTH] * 8
    assert len({tuple(one) for one in train}) == 8
    whole = draw_passages(tmp_path / "a", tokenizer, "val", 100)
    assert len(whole) == 10  # the short ones yield none
    own = [tokenizer.encode(row.text) for row in rows if splits[row.group] == "val"]
    for passage in whole:
        assert any(passage == ids[i : i + LENGTH] for ids in own for i in range(len(ids)))
