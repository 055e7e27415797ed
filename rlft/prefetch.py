"""Collecting ahead of learning. Today the bound is 0: each ticket is collected when it is learnt from.

The seam for running ahead: tickets are pure functions of their index, so whoever collects needs
nothing from the loop but the next number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from rlft.types import Ticket

T = TypeVar("T")


def prefetch(
    tickets: Iterator[Ticket], collect: Callable[[Ticket], Awaitable[T]]
) -> Iterator[tuple[Ticket, T]]:
    """Yields each ticket with what was collected for it, in order."""
    # A plain loop: asyncio.run would take over Ctrl-C and hold it back until the wait is over.
    loop = asyncio.new_event_loop()
    try:
        for ticket in tickets:
            yield ticket, loop.run_until_complete(collect(ticket))
    finally:
        loop.close()
