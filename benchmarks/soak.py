"""Many clients at once, for minutes: is an answer lost or mixed up with another's, and does the memory grow?

The model is a small one of random weights whose answers consist of words that begin with the marker with which the
prompt ends (see `plumbing.stand_ins`), so that a piece of another client's answer shows. Each client has a marker of
its own and asks again and again, streamed, at temperature 1 with a seed. Of eight clients one reads slowly, and two
hang up in the middle of every other answer. Checked in every answer: no status but 200 or 429, all words carry the
marker, one id from the first event to the last and never seen before; and, if it was read to its end, as many words as
tokens asked for, an end by `length`, and `[DONE]`.

Both modes of the engine are run. In exact mode each answer must also be the text that the same request got alone,
before; in fast mode the share for which it is so is reported. The warm-up makes the engine meet every size of a step,
for each of which it keeps memory. Last line: JSON. Exits with 1 when an answer is wrong, or when the memory of the
server's processes grows by 5 % or more from then on.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import string
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plumbing.servers import Server, make_stand_in, serve
from benchmarks.plumbing.streams import Body, open_stream

MAX_GROWTH = 0.05
STEP_TOKENS = 256  # of OpenVINO's largest step, by its default
WARM_UP = 0.2  # of the time
SAMPLE_S = 0.25
ANSWER_TOKENS = (8, 80)
SLOW_TOKENS = 160
SLOW_PAUSE_S = 0.02  # after each event
SLOW_BUFFER_BYTES = 4096
BODIES_PER_CLIENT = 2
HUNG_S = 120  # an answer that takes longer will not come


@dataclass(frozen=True)
class Client:
    """One caller: its marker, its requests, its manners."""

    marker: str
    bodies: list[Body]
    slow: bool
    hangs_up: bool


@dataclass
class Answer:
    """What came back."""

    status: int
    retry_after_s: float = 0.0
    text: str = ""
    ids: set[str] = field(default_factory=set)
    finish: str | None = None
    done: bool = False  # `[DONE]` came
    left: bool = False  # the client hung up


@dataclass
class Record:
    """What all clients saw."""

    answers: int = 0
    tokens: int = 0
    hang_ups: int = 0
    refused: int = 0  # 429
    same_as_alone: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)


def make_clients(count: int) -> list[Client]:
    """Return clients, each with a marker, prompts and seeds of its own."""
    clients = []
    for number in range(count):
        marker, slow = string.ascii_uppercase[number // 26] + string.ascii_uppercase[number % 26], number % 8 == 1
        generator = random.Random(number)
        bodies = []
        for _ in range(BODIES_PER_CLIENT):
            letters = generator.choices(string.ascii_lowercase, k=generator.randint(1, 60))
            num_tokens = SLOW_TOKENS if slow else generator.randint(*ANSWER_TOKENS)
            prompt = "".join(f" {marker}{letter}" for letter in letters)
            bodies.append({"prompt": prompt, "max_tokens": num_tokens, "seed": generator.getrandbits(32)})
        clients.append(Client(marker, bodies, slow, hangs_up=number % 4 == 2))
    return clients


async def ask(server: Server, client: Client, body: Body, leave_after: int | None = None) -> Answer:
    """Return one answer; hang up after so many events, where a number is given."""
    num_events = 0
    buffer_bytes = SLOW_BUFFER_BYTES if client.slow else None
    async with open_stream(server, {**body, "ignore_eos": True}, buffer_bytes) as reply:
        answer = Answer(reply.status, float(reply.headers.get("retry-after", 1)))
        if reply.status != 200:
            return answer
        async for event in reply.events():
            if "error" in event:
                answer.finish = "error"
                continue
            answer.ids.add(event["id"])
            for choice in event["choices"]:
                answer.text += choice["text"]
                answer.finish = choice["finish_reason"] or answer.finish
            num_events += 1
            if num_events == leave_after:
                answer.left = True
                return answer
            if client.slow:
                await asyncio.sleep(SLOW_PAUSE_S)
        answer.done = reply.done
    return answer


def find_faults(answer: Answer, marker: str, num_tokens: int, alone: str | None) -> list[str]:
    """Return what is wrong with an answer of status 200; `alone` is the text that it must have, or begin."""
    faults = []
    words = answer.text.split()
    if not all(word.startswith(marker) and len(word) == len(marker) + 1 for word in words):
        faults.append("another's word")
    if len(answer.ids) != 1:
        faults.append("not one id")
    if not answer.left and (len(words) != num_tokens or answer.finish != "length"):
        faults.append(f"cut off by {answer.finish}")
    if not answer.left and not answer.done:
        faults.append("no [DONE]")
    if alone is not None and not (alone.startswith(answer.text) if answer.left else alone == answer.text):
        faults.append("another text than alone")
    return faults


async def run_client(server: Server, client: Client, alone: list[str], exact: bool, end: float, record: Record) -> None:
    """Ask until the end, and write down what came."""
    generator, turn = random.Random(client.marker), 0
    while time.monotonic() < end:
        body, expected = client.bodies[turn % len(alone)], alone[turn % len(alone)]
        turn += 1
        leave_after = generator.randint(1, 6) if client.hangs_up and turn % 2 else None
        try:
            answer = await asyncio.wait_for(ask(server, client, body, leave_after), HUNG_S)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            record.faults[repr(error)] += 1
            continue
        if answer.status == 429:
            record.refused += 1
            await asyncio.sleep(min(answer.retry_after_s, 5))
            continue
        if answer.status != 200:
            record.faults[f"status {answer.status}"] += 1
            continue
        record.answers += 1
        record.hang_ups += answer.left
        record.tokens += len(answer.text.split())
        record.same_as_alone += expected.startswith(answer.text) if answer.left else expected == answer.text
        record.faults.update(find_faults(answer, client.marker, body["max_tokens"], expected if exact else None))
        record.faults["an id twice"] += len(answer.ids & record.ids)
        record.ids |= answer.ids


async def watch_memory(pid: int, end: float) -> list[int]:
    """Return samples of the resident bytes of a process and its descendants."""
    samples = []
    while time.monotonic() < end:
        samples.append(sum(read_resident(one) for one in list_descendants(pid)))
        await asyncio.sleep(SAMPLE_S)
    return samples


def list_descendants(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def read_resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def load(server: Server, clients: list[Client], seconds: float, exact: bool) -> dict[str, Any]:
    """Run the clients one after another, then all at once, and return the figures of the latter."""
    generator = random.Random(0)
    for size in range(1, STEP_TOKENS):  # words at random: what begins like an earlier prompt would come from the cache
        words = [f" {clients[0].marker}{letter}" for letter in generator.choices(string.ascii_lowercase, k=size)]
        await ask(server, clients[0], {"prompt": "".join(words), "max_tokens": 1})
    alone = []
    for client in clients:
        patient = Client(client.marker, client.bodies, slow=False, hangs_up=False)
        alone.append([(await ask(server, patient, body)).text for body in client.bodies])
    record = Record()
    end = time.monotonic() + seconds
    tasks = [
        run_client(server, client, texts, exact, end, record) for client, texts in zip(clients, alone, strict=True)
    ]
    samples, *_ = await asyncio.gather(watch_memory(server.pid, end), *tasks)
    first, last = int(WARM_UP * len(samples)), int(0.9 * len(samples))
    warm = statistics.median(samples[first : first + max(1, len(samples) // 10)])
    growth = statistics.median(samples[last:]) / warm - 1
    return {
        "answers": record.answers,
        "tokens_per_s": round(record.tokens / seconds, 1),
        "hang_ups": record.hang_ups,
        "refused": record.refused,
        "same_as_alone": round(record.same_as_alone / max(1, record.answers), 5),
        "faults": dict(+record.faults),
        "memory_mb": round(warm / 1e6, 1),
        "memory_growth": round(growth, 4),
        "passed": record.answers > len(clients) and not +record.faults and growth < MAX_GROWTH,
    }


def soak(folder: Path, *, exact: bool, num_clients: int, seconds: float) -> dict[str, Any]:
    """Start the server over a release of markers in `folder / "release"`, and return the figures of one mode."""
    with serve(folder / "release", folder, {"GRISTMILL_EXACT": str(int(exact))}) as server:
        return asyncio.run(load(server, make_clients(num_clients), seconds, exact))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="of each mode (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at most 64 (default: %(default)s)")
    arguments = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as name:
        make_stand_in("markers", Path(name) / "release")
        for mode in ("fast", "exact"):
            result[mode] = soak(
                Path(name), exact=mode == "exact", num_clients=arguments.clients, seconds=arguments.seconds
            )
            print(f"{mode}: {json.dumps(result[mode])}", flush=True)
    print(json.dumps({"clients": arguments.clients, "seconds": arguments.seconds, **result}))
    sys.exit(0 if all(one["passed"] for one in result.values()) else 1)


if __name__ == "__main__":
    main()
