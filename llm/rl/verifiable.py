"""Rewards that a rule computes from the text of an answer: nothing is learned, so there is no judge to fool.

Every reward lies in [0, 1], and takes time linear in the text: a pattern of the user's is matched by RE2, which never
backtracks.  The rules see only what they measure (a copied reference is a perfect answer to them): combine them with
each other, or with a learned reward.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from llm.config import ConfigError, require
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.infer.generate import Completion
from llm.rl.rollout import RewardFunction

MARK = "####"
MAX_PATTERN_CHARS = 500
REPEATED_WORDS = 4
_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?", re.ASCII)
_WORD = re.compile(r"[^\W_]+")
References = Mapping[tuple[int, ...], str]


def compute_exact_match(answer: str, reference: str) -> float:
    """Return 1.0 when the answer's final result is the reference's, else 0.0.

    The result is what follows the first `####` up to the end of its line; a reference without the mark is a result
    as a whole.  Case, spaces, `$`, commas, a last full stop and zeros that do not change a number have no say.

    Source: the mark and its place are GSM8K's, arXiv:2110.14168, section 2.  Differs from its published grader: the
    whole rest of the line must be the result, so that a list of guesses earns nothing.
    """
    _, mark, said = answer.partition(MARK)
    expected = reference.partition(MARK)[2] if MARK in reference else reference
    return float(bool(mark) and normalise_result(said) == normalise_result(expected) != "")


def normalise_result(text: str) -> str:
    """Return the first line of a result in the form in which equal ones are equal: `$1,250.00` is `1250`."""
    first_line = text.strip().split("\n", 1)[0]
    plain = " ".join(first_line.replace("$", "").replace(",", "").lower().split()).removesuffix(".")
    number = _NUMBER.fullmatch(plain)
    if number is None or not (number[2] or number[3]):
        return plain
    # As text, not as float or int: no rounding, no limit on digits.
    whole, part = number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
    size = f"{whole}.{part}" if part else whole
    return f"-{size}" if number[1] == "-" and size != "0" else size


def compute_word_f1(answer: str, reference: str) -> float:
    """Return how far the words of an answer are those of its reference.

    precision, recall = words in common / words of the answer, of the reference;  F1 = 2 P R / (P + R).
    A word is a run of letters and digits, lower-cased; one that comes twice must be found twice.

    Returns: in [0, 1]; 0.0 when either has no word.
    Source:  SQuAD, arXiv:1606.05250, section 6.1.  Differs: articles count.
    """
    ours, theirs = (Counter(_WORD.findall(text.lower())) for text in (answer, reference))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def is_well_formed(answer: str) -> bool:
    """Say whether an answer has words, ends like a sentence and says no four words in a row twice."""
    words = _WORD.findall(answer.lower())
    runs = list(zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False))
    return answer.rstrip().endswith((".", "!", "?")) and bool(words) and len(set(runs)) == len(runs)


def make_match_reward(
    tokenizer: Tokenizer, references: References, compare: Callable[[str, str], float]
) -> RewardFunction:
    """Return `compare(answer, reference)` as a reward: `compute_exact_match` or `compute_word_f1`.

    All answers to a prompt without a reference get 0: such a prompt has no say in which of them is better.
    """
    require(bool(references), "a verifiable reward has no reference answer to compare with: give it some")

    def reward(prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Tensor:
        expected = (references.get(tuple(prompt)) for prompt in prompts)
        answers = (decode_answer(tokenizer, completion) for completion in completions)
        pairs = zip(answers, expected, strict=True)
        return torch.tensor([0.0 if theirs is None else compare(ours, theirs) for ours, theirs in pairs])

    return reward


def make_format_reward(tokenizer: Tokenizer, pattern: str | None = None) -> RewardFunction:
    """Return 1 for an answer that its stop token ended, `is_well_formed`, and in which the pattern is found.

    Raises ConfigError when RE2 refuses the pattern or it is longer than MAX_PATTERN_CHARS.
    """
    matches = compile_pattern(pattern) if pattern is not None else None

    def reward(prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Tensor:
        answers = [decode_answer(tokenizer, completion) for completion in completions]
        found = [True] * len(answers) if matches is None else matches(answers)
        rows = zip(answers, completions, found, strict=True)
        return torch.tensor([float(one.finish == "stop" and is_well_formed(said) and yes) for said, one, yes in rows])

    return reward


def compile_pattern(pattern: str) -> Callable[[Sequence[str]], list[bool]]:
    """Return a function that says in which texts a regular expression of RE2's syntax is found."""
    require(
        len(pattern) <= MAX_PATTERN_CHARS,
        f"the pattern of a format reward has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are allowed",
    )

    def matches(texts: Sequence[str]) -> list[bool]:
        try:
            found = pc.match_substring_regex(pa.array(texts, pa.string()), pattern)
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"the pattern {pattern!r} of a format reward is none that RE2 takes ({error}): no look-around, no "
                f"back-references, no repetition above 1000"
            ) from None
        return [bool(one) for one in found.to_pylist()]

    matches([""])
    return matches


def combine(rewards: Mapping[str, RewardFunction], weights: Mapping[str, float]) -> RewardFunction:
    """Return the weighted sum of rewards. Raises ConfigError unless each has a weight, and one is not 0."""
    require(
        rewards.keys() == weights.keys(),
        f"weights are for {', '.join(sorted(weights)) or 'nothing'}, rewards are {', '.join(sorted(rewards))}: "
        f"name the same in both",
    )
    require(any(weights.values()), "all weights of rewards are 0: nothing is rewarded")

    def reward(prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Tensor:
        # A reward that weighs nothing is not computed: a learned one is expensive.
        parts = [weight * rewards[name](prompts, completions) for name, weight in weights.items() if weight]
        return torch.stack(parts).sum(dim=0)

    return reward


def collect_references(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, ...], str]:
    """Return the better answer of the first pair of each prompt, by the prompt's ids.

    Prompts about a principle are left out: there are many good answers, and little is in sharing one's words.
    """
    asked = [("\0".join(message["content"] for message in row["prompt"]), row) for row in rows]
    principled = {said for said, row in asked if row["principle"] is not None}
    found: dict[tuple[int, ...], str] = {}
    for said, row in asked:
        if said not in principled:
            ids, _ = render(tokenizer, row["prompt"], add_generation_prompt=True)
            found.setdefault(tuple(ids), row["chosen"])
    return found


def decode_answer(tokenizer: Tokenizer, completion: Completion) -> str:
    """Return the text of an answer without its stop token."""
    return tokenizer.decode(completion.tokens[:-1] if completion.finish == "stop" else completion.tokens)
