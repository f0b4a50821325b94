"""What a task needs of a model, and ours as such: prompts to ids, log-probabilities of given tokens, greedy answers.

A text is tokenised as lm-evaluation-harness does it: prompt and continuation as one, spaces at the prompt's end being
the continuation's, and what is too long is cut from the left. An empty prompt is the token that texts begin after.
"""

from collections.abc import Sequence
from typing import Protocol

from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.evals.tasks.items import Prompt
from llm.infer.generate import generate
from llm.infer.score import score
from llm.model.transformer import Transformer

Ids = list[int]


class Model(Protocol):
    """A causal model with its tokenizer; `limit` is the longest sequence whose last token it can score."""

    limit: int

    def encode_prompt(self, prompt: Prompt) -> Ids: ...
    def encode_pair(self, prompt: Prompt, continuation: str) -> tuple[Ids, Ids]: ...
    def score(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[list[float]]: ...
    def answer(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[str]: ...


class TransformerModel:
    """Our model; a text follows an end-of-text token, as every training document did."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer):
        self.model, self.tokenizer, self.limit = model, tokenizer, model.config.context

    def encode_prompt(self, prompt: Prompt) -> Ids:
        """Return the ids of a text or of messages with an opened answer; no content can forge a turn."""
        if isinstance(prompt, str):
            return [self.tokenizer.eos_id, *self.tokenizer.encode(prompt)]
        return render(self.tokenizer, prompt, add_generation_prompt=True)[0]

    def encode_pair(self, prompt: Prompt, continuation: str) -> tuple[Ids, Ids]:
        """Return the ids of the prompt and of what follows it."""
        if not isinstance(prompt, str):
            return self.encode_prompt(prompt), self.tokenizer.encode(continuation)
        head, tail = move_spaces(prompt, continuation)
        return split_pair(self.encode_prompt(head), self.encode_prompt(head + tail))

    def score(self, sequences: Sequence[Ids], starts: Sequence[int]) -> list[list[float]]:
        """Return the log-probability [nats] of each sequence's tokens from its start on."""
        return score(self.model, sequences, starts)

    def answer(self, prompts: Sequence[Ids], max_new_tokens: int) -> list[str]:
        """Return the greedy answers."""
        stops = (self.tokenizer.im_end_id, self.tokenizer.eos_id)
        done = generate(self.model, prompts, max_new_tokens=max_new_tokens, temperature=0.0, stop_ids=stops)
        return [self.tokenizer.decode(one.tokens, skip_special=True) for one in done]


def move_spaces(prompt: str, continuation: str) -> tuple[str, str]:
    """Return both with the blanks at the prompt's end moved to the continuation: words are encoded with the blank."""
    head = prompt.rstrip()
    return head, prompt[len(head) :] + continuation


def split_pair(head: Ids, whole: Ids) -> tuple[Ids, Ids]:
    """Return the whole cut after as many ids as the prompt has alone; at least one id is left to score."""
    cut = min(len(head), len(whole) - 1)
    return whole[:cut], whole[cut:]
