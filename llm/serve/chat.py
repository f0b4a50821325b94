"""Talk to the release in the terminal, in process: `python -m llm.serve.chat`.

Enter sends; Ctrl-C stops an answer; /new forgets the conversation; /quit or Ctrl-D leaves.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial

from llm.config import ConfigError
from llm.serve.answers import stream_answer
from llm.serve.engine import Engine
from llm.serve.errors import ApiError
from llm.serve.params import ServeParams
from llm.serve.prompts import Prompt, prepare_chat
from llm.serve.release import Release, find_release, load_backend
from llm.serve.requests import ChatRequest
from llm.serve.text import make_printable


def main() -> None:
    """Load the release and answer until the input ends."""
    options = _parse_options()
    try:
        release = Release.load(find_release())
        make_backend = partial(load_backend, release, ServeParams.read())
        engine = Engine(make_backend, release.tokenizer.vocab_size, release.context)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(f"{release.model} {release.fingerprint} on {engine.name}. /new starts over, /quit leaves.")
    try:
        _converse(engine, release, options)
    finally:
        engine.close()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.serve.chat", description="Talk to the packaged release.")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of probability kept (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="longest answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the same answers")
    options = parser.parse_args()
    if not (0 <= options.temperature <= 2 and 0 < options.top_p <= 1 and options.max_tokens >= 1):
        parser.error("allowed are 0 <= temperature <= 2, 0 < top-p <= 1 and max-tokens >= 1")
    return options


def _converse(engine: Engine, release: Release, options: argparse.Namespace) -> None:
    turns: list[dict[str, str]] = []
    for line in _read_lines():
        if line == "/quit":
            return
        if line == "/new":
            turns.clear()
            continue
        turns.append({"role": "user", "content": line})
        try:
            prompt = _fit(release, turns, options)
        except ApiError as error:
            print(f"[{error.message}]")
            turns.clear()
            continue
        turns.append({"role": "assistant", "content": _answer(engine, release, prompt)})


def _read_lines() -> Iterator[str]:
    while True:
        try:
            line = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line.encode("utf-8", "replace").decode()  # bytes of the terminal that were no UTF-8


def _fit(release: Release, turns: list[dict[str, str]], options: argparse.Namespace) -> Prompt:
    """Return the prompt; the oldest turns are forgotten until half an answer has room."""
    while True:
        body = ChatRequest.model_validate(
            {
                "model": release.model,
                "messages": turns,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "max_tokens": options.max_tokens,
                "seed": options.seed,
            }
        )
        wanted = min(options.max_tokens, release.context // 2) // 2
        try:
            prompt = prepare_chat(body, release)
            if prompt.sampling.max_tokens >= wanted or len(turns) == 1:
                return prompt
        except ApiError:
            if len(turns) == 1:
                raise
        del turns[:2]
        print("[the beginning of the conversation no longer fits and is forgotten]")


def _answer(engine: Engine, release: Release, prompt: Prompt) -> str:
    """Print an answer while it comes; return its text."""
    text, num_tokens, started = "", 0, time.perf_counter()
    try:
        for piece in stream_answer(engine, release, prompt):
            print(make_printable(piece.text), end="", flush=True)
            text, num_tokens = text + piece.text, piece.num_tokens
        rate = num_tokens / (time.perf_counter() - started)
        print(f"\n[{num_tokens} tokens, {rate:.0f} tokens/s]" if sys.stdout.isatty() else "")
    except KeyboardInterrupt:
        print("\n[stopped]")
    return text


if __name__ == "__main__":
    main()
