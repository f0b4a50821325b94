"""How often an answer is the same alone and among others: `python -m llm.serve.determinism`.

Each of nine prompts is answered by its own seed: alone, then with the eight others around it, then so again with
whatever the first two left in the engine's cache. The last line is JSON: the share of answers that were the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from llm.config import ConfigError
from llm.serve.engine import Backend, Sampling
from llm.serve.params import ServeParams
from llm.serve.release import Release, find_release, load_backend

PROMPTS = (
    "What does json.loads return?",
    "Write a list of four colours.",
    "Return the",
    "How do I open a file and read its lines one by one?",
    "Tell me about yourself.",
    "x = 1\nfor i in range(10):\n    print(i)",
    "Explain what a decorator does, with an example of its use in a class that counts calls.",
    "What is the difference between a list and a tuple, and when would you choose one or the other of them? " * 3,
    "What is the difference between a list and a tuple, and when would you choose one or the other of them? " * 3 + "!",
)


def answer(backend: Backend, prompts: Sequence[list[int]], max_tokens: int, first_seed: int) -> list[list[int]]:
    """Return the tokens that follow each prompt, all in one batch; they join it one step apart."""
    answers: list[list[int]] = [[] for _ in prompts]
    waiting, running = list(enumerate(prompts)), 0
    while waiting or running:
        if waiting:
            number, ids = waiting.pop(0)
            sampling = Sampling(max_tokens, frozenset(), temperature=1.0, seed=first_seed + number)
            backend.add(number, ids, sampling)
            running += 1
        for number, event in backend.step():
            answers[number] += event.tokens
            running -= event.finish is not None
    return answers


def measure(backend: Backend, prompts: Sequence[list[int]], max_tokens: int, rounds: int) -> dict[str, float]:
    """Return the share of answers that company, and a warm cache beside it, left the same."""
    same_cold = same_warm = 0
    for turn in range(rounds):
        seed = turn * len(prompts)
        together = answer(backend, prompts, max_tokens, seed)
        alone = [answer(backend, [ids], max_tokens, seed + i)[0] for i, ids in enumerate(prompts)]
        warm = answer(backend, prompts, max_tokens, seed)
        same_cold += sum(a == b for a, b in zip(alone, together, strict=True))
        same_warm += sum(a == b for a, b in zip(alone, warm, strict=True))
    num = rounds * len(prompts)
    return {"answers": num, "same_among_others": same_cold / num, "same_with_warm_cache": same_warm / num}


def main() -> None:
    """Measure the engine that would serve the release."""
    parser = argparse.ArgumentParser(prog="python -m llm.serve.determinism", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100, help="length of each answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="seeds per prompt (default: %(default)s)")
    options = parser.parse_args()
    try:
        release = Release.load(find_release())
        backend = load_backend(release, ServeParams.read())
    except ConfigError as error:
        sys.exit(f"error: {error}")
    prompts = [release.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
    shares = measure(backend, prompts, options.tokens, options.rounds)
    print(json.dumps({"engine": backend.name, "release": release.fingerprint, "tokens": options.tokens, **shares}))


if __name__ == "__main__":
    main()
