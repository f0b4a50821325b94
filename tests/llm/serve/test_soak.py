"""The soak test on a short run: its checks by hand, its client on broken pieces, and the real server under load."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plumbing.servers import make_stand_in
from benchmarks.plumbing.streams import Reply
from benchmarks.soak import Answer, find_faults, make_clients, soak

GOOD: dict[str, Any] = {"status": 200, "text": " ABx ABy", "ids": {"one"}, "finish": "length", "done": True}


@pytest.mark.parametrize(
    "change, faults",
    [
        ({}, []),
        ({"text": " ABx CBy"}, ["another's word", "another text than alone"]),
        ({"text": " ABx\ufffd ABy"}, ["another's word", "another text than alone"]),
        ({"text": " ABy ABx"}, ["another text than alone"]),
        ({"text": " ABx"}, ["cut off by length", "another text than alone"]),
        ({"text": " ABx ABy ABy"}, ["cut off by length", "another text than alone"]),
        ({"ids": {"one", "two"}}, ["not one id"]),
        ({"ids": set()}, ["not one id"]),
        ({"finish": "error"}, ["cut off by error"]),
        ({"finish": None, "done": False}, ["cut off by None", "no [DONE]"]),
        ({"text": " ABx", "finish": None, "done": False, "left": True}, []),
        ({"text": " ABy", "finish": None, "done": False, "left": True}, ["another text than alone"]),
    ],
)
def test_every_fault_is_named(change: dict[str, Any], faults: list[str]) -> None:
    assert find_faults(Answer(**GOOD | change), "AB", 2, " ABx ABy") == faults


def test_fast_mode_needs_the_marker_and_the_count_alone() -> None:
    assert find_faults(Answer(**GOOD | {"text": " ABz ABz"}), "AB", 2, None) == []
    assert find_faults(Answer(**GOOD | {"text": " ABz BAz"}), "AB", 2, None) == ["another's word"]


def test_clients_have_markers_of_their_own_and_bad_manners() -> None:
    clients = make_clients(64)
    assert len({client.marker for client in clients}) == 64
    assert sum(client.slow for client in clients) == 8
    assert sum(client.hangs_up for client in clients) == 16
    assert all(body["prompt"].split()[-1].startswith(client.marker) for client in clients for body in client.bodies)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("end", ["[DONE]", None])
def test_events_are_read_however_the_pieces_are_cut(size: int, end: str | None) -> None:
    wire = b'data: {"n": 1}\n\n: a comment\n\ndata: {"n": 2}\n\n' + (b"data: [DONE]\n\n" if end else b"")
    cut = [wire[i : i + size] for i in range(0, len(wire), size)]

    async def read() -> tuple[list[Any], bool]:
        reader = asyncio.StreamReader()
        for piece in cut:
            reader.feed_data(b"%x\r\n%b\r\n" % (len(piece), piece))
        reader.feed_data(b"0\r\n\r\n" if end else b"ff\r\nhalf")
        reader.feed_eof()
        reply = Reply(200, {}, reader)
        return [event async for event in reply.events()], reply.done

    assert asyncio.run(read()) == ([{"n": 1}, {"n": 2}], end is not None)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_nothing_is_lost_or_mixed_up_among_sixteen_clients(exact: bool, tmp_path: Path) -> None:
    make_stand_in("markers", tmp_path / "release")
    result = soak(tmp_path, exact=exact, num_clients=16, seconds=10)
    assert result["faults"] == {}
    assert result["answers"] > 32
    assert result["hang_ups"] > 0
    assert result["same_as_alone"] == 1 or (not exact and result["same_as_alone"] > 0.5)
    assert result["memory_growth"] < 0.1  # ten seconds are short: the buffers of the first connections count
