"""Generation: cached equals uncached, batched equals single, log-probabilities equal scoring."""

import pytest
import torch

from llm.infer.generate import generate, score
from llm.infer.score import measure_entropy, score_tokens
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights

VOCAB = 300
STOP = frozenset({3, 4, 5})


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.set_num_threads(1)
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        mlp_size=64,
        context=48,
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    with torch.no_grad():
        model.embedding.weight.mul_(25)  # confident enough that greedy answers are not all ties
    return model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 7, 3, 12, 5, 7, 2, 9]
    return [torch.randint(6, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def decode_uncached(model: Transformer, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            tokens.append(int(model.unembed(model(torch.tensor([tokens]))[0, -1]).argmax()))
        if tokens[-1] in STOP:
            break
    return tokens[len(prompt) :]


def test_cached_greedy_decoding_equals_full_forward_passes(model, prompts):
    answers = generate(model, prompts, max_new_tokens=10, temperature=0, stop_ids=STOP)
    assert [answer.tokens for answer in answers] == [decode_uncached(model, prompt, 10) for prompt in prompts]


def test_a_row_is_the_same_alone_and_in_company(model, prompts):
    seeds = list(range(100, 100 + len(prompts)))
    together = generate(model, prompts, max_new_tokens=12, stop_ids=STOP, seed=seeds)
    for prompt, seed, answer in zip(prompts, seeds, together, strict=True):
        (alone,) = generate(model, [prompt], max_new_tokens=12, stop_ids=STOP, seed=seed)
        assert alone.tokens == answer.tokens
        assert alone.finish == answer.finish
        # Rounding only: products over several rows sum in another order.
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-5)


def test_batch_size_and_order_do_not_matter(model, prompts):
    seeds = list(range(len(prompts)))
    whole = generate(model, prompts, max_new_tokens=8, stop_ids=STOP, seed=seeds)
    small = generate(model, prompts[::-1], max_new_tokens=8, stop_ids=STOP, seed=seeds[::-1], batch_size=3)[::-1]
    assert [answer.tokens for answer in whole] == [answer.tokens for answer in small]


def test_dropping_finished_rows_changes_nothing(model, prompts):
    # Half of the vocabulary stops, so rows leave the cache at different steps.
    stop = set(range(0, VOCAB, 2))
    many = [prompt for prompt in prompts for _ in range(3)]
    seeds = list(range(len(many)))
    answers = generate(model, many, max_new_tokens=12, stop_ids=stop, seed=seeds)
    assert len({len(answer.tokens) for answer in answers}) > 2
    for prompt, seed, answer in zip(many, seeds, answers, strict=True):
        assert generate(model, [prompt], max_new_tokens=12, stop_ids=stop, seed=[seed])[0].tokens == answer.tokens
        assert all(token not in stop for token in answer.tokens[:-1])
        assert (answer.finish == "stop") == (answer.tokens[-1] in stop)


def test_logprobs_are_those_of_score_whatever_the_sampling(model, prompts):
    answers = generate(model, prompts, max_new_tokens=9, temperature=1.7, top_k=50, stop_ids=STOP, seed=5)
    sequences = [prompt + answer.tokens for prompt, answer in zip(prompts, answers, strict=True)]
    scores = score(model, sequences, [len(prompt) for prompt in prompts], batch_size=3)
    for answer, logprobs in zip(answers, scores, strict=True):
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-5)


def test_score_equals_a_plain_log_softmax(model, prompts):
    tokens = prompts[3]
    with torch.no_grad():
        logp_TV = model.unembed(model(torch.tensor([tokens]))[0]).log_softmax(-1)
    expected = [logp_TV[t - 1, tokens[t]].item() for t in range(4, len(tokens))]
    assert score(model, [prompts[1], tokens], [1, 4])[1] == pytest.approx(expected, abs=1e-5)
    # Negative control: without the shift by one, these are other numbers.
    unshifted = [logp_TV[t, tokens[t]].item() for t in range(4, len(tokens))]
    assert unshifted != pytest.approx(expected, abs=1e-2)


def test_gradients_flow_through_scores_and_not_through_entropy(model, prompts):
    scores = score_tokens(model, prompts[1:4], [2, 1, 4], with_entropy=True)
    assert scores.logp_BT.requires_grad
    assert not scores.entropy_BT.requires_grad
    assert scores.mask_BT.sum(1).tolist() == [5, 2, 8]
    assert (scores.entropy_BT[scores.mask_BT] > 0).all()
    assert (scores.logp_BT[~scores.mask_BT] == 0).all()


def test_entropy_equals_the_hand_worked_values():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(measure_entropy(logits), torch.tensor([4.0, 1.0]).log())


def test_seed_repeats_and_differs(model, prompts):
    def run(seed: int) -> list[list[int]]:
        return [c.tokens for c in generate(model, [prompts[0]] * 4, max_new_tokens=8, stop_ids=(), seed=seed)]

    assert run(1) == run(1) != run(2)
    assert len({tuple(tokens) for tokens in run(1)}) > 1  # equal prompts of one call draw different answers


def test_generation_ends_where_the_context_ends(model):
    long, short = [7] * 45, [8, 9]
    answers = generate(model, [long, short], max_new_tokens=20, temperature=0, stop_ids=())
    assert [len(answer.tokens) for answer in answers] == [3, 20]
    assert answers[0].finish == "length"
    assert answers[0].tokens == decode_uncached(model, long, 3)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [([], {}), ([1] * 48, {}), ([1], {"max_new_tokens": 0}), ([1], {"seed": [1, 2]}), ([1], {"top_p": 0.0})],
)
def test_generate_refuses(model, prompt, options):
    with pytest.raises(ValueError):
        generate(model, [prompt], **{"max_new_tokens": 4, "stop_ids": (), **options})


@pytest.mark.parametrize(("sequence", "start"), [([1, 2], 0), ([1, 2], 3), ([1] * 49, 1)])
def test_score_refuses(model, sequence, start):
    with pytest.raises(ValueError, match="start"):
        score(model, [sequence], [start])
