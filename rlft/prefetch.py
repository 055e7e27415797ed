"""Collecting ahead of learning.

With `ahead: 0` a ticket is collected when it is learnt from. With more, a thread collects up to that many
tickets beyond the one that is being learnt from. Tickets are pure functions of their index, so the thread
needs nothing from the loop but how far it is, and a resumed run issues again what was in flight.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from rlft.types import Ticket

T = TypeVar("T")

Collect = Callable[[Ticket], Awaitable[T]]


@contextmanager
def prefetch(
    tickets: Sequence[Ticket] | Iterator[Ticket],
    collect: Collect[T],
    *,
    ahead: int = 0,
    abandon: Callable[[int], None] = lambda thread: None,
    waited: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Iterator[tuple[Ticket, T]]]:
    """Gives an iterator of each ticket with what was collected for it, in order.

    A ticket is collected once at most `ahead` of those before it are not yet finished: one is finished
    when the next is asked for. abandon: ends the waits of the thread with this identity, so that it can
    be joined when the loop ends early; waited: told, on that thread and before each ticket, how long
    collecting stood still because it was `ahead` enough.
    """
    if not ahead:
        yield _in_turn(iter(tickets), collect)
        return
    collector = _Collector(iter(tickets), collect, ahead, waited)
    collector.thread.start()
    try:
        yield collector.results()
    finally:
        collector.stop()
        abandon(collector.thread.ident or 0)
        collector.thread.join()


def _in_turn(tickets: Iterator[Ticket], collect: Collect[T]) -> Iterator[tuple[Ticket, T]]:
    # A plain loop: asyncio.run would take over Ctrl-C and hold it back until the wait is over.
    loop = asyncio.new_event_loop()
    try:
        for ticket in tickets:
            yield ticket, loop.run_until_complete(collect(ticket))
    finally:
        loop.close()


class _Collector(Generic[T]):
    """The thread that collects, and the bounded shelf between it and the loop."""

    def __init__(
        self,
        tickets: Iterator[Ticket],
        collect: Collect[T],
        ahead: int,
        waited: Callable[[float], None],
    ) -> None:
        self._tickets, self._collect, self._ahead = tickets, collect, ahead
        self._waited = waited
        self._shelf: list[tuple[Ticket, T]] = []
        self._begun = self._finished = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="collect", daemon=True)

    def results(self) -> Iterator[tuple[Ticket, T]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._shelf or self._ended)
                if not self._shelf:
                    if self._error is not None:
                        raise self._error
                    return
                result = self._shelf.pop(0)
            yield result
            with self._changed:
                self._finished += 1
                self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            while self._may_begin() and (ticket := next(self._tickets, None)) is not None:
                self._begun += 1
                result = loop.run_until_complete(self._collect(ticket))
                with self._changed:
                    self._shelf.append((ticket, result))
                    self._changed.notify_all()
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        finally:
            loop.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._begun - self._finished <= self._ahead
            )
            self._waited(time.monotonic() - began)
            return not self._stopped
