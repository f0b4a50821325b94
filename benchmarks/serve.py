"""Our server against llama.cpp's: the same GGUF file, both over HTTP, streamed, at 1, 8 and 32 streams at once.

The model has GPT-2 small's size (124 million parameters) in Qwen3's form, with random weights: only its speed matters.
The file is q8_0, which is what a release serves. Every stream is 128 greedy tokens with end-of-text ignored, from a
prompt of its own, of 16 to 64 tokens. llama.cpp runs with continuous batching, flash attention, a slot for each
stream, and, at each level, the best of 1, 2 and 4 threads, found first. The two take turns, and turns at being first,
so that a noisy machine slows both. Our tokens come as `serve.stream_interval` has them sent by default.
Last line: JSON with the ratios of aggregate tokens/s (ours over theirs, the median over rounds) and the 95th percentile
of our time to the first token at 8 streams [ms]. Exits with 1 when a ratio is below its bound.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.plumbing.servers import Server, make_stand_in, serve, serve_llamacpp
from benchmarks.plumbing.streams import Body, time_streams

BOUNDS = {1: 0.95, 8: 2.0, 32: 2.5}  # streams -> least ratio
THREADS = (1, 2, 4)
THREAD_TRIES = 3
ANSWER_TOKENS = 128
PROMPT_TOKENS = (16, 64)
CONTEXT = 256  # of one of llama.cpp's slots
ID_RANGE = (300, 4000)  # ordinary tokens of the stand-in


def make_bodies(round_number: int, streams: int, num_tokens: int) -> list[Body]:
    """Return requests, none of which shares a beginning with another, so that no prefix cache helps."""
    generator = random.Random(1000 * round_number + streams)
    prompts = [[generator.randint(*ID_RANGE) for _ in range(generator.randint(*PROMPT_TOKENS))] for _ in range(streams)]
    return [
        {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "seed": 0}
        for prompt in prompts
    ]


def measure(server: Server, bodies: list[Body]) -> tuple[float, list[float], list[str]]:
    """Return tokens/s over all streams, seconds to each one's first text, and the texts."""
    seconds, timings = asyncio.run(time_streams(server, bodies))
    wrong = {timing.num_tokens for timing in timings} - {bodies[0]["max_tokens"]}
    assert not wrong, f"port {server.port} generated {wrong} tokens instead of {bodies[0]['max_tokens']}"
    rate = sum(timing.num_tokens for timing in timings) / seconds
    return rate, [timing.first_s for timing in timings], [timing.text for timing in timings]


def find_threads(gguf: Path, levels: list[int]) -> dict[int, int]:
    """Return, for each level, the number of threads with which llama.cpp is fastest."""
    rates: dict[int, dict[int, float]] = {level: {} for level in levels}
    for threads in THREADS:
        with serve_llamacpp(gguf, threads=threads, slots=max(levels), context=CONTEXT) as theirs:
            measure(theirs, make_bodies(0, 1, 8))
            for level in levels:
                tries = [measure(theirs, make_bodies(-n, level, ANSWER_TOKENS // 2))[0] for n in range(THREAD_TRIES)]
                rates[level][threads] = statistics.median(tries)
        print(f"llama.cpp, {threads} threads: {json.dumps({n: round(rates[n][threads], 1) for n in levels})} tokens/s")
    return {level: max(found, key=found.__getitem__) for level, found in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--levels", type=int, nargs="+", choices=list(BOUNDS), default=list(BOUNDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = make_stand_in("gpt2", Path(name) / "release")
        gguf = folder / "gguf" / "model-q8_0.gguf"
        threads = find_threads(gguf, arguments.levels)
        ours = stack.enter_context(serve(folder, Path(name), {}))
        theirs = {
            count: stack.enter_context(
                serve_llamacpp(gguf, threads=count, slots=max(arguments.levels), context=CONTEXT)
            )
            for count in set(threads.values())
        }
        result = compare(ours, {level: theirs[threads[level]] for level in arguments.levels}, arguments.rounds)
    result |= {f"llamacpp_threads_{level}": count for level, count in threads.items()}
    missed = [f"ratio_{level}" for level in arguments.levels if result[f"ratio_{level}"] < BOUNDS[level]]
    print(json.dumps(result | {"missed": missed}))
    sys.exit(1 if missed else 0)


def compare(ours: Server, theirs: dict[int, Server], rounds: int) -> dict[str, float]:
    """Return the figures of interleaved rounds, the first of which warms up and is left out."""
    rates: dict[int, list[tuple[float, float]]] = {level: [] for level in theirs}
    firsts: dict[int, list[float]] = {level: [] for level in theirs}
    same_starts = 0
    for number in range(1, rounds + 2):
        for level, peer in theirs.items():
            bodies = make_bodies(number, level, ANSWER_TOKENS if number > 1 else 8)
            order = [ours, peer] if number % 2 else [peer, ours]
            measured = {server.port: measure(server, bodies) for server in order}
            our_rate, first_s, our_texts = measured[ours.port]
            their_rate, their_first_s, their_texts = measured[peer.port]
            if number == 1:
                same_starts += sum(a[:4] == b[:4] for a, b in zip(our_texts, their_texts, strict=True))
                continue
            rates[level].append((our_rate, their_rate))
            firsts[level] += first_s
            print(
                f"round {number - 1}, {level} streams: {our_rate:.1f} and {their_rate:.1f} tokens/s, first token "
                f"after {1000 * max(first_s):.0f} and {1000 * max(their_first_s):.0f} ms",
                flush=True,
            )
    result: dict[str, float] = {"same_starts": same_starts / sum(theirs)}
    for level, pairs in rates.items():
        our_median, their_median = (statistics.median(side) for side in zip(*pairs, strict=True))
        result[f"ratio_{level}"] = round(statistics.median(our / their for our, their in pairs), 3)
        result[f"gristmill_tok_s_{level}"] = round(our_median, 1)
        result[f"llamacpp_tok_s_{level}"] = round(their_median, 1)
        result[f"p95_ttft_ms_{level}"] = round(1000 * sorted(firsts[level])[int(0.95 * len(firsts[level]))], 1)
    return result


if __name__ == "__main__":
    main()
