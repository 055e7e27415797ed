"""Collecting ahead of learning.

With `ahead: 0` a ticket is collected when it is learnt from. With more, a thread collects up to that many
tickets beyond the one that is being learnt from, and begins the next while a verb of the one before is
awaited, so that whoever is done with one need not wait for the others. Tickets are pure functions of their
index, so the thread needs nothing from the loop but how far it is, and a resumed run issues again what was
in flight.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from rlft.types import Ticket

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Collect = Callable[[Ticket], Coroutine[Any, Any, T]]


class Collected(Protocol[T_co]):
    """Each ticket with what was collected for it, in order."""

    def __iter__(self) -> Iterator[tuple[Ticket, T_co]]: ...

    def finished(self) -> None:
        """Says that the ticket handed out last is finished, which asking for the next says too."""


@contextmanager
def prefetch(
    tickets: Sequence[Ticket] | Iterator[Ticket],
    collect: Collect[T],
    *,
    ahead: int = 0,
    abandon: Callable[[int], None] = lambda thread: None,
    waited: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Collected[T]]:
    """Gives an iterator of each ticket with what was collected for it, in order.

    A ticket is begun once at most `ahead` of those before it are not yet finished, and at most while those
    before it await something. abandon: ends the waits of the thread with this identity, so that it can
    be joined when the loop ends early; waited: told, on that thread and before each ticket, how long
    nothing was collected because it was `ahead` enough.
    """
    if not ahead:
        yield _InTurn(iter(tickets), collect)
        return
    collector = _Collector(iter(tickets), collect, ahead, waited)
    try:
        collector.thread.start()
        yield collector
    finally:
        collector.stop()
        if collector.thread.ident is not None:
            abandon(collector.thread.ident)
            collector.thread.join()


class _InTurn(Generic[T]):
    """Each ticket is collected when it is asked for."""

    def __init__(self, tickets: Iterator[Ticket], collect: Collect[T]) -> None:
        self._tickets, self._collect = tickets, collect

    def __iter__(self) -> Iterator[tuple[Ticket, T]]:
        # A plain loop: asyncio.run would take over Ctrl-C and hold it back until the wait is over.
        loop = asyncio.new_event_loop()
        try:
            for ticket in self._tickets:
                yield ticket, loop.run_until_complete(self._collect(ticket))
        finally:
            loop.close()

    def finished(self) -> None: ...


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
        self._shelf: list[tuple[Ticket, Future[T]]] = []
        self._given = self._finished = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._moved = asyncio.Event()
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self._idle_since = time.monotonic()
        self.thread = threading.Thread(target=self._work, name="collect", daemon=True)

    def __iter__(self) -> Iterator[tuple[Ticket, T]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._shelf or self._ended)
                if not self._shelf:
                    if self._error is not None:
                        raise self._error
                    return
                ticket, collected = self._shelf.pop(0)
            result = collected.result()
            self._given += 1
            yield ticket, result
            self.finished()

    def finished(self) -> None:
        self._finished = self._given
        self._wake()

    def stop(self) -> None:
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            if not self._ended:
                self._loop.call_soon_threadsafe(self._moved.set)

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._all())
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._loop.close()
                self._changed.notify_all()

    async def _all(self) -> None:
        begun = 0
        try:
            while await self._may_begin(begun):
                if (ticket := next(self._tickets, None)) is None:
                    break
                shelved: Future[T] = Future()
                with self._changed:
                    self._shelf.append((ticket, shelved))
                    self._changed.notify_all()
                begun += 1
                self._under_way.add(self._loop.create_task(self._one(ticket, shelved)))
                # It asks for what it needs before the next ticket does.
                await asyncio.sleep(0)
        finally:
            await asyncio.gather(*filter(None, self._under_way))

    async def _one(self, ticket: Ticket, shelved: Future[T]) -> None:
        try:
            shelved.set_result(await self._collect(ticket))
        except BaseException as error:  # raised where the result is asked for
            shelved.set_exception(error)
            self._stopped = True
        self._under_way.discard(asyncio.current_task())
        self._idle_since = time.monotonic()
        self._moved.set()

    async def _may_begin(self, begun: int) -> bool:
        since = time.monotonic()
        while not self._stopped and begun - self._finished > self._ahead:
            self._moved.clear()
            await self._moved.wait()
        idle = 0.0
        if not self._under_way:
            idle = time.monotonic() - max(since, self._idle_since)
        self._waited(idle)
        return not self._stopped
