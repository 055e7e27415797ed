"""A thread for each runner, on which it is asked one thing after the other.

A runner that is done with its part of a ticket goes on with its part of the next while others are still
at the one before: nobody waits for the slowest.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Lanes:
    """Work for `count` runners, in the order in which it is given. abandon: ends the waits of the thread
    with this identity."""

    def __init__(self, count: int, abandon: Callable[[int], None]) -> None:
        self.count, self._abandon = count, abandon
        self._threads: list[int] = []
        self._pools = [
            ThreadPoolExecutor(1, f"lane {i}", lambda: self._threads.append(threading.get_ident()))
            for i in range(count)
        ]
        self._free_since: dict[int, float] = {}

    async def each(self, work: Callable[[int], T]) -> tuple[list[T], float]:
        """Runs `work(i)` in each lane `i` after what was given to it before. Returns what each returned,
        and the seconds that a lane had nothing to do before it, on average."""

        def done(lane: int) -> tuple[T, float]:
            began = time.monotonic()
            try:
                return work(lane), began - self._free_since.get(lane, began)
            finally:
                self._free_since[lane] = time.monotonic()

        under_way = [
            asyncio.wrap_future(pool.submit(done, lane)) for lane, pool in enumerate(self._pools)
        ]
        results = await asyncio.gather(*under_way)
        return [value for value, _ in results], sum(idle for _, idle in results) / len(results)

    def close(self) -> None:
        """Ends the waits of every lane, and its thread. Nothing can be given to them any more."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            self._abandon(thread)
        for pool in self._pools:
            pool.shutdown()
