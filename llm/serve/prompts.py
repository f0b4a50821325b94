"""From a request to what an engine is given: token ids that fit, and how to go on from them."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm.serve.backend import Sampling
from llm.serve.engine import Engine
from llm.serve.errors import ApiError
from llm.serve.release import Release
from llm.serve.requests import ChatRequest, CompletionRequest
from llm.serve.tools import OPEN, call_schema, render_turns

LEAST_TEMPERATURE = 1e-3
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions; a chat answer may fill the context


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how to go on from them."""

    ids: list[int]
    sampling: Sampling
    stops: list[str]
    num_implied: int = 0  # ids at the beginning that the client did not send


def prepare_chat(body: ChatRequest, release: Release) -> Prompt:
    """Return the prompt of a chat request. Raises ApiError when it leaves no room."""
    turns = render_turns(body.messages, body.offered_tools)
    require_readable(sum(len(turn["content"]) for turn in turns), release, "messages")
    ids = release.encode_chat(turns)
    if body.must_call:
        ids += release.tokenizer.encode(f"{OPEN}\n")
    prompt = _fit(ids, body, release, body.max_tokens or body.max_completion_tokens or release.context, "messages")
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    return replace(prompt, sampling=replace(prompt.sampling, num_top=num_top, json_schema=_schema(body)))


def _schema(body: ChatRequest) -> str | None:
    """Return the JSON schema that the answer must follow."""
    if body.must_call:
        return json.dumps(call_schema(body))
    if body.response_format is None or body.response_format.type == "text":
        return None
    wanted = body.response_format.json_schema
    return json.dumps({"type": "object"} if wanted is None else wanted.schema_)


def prepare_completion(body: CompletionRequest, release: Release) -> list[Prompt]:
    """Return the prompts of a completion request. Raises ApiError when one is wrong or leaves no room."""
    prompts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            require_readable(len(prompt), release, "prompt")
        ids = release.encode_text(prompt) if isinstance(prompt, str) else prompt
        require_known(ids, release, "prompt")
        wish = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        fitted = _fit(ids, body, release, wish, "prompt")
        sampling = replace(fitted.sampling, num_top=body.logprobs)
        prompts.append(replace(fitted, sampling=sampling, num_implied=1 if isinstance(prompt, str) else 0))
    return prompts


def repeat(prompts: Sequence[Prompt], num_choices: int) -> list[Prompt]:
    """Return each prompt so many times, with seeds that count up from its own."""
    return [
        replace(prompt, sampling=replace(prompt.sampling, seed=prompt.sampling.seed + number))
        for prompt in prompts
        for number in range(num_choices)
    ]


def require_supported(prompts: Sequence[Prompt], engine: Engine, fields: dict[str, str]) -> None:
    """Refuse what the engine cannot do; `fields` has the request's names of what Sampling names otherwise.

    `fields["schema"]` is where the request has a schema that the engine may find no grammar for.
    """
    for prompt in prompts:
        for missing in sorted(prompt.sampling.needs() & engine.unsupported):
            refuse_engine(engine, fields.get(missing, missing))
        if prompt.sampling.json_schema is not None:
            try:
                engine.check(prompt.ids, prompt.sampling)
            except ValueError as error:
                field = fields["schema"]
                raise ApiError(f"{field}: {error}", param=field, code="invalid_schema") from None


def refuse_engine(engine: Engine, field: str) -> None:
    """Raise the ApiError that names a field which the engine cannot do."""
    other = "openvino" if engine.name == "torch" else "torch"
    raise ApiError(
        f"{field}: the engine {engine.name} does not do this; serve with GRISTMILL_ENGINE={other}",
        param=field,
        code="unsupported_engine",
    )


def require_readable(num_chars: int, release: Release, param: str) -> None:
    """Refuse what cannot fit, even in the longest tokens, before it costs the time to encode it."""
    least = num_chars // max(len(piece) for piece in release.token_bytes)
    if least > release.context:
        raise ApiError(
            f"{param}: more than {least} tokens do not fit a context of {release.context}",
            param=param,
            code="context_length_exceeded",
        )


def require_known(ids: Sequence[int], release: Release, param: str) -> None:
    """Refuse ids that no token has."""
    size = release.tokenizer.vocab_size
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        message = f"{param}: token id {wrong[0]} is outside the vocabulary of {size}"
        raise ApiError(message[:200], param=param, code="invalid_value")


def _fit(ids: list[int], body: ChatRequest | CompletionRequest, release: Release, wish: int, param: str) -> Prompt:
    room = release.context - len(ids)
    if room < min(wish, 1):
        raise ApiError(
            f"{param}: {len(ids)} tokens leave no room for an answer in a context of {release.context}",
            param=param,
            code="context_length_exceeded",
        )
    require_known(list(body.logit_bias), release, "logit_bias")
    sampling = Sampling(
        max_tokens=min(wish, room),
        stop_ids=frozenset() if body.ignore_eos else release.stop_ids,
        temperature=_read_temperature(body.temperature),
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
    )
    return Prompt(ids, sampling, body.stop)


def _read_temperature(wish: float | None) -> float:
    """Return the temperature; below a thousandth it is greedy: logits divided by less overflow in an engine."""
    temperature = 1.0 if wish is None else wish
    return temperature if temperature >= LEAST_TEMPERATURE else 0.0
