"""Log-probabilities over the socket, as harnesses ask for them: a prompt's ids echoed with what each was worth."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from llm.infer.score import score
from llm.model.folder import load_model
from llm.model.transformer import Transformer
from llm.serve.logprobs import name_token
from llm.serve.release import Release

IDS = [5, 60, 70, 80, 90]


@pytest.fixture
def torch_client(torch_server: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{torch_server}/v1", api_key=key, max_retries=0, timeout=30) as one:
        yield one


@pytest.fixture(scope="module")
def model(release: Release) -> Transformer:
    return load_model(release.folder / "hf").eval()


def ask(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": "gristmill", "prompt": IDS, "temperature": 0, "logprobs": 1, "echo": True} | options
    return client.completions.create(**options)


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_echoed_ids_are_worth_what_infer_says(
    torch_client: openai.OpenAI, model: Transformer, release: Release, max_tokens: int
) -> None:
    reply = ask(torch_client, max_tokens=max_tokens)
    (choice,) = reply.choices
    found = choice.logprobs
    assert len(found.token_logprobs) == len(IDS) + max_tokens == len(found.tokens) == len(found.top_logprobs)
    assert reply.usage.completion_tokens == max_tokens
    assert choice.finish_reason == "length"
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    names = {name_token(release, i): i for i in range(release.tokenizer.vocab_size)}
    ids = [names[name] for name in found.tokens]
    assert ids[: len(IDS)] == IDS
    assert found.token_logprobs[1:] == pytest.approx(score(model, [ids], [1])[0], abs=1e-5)
    assert choice.text == "".join(found.tokens)
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(ids))]


def test_alternatives_tell_whether_a_token_is_the_greedy_choice(
    torch_client: openai.OpenAI, model: Transformer
) -> None:
    found = ask(torch_client, max_tokens=3).choices[0].logprobs
    with torch.no_grad():
        logits = model.unembed(model(torch.tensor([IDS]))[0])
    best = logits.argmax(dim=-1)[:-1].tolist()
    rows = list(zip(found.token_logprobs, found.top_logprobs, strict=True))[1:]
    greedy = [logprob == max(top.values()) for logprob, top in rows]
    assert greedy[: len(IDS) - 1] == [token == right for token, right in zip(IDS[1:], best, strict=True)]
    assert greedy[len(IDS) - 1 :] == [True] * 3  # the answer is greedy
    assert not all(greedy)
    five = ask(torch_client, max_tokens=0, logprobs=5).choices[0].logprobs.top_logprobs
    assert all(len(top) in (5, 6) for top in five[1:])
    assert all(set(one) <= set(more) for one, more in zip(found.top_logprobs[1:], five[1:], strict=False))


def test_many_prompts_at_once_keep_their_order(torch_client: openai.OpenAI) -> None:
    prompts = [IDS, IDS[::-1], [*IDS, 7]]
    many = ask(torch_client, prompt=prompts, max_tokens=1).choices
    assert [choice.index for choice in many] == [0, 1, 2]
    for choice, prompt in zip(many, prompts, strict=True):
        alone = ask(torch_client, prompt=prompt, max_tokens=1).choices[0]
        assert choice.logprobs.token_logprobs == alone.logprobs.token_logprobs


def test_answer_alone_has_log_probabilities_without_echo(torch_client: openai.OpenAI) -> None:
    whole = ask(torch_client, max_tokens=4).choices[0]
    answer = ask(torch_client, max_tokens=4, echo=False).choices[0]
    assert answer.logprobs.token_logprobs == whole.logprobs.token_logprobs[len(IDS) :]
    assert whole.text.endswith(answer.text)
    assert len(answer.text) < len(whole.text)


def test_text_is_echoed_without_the_token_that_it_follows(torch_client: openai.OpenAI, release: Release) -> None:
    choice = ask(torch_client, prompt="The quick", max_tokens=0).choices[0]
    assert choice.text == "The quick"
    ids = release.tokenizer.encode("The quick")
    assert choice.logprobs.tokens == [name_token(release, i) for i in ids]
    assert None not in choice.logprobs.token_logprobs


def test_prompt_may_fill_the_context_when_nothing_is_generated(torch_client: openai.OpenAI, release: Release) -> None:
    found = ask(torch_client, prompt=[9] * release.context, max_tokens=0).choices[0].logprobs
    assert len(found.tokens) == release.context
    with pytest.raises(openai.BadRequestError) as caught:
        ask(torch_client, prompt=[9] * (release.context + 1), max_tokens=0)
    assert caught.value.code == "context_length_exceeded"


def test_engine_without_alternatives_says_which_has_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="GRISTMILL_ENGINE=torch") as caught:
        ask(client, max_tokens=1)
    assert caught.value.param == "logprobs"
    assert caught.value.code == "unsupported_engine"
    echoed = ask(client, max_tokens=1, logprobs=None).choices[0]  # the text alone needs no scores
    assert echoed.text.startswith(ask(client, max_tokens=0, logprobs=None).choices[0].text)
