"""What the original itself writes: the text on which rounding can only lose.

On given text a rounded model may gain by chance, because an aligned model no longer fits plain text best: along
that slope rounding errors count to first order, with either sign, and drown what they do to the distribution.
On tokens drawn from the original p the expected loss of a rounded model q is the divergence
E_p[ln p - ln q] = KL(p || q) >= 0, whatever engine computes ln q, and it is 0 for the original alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llm.infer.generate import generate
from llm.model.transformer import Transformer


@dataclass(frozen=True)
class OwnText:
    """Sequences of token ids, where the original's own tokens begin in each, and their log-probabilities [nats]."""

    sequences: list[list[int]]
    starts: list[int]
    logprobs: list[list[float]]


def write_own_text(
    model: Transformer,
    windows: Sequence[Sequence[int]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    draws: int,
    stop_ids: Collection[int],
    seed: int,
) -> OwnText:
    """Let the model go on after the first tokens of each window, sampled at temperature 1 without truncation.

    Args:    windows: N held-out texts, shorter than the context.  draws: of each; all windows, then all again.
             seed: sequence i draws from (seed, i).
    """
    prompts = [list(window[:prompt_tokens]) for window in windows] * draws
    answers = generate(model, prompts, max_new_tokens=new_tokens, stop_ids=stop_ids, seed=seed)
    return OwnText(
        [prompt + answer.tokens for prompt, answer in zip(prompts, answers, strict=True)],
        [len(prompt) for prompt in prompts],
        [answer.logprobs for answer in answers],
    )


def join_draws(rows: Sequence[list[float]], draws: int) -> list[list[float]]:
    """Return the log-probabilities of each window's draws in one list: draws of a window hang together."""
    count = len(rows) // draws
    return [[value for row in rows[first::count] for value in row] for first in range(count)]
