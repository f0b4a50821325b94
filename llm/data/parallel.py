"""Map a function over batches in processes: results in order, and only a few batches in memory at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(function: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """Yield function(item) for each item, in order; at most two items per process are read ahead.

    The function is pure and can be pickled, so that the number of processes changes nothing but the time.
    """
    if processes == 1:
        yield from map(function, items)
        return
    # fork: the children need not import the caller's modules, nor compile its kernels, again.
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
