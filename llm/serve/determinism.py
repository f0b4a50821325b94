"""How often an answer is the same alone and among others: `python -m llm.serve.determinism`.

Each of nine prompts is answered by its own seed: alone, then with the eight others around it, then so again with
whatever the first two left in the engine's cache. In exact mode the others wait, as they do where it serves. The last
line is JSON: the share of answers that were the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from queue import SimpleQueue

from llm.config import require
from llm.serve.backend import Event, Finish, Sampling
from llm.serve.engine import Engine
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


def answer(engine: Engine, prompts: Sequence[list[int]], max_tokens: int, first_seed: int) -> list[list[int]]:
    """Return the tokens that follow each prompt; each is asked at the first token of the one before it."""
    answers: list[list[int]] = [[] for _ in prompts]
    ended: SimpleQueue[Finish] = SimpleQueue()

    def ask(number: int) -> None:
        sampling = Sampling(max_tokens, frozenset(), temperature=1.0, seed=first_seed + number)
        engine.submit(prompts[number], sampling, partial(read, number))

    def read(number: int, event: Event) -> None:
        # In the engine's thread, so that each joins at the same step every time.
        if event.tokens and not answers[number] and number + 1 < len(prompts):
            ask(number + 1)
        answers[number] += event.tokens
        if event.finish:
            ended.put(event.finish)

    ask(0)
    for _ in prompts:
        require(ended.get() != "error", f"the engine {engine.name} failed on a prompt; its log says why")
    return answers


def measure(engine: Engine, prompts: Sequence[list[int]], max_tokens: int, rounds: int) -> dict[str, float]:
    """Return the share of answers that company, and a warm cache beside it, left the same."""
    same_cold = same_warm = 0
    for turn in range(rounds):
        seed = turn * len(prompts)
        together = answer(engine, prompts, max_tokens, seed)
        alone = [answer(engine, [ids], max_tokens, seed + i)[0] for i, ids in enumerate(prompts)]
        warm = answer(engine, prompts, max_tokens, seed)
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
        prompts = [release.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]
        params = ServeParams.read()
        make_backend, vocab_size = partial(load_backend, release, params), release.tokenizer.vocab_size
        with closing(Engine(make_backend, vocab_size, release.context, max_running=params.max_running)) as engine:
            shares = measure(engine, prompts, options.tokens, options.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"engine": engine.name, "release": release.fingerprint, "tokens": options.tokens, **shares}))


if __name__ == "__main__":
    main()
