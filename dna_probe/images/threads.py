"""Work on many images in threads, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dna_probe.errors import DataError

T = TypeVar("T")


def in_order(function: Callable[[int], T], count: int, workers: int = 0, ahead: int = 32) -> Iterator[T]:
    """`function(0)`, `function(1)`, ... `function(count - 1)`, computed in `workers` threads (0: in the calling one).

    At most `ahead` results and two per thread are computed before they are asked for, so memory does not grow with
    `count`. An error goes through to the caller, and the threads end with the iterator.
    """
    if workers < 0:
        raise DataError(f"workers must be 0 or more, not {workers}")
    if workers == 0:
        yield from map(function, range(count))
        return
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dna-probe-images")
    try:
        for position in range(count):
            pending.append(pool.submit(function, position))
            if len(pending) >= ahead + 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
