"""What an engine asks of a model's backend, and what they say to each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to end."""

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0  # tokens less probable than this share of the most probable one are left out; 0 is none
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_top: int | None = None  # log-probabilities wanted, with so many alternatives at each place
    json_schema: str | None = None  # the answer is one compact JSON value of this schema, or ends by length

    def needs(self) -> frozenset[str]:
        """Return the fields that ask something of an engine which not every engine can do."""
        wanted = {
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "logit_bias": self.logit_bias,
            "num_top": self.num_top,
            "json_schema": self.json_schema is not None,
        }
        return frozenset(name for name, value in wanted.items() if value)


@dataclass(frozen=True)
class TokenScore:
    """Log-probability [nats] of a given token, and those of the most probable ones at its place."""

    logprob: float
    top: dict[int, float]


@dataclass(frozen=True)
class Event:
    """New tokens of one request, or the scores of given ones; with `finish`, its last.

    `scores` has one entry per token where the request asked for log-probabilities.
    """

    tokens: list[int]
    finish: Finish | None = None
    scores: list[TokenScore] = field(default_factory=list)

    def then(self, later: "Event") -> "Event":
        """Return both as one."""
        return Event(self.tokens + later.tokens, later.finish, self.scores + later.scores)


class Backend(Protocol):
    """A model that advances all its requests by one step; called from one thread only.

    `unsupported` names the fields of `Sampling.needs` that it cannot do. `max_running` is the most requests that it may
    be given at a time, None where it does not matter. `score` is None where the engine has no exact log-probabilities;
    else it gives those of all ids but the first. `cache_use` is a share, 0 to 1.
    """

    name: str
    unsupported: frozenset[str]

    @property
    def max_running(self) -> int | None: ...
    @property
    def score(self) -> Callable[[list[int], int], list[TokenScore]] | None: ...
    @property
    def cache_use(self) -> float: ...
    def add(self, request: int, ids: list[int], sampling: Sampling) -> None: ...
    def step(self) -> list[tuple[int, Event]]: ...
    def cancel(self, request: int) -> None: ...
