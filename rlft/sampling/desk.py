"""Work for the thread that owns an engine, taken in while the engine decodes.

An engine belongs to one thread. When collecting runs ahead of learning, new weights arrive while it is in
the middle of its requests: they are left at the desk, and the engine looks there between two tokens. The
requests then go on under the new weights, with the keys and values that the old ones computed.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Desk:
    """version: of the weights that the next token is sampled under; who loads weights sets it."""

    def __init__(self) -> None:
        self.version = -1
        self._inbox: queue.SimpleQueue[tuple[int, Callable[[], Any], Future[Any]]]
        self._inbox = queue.SimpleQueue()
        self._done: set[int] = set()

    def ask(self, job: int, work: Callable[[], Any]) -> Any:
        """Leaves `work` and waits for its result; from another thread. job: a number of its own."""
        answer: Future[Any] = Future()
        self._inbox.put((job, work, answer))
        return answer.result()

    def serve(self) -> None:
        """Does what lies here, on the engine's thread."""
        while not self._inbox.empty():
            self._do(*self._inbox.get())

    def serve_until(self, job: int) -> None:
        """Waits for `job` and does it, if it is not done already: for an engine without requests."""
        while job not in self._done:
            self._do(*self._inbox.get())
        self._done.discard(job)

    def _do(self, job: int, work: Callable[[], Any], answer: Future[Any]) -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # it belongs to who asked
            answer.set_exception(error)
        self._done.add(job)
