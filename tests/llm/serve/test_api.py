"""What every route answers, judged by the openai client over a socket; the engine's words are scripted."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llm.serve.params import ServeParams
from llm.serve.release import Release
from tests.llm.serve.scripted import KEY, Api, serve

BEARER = {"Authorization": f"Bearer {KEY}"}
ASK: list[Any] = [{"role": "user", "content": "What is the weather?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "clock"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def running(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    other = replace(release, model="other@01234567", context=64)
    folder = tmp_path_factory.mktemp("scripted")
    with serve([release, other], ServeParams(max_running=8, max_queue=8), folder) as api:
        yield api


@pytest.fixture
def api(running: Api) -> Api:
    running.backend.text, running.backend.endless = "Hello there.", False
    running.backend.asked.clear()
    return running


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.address}/v1", api_key=KEY, max_retries=0, timeout=20) as one:
        yield one


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "gristmill", "messages": ASK, **options})


def join(stream: Any) -> list[dict[str, Any]]:
    """Return each streamed answer, joined from its chunks."""
    answers: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            answer = answers.setdefault(choice.index, {"content": "", "calls": [], "finish": None, "logprobs": []})
            answer["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                assert call.index == len(answer["calls"])
                answer["calls"].append((call.function.name, json.loads(call.function.arguments)))
                assert call.id.startswith("call_")
            if choice.logprobs:
                answer["logprobs"] += choice.logprobs.content
            assert answer["finish"] is None, "a chunk after the last one"
            answer["finish"] = choice.finish_reason
    return [answers[index] for index in sorted(answers)]


def test_every_sampling_field_reaches_the_engine(api: Api, client: openai.OpenAI) -> None:
    chat(
        client,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        logit_bias={"5": -100, "6": 1.5},
        max_completion_tokens=9,
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.25},
    )
    ((_, sampling),) = api.backend.asked
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 3, 0.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.25, -0.5)
    assert (sampling.repetition_penalty, sampling.seed, sampling.max_tokens) == (1.25, 7, 9)
    assert sampling.logit_bias == ((5, -100.0), (6, 1.5))
    assert sampling.num_top is None
    assert sampling.json_schema is None


def test_ignore_eos_leaves_no_token_that_stops(api: Api, client: openai.OpenAI) -> None:
    reply = chat(client, extra_body={"ignore_eos": True})
    ((_, sampling),) = api.backend.asked
    assert sampling.stop_ids == frozenset()
    assert reply.choices[0].finish_reason == "length"


def test_several_choices_have_seeds_of_their_own(api: Api, client: openai.OpenAI, release: Release) -> None:
    reply = chat(client, n=3, seed=10)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"Hello there."}
    assert [sampling.seed for _, sampling in api.backend.asked] == [10, 11, 12]
    num_answer = len(release.tokenizer.encode("Hello there.")) + 1
    assert reply.usage.prompt_tokens == len(release.encode_chat(ASK))
    assert reply.usage.completion_tokens == 3 * num_answer


def test_several_choices_are_streamed_together(client: openai.OpenAI) -> None:
    chunks = list(chat(client, n=3, stream=True, stream_options={"include_usage": True}))
    order = [chunk.choices[0].index for chunk in chunks[:-1]]
    assert order != sorted(order), "one after the other"
    assert [one["content"] for one in join(chunks)] == ["Hello there."] * 3
    assert [one["finish"] for one in join(chunks)] == ["stop"] * 3
    assert chunks[-1].usage == chat(client, n=3).usage


def test_completions_of_several_prompts_and_choices(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "gristmill", "prompt": ["One", "Two"], "n": 2, "max_tokens": 50}
    reply = client.completions.create(**ask, echo=True)
    texts = ["OneHello there.", "OneHello there.", "TwoHello there.", "TwoHello there."]
    assert [choice.text for choice in reply.choices] == texts
    streamed = [""] * 4
    for chunk in client.completions.create(**ask, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == ["Hello there."] * 4


def test_logprobs_of_a_chat(client: openai.OpenAI, release: Release) -> None:
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(one.token for one in content) == "Hello there."  # without the end token
    assert bytes(byte for one in content for byte in one.bytes) == b"Hello there."
    assert {one.logprob for one in content} == {-0.5}
    assert [[top.logprob for top in one.top_logprobs] for one in content] == [[-2.0, -3.0]] * len(content)
    (streamed,) = join(chat(client, logprobs=True, top_logprobs=2, stream=True))
    assert streamed["logprobs"] == content
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None


def test_logprobs_of_a_completion_stream_as_they_are_whole(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "gristmill", "prompt": "One", "logprobs": 2, "max_tokens": 50}
    whole = client.completions.create(**ask).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**ask, stream=True)]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert sum((getattr(part, name) for part in parts), []) == getattr(whole, name)
    assert len(whole.top_logprobs[0]) == 3  # two alternatives, and the token itself


def test_stop_string_ends_an_answer_and_the_engines_work(api: Api, client: openai.OpenAI) -> None:
    reply = chat(client, stop=["lo t", "zzz"], n=2)
    assert [choice.message.content for choice in reply.choices] == ["Hel", "Hel"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "stop"]
    _wait(lambda: not api.backend.running)


def test_json_answers_are_constrained(api: Api, client: openai.OpenAI) -> None:
    api.backend.text = '{"a":1}'
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    assert json.loads(chat(client, response_format=wanted).choices[0].message.content) == {"a": 1}
    chat(client, response_format={"type": "json_object"})
    chat(client, response_format={"type": "text"})
    schemas = [sampling.json_schema for _, sampling in api.backend.asked]
    assert [schema and json.loads(schema) for schema in schemas] == [SCHEMA, {"type": "object"}, None]


def test_offered_tool_is_called(api: Api, client: openai.OpenAI, release: Release) -> None:
    api.backend.text = f"I look.\n{CALL}\n{CALL}"
    reply = chat(client, tools=TOOLS)
    (choice,) = reply.choices
    assert choice.message.content == "I look."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "weather"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Bonn"}
    assert choice.finish_reason == "tool_calls"
    ((ids, sampling),) = api.backend.asked
    assert "# Tools" in release.tokenizer.decode(ids)
    assert sampling.json_schema is None
    for streamed in join(chat(client, tools=TOOLS, n=2, stream=True)):
        assert streamed["content"] == "I look."
        assert streamed["calls"] == [("weather", {"city": "Bonn"})] * 2
        assert streamed["finish"] == "tool_calls"
    # The client's own message goes back as it came, with the tools' answers after it.
    answers: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in choice.message.tool_calls
    ]
    api.backend.text = "Rain."
    assert chat(client, tools=TOOLS, messages=[*ASK, choice.message, *answers]).choices[0].message.content == "Rain."


def test_half_a_call_is_text(api: Api, client: openai.OpenAI) -> None:
    api.backend.text = CALL[:-25]
    choice = chat(client, tools=TOOLS).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL[:-25], None, "stop")
    (streamed,) = join(chat(client, tools=TOOLS, stream=True))
    assert (streamed["content"], streamed["calls"]) == (CALL[:-25], [])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_forced_call_is_constrained(api: Api, client: openai.OpenAI, release: Release, choice: Any) -> None:
    api.backend.text = '{"name":"weather","arguments":{"city":"Bonn"}}'
    (whole,) = chat(client, tools=TOOLS, tool_choice=choice).choices
    assert whole.message.content is None
    assert json.loads(whole.message.tool_calls[0].function.arguments) == {"city": "Bonn"}
    assert whole.finish_reason == "tool_calls"
    ids, sampling = api.backend.asked[0]
    assert release.tokenizer.decode(ids).endswith("assistant\n<tool_call>\n")
    schema = json.loads(sampling.json_schema or "")
    assert len(schema["anyOf"]) == (2 if choice == "required" else 1)
    (streamed,) = join(chat(client, tools=TOOLS, tool_choice=choice, stream=True))
    assert (streamed["content"], streamed["calls"]) == ("", [("weather", {"city": "Bonn"})])
    (short,) = chat(client, tools=TOOLS, tool_choice=choice, max_tokens=5).choices
    assert (short.message.tool_calls, short.finish_reason) == (None, "length")


def test_models_are_chosen_by_name(api: Api, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["gristmill", "other@01234567"]
    assert chat(client, model="other@01234567").model == "other@01234567"
    assert api.backend.asked == []  # the other one's answered
    assert client.models.retrieve("other@01234567").model_extra["metadata"]["context"] == 64
    for ask in (lambda: chat(client, model="third"), lambda: client.models.retrieve("third")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_tokenize_and_detokenize(api: Api, release: Release) -> None:
    def post(path: str, **body: Any) -> Any:
        reply = httpx.post(f"{api.address}{path}", json=body, headers=BEARER)
        assert reply.status_code == 200, reply.text
        return reply.json()

    plain = release.tokenizer.encode("Grüße")
    found = post("/tokenize", prompt="Grüße", return_token_strs=True)
    assert found["tokens"] == [release.tokenizer.eos_id, *plain]
    assert found["count"] == len(plain) + 1 == len(found["token_strs"])
    assert found["max_model_len"] == release.context
    assert post("/tokenize", prompt="Grüße", add_special_tokens=False, model="gristmill")["tokens"] == plain
    assert post("/detokenize", tokens=plain) == {"prompt": "Grüße"}
    assert post("/tokenize", messages=ASK)["tokens"] == release.encode_chat(ASK)
    closed = post("/tokenize", messages=ASK, add_generation_prompt=False)["tokens"]
    assert closed == release.encode_chat(ASK)[: len(closed)]
    assert post("/tokenize", messages=ASK, tools=TOOLS)["count"] > len(release.encode_chat(ASK))
    assert post("/tokenize", prompt="", add_special_tokens=False)["tokens"] == []
    wrong = httpx.post(f"{api.address}/detokenize", json={"tokens": [10**9]}, headers=BEARER)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


def test_full_queue_is_429_with_retry_after(api: Api, client: openai.OpenAI) -> None:
    api.backend.endless = True
    streams = [chat(client, stream=True, n=8) for _ in range(2)]  # eight run, eight wait
    for stream in streams[:1]:
        next(stream)
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "queue_full"
    with pytest.raises(openai.RateLimitError):
        chat(client, stream=True)  # a status, not an event of a stream
    for stream in streams:
        stream.close()
    _wait(lambda: not api.backend.running)
    api.backend.endless = False
    assert chat(client).choices[0].message.content == "Hello there."


def test_hanging_up_stops_every_choice(api: Api, client: openai.OpenAI) -> None:
    api.backend.endless = True
    stream = chat(client, stream=True, n=4)
    for _ in range(12):
        next(stream)
    assert len(api.backend.running) == 4
    stream.close()
    _wait(lambda: not api.backend.running)


def test_what_the_engine_cannot_do_is_named(release: Release, tmp_path: Path) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
        ({"response_format": schema}, "response_format"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ]
    everything = frozenset({"repetition_penalty", "logit_bias", "num_top", "json_schema"})
    with serve([release], ServeParams(), tmp_path, everything) as api:
        client = openai.OpenAI(base_url=f"{api.address}/v1", api_key=KEY, max_retries=0)
        for options, param in cases:
            with pytest.raises(openai.BadRequestError, match="the engine scripted") as caught:
                chat(client, **options)
            assert caught.value.param == param
            assert caught.value.code == "unsupported_engine"
        assert chat(client, logprobs=True, logit_bias={}, tools=TOOLS).choices[0].message.content == "Hello there."


def _wait(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
