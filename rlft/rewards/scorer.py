"""Scoring through one reward process at a time, which is replaced when it hangs or dies.

Only the call that did it becomes an error. If several were under way (async functions), each is
asked again alone, so that the guilty one shows itself; the others get the outcome that they would
have had anyway.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rlft.config import Rewards
from rlft.rewards import frames
from rlft.rewards.process import RewardProcess
from rlft.types import Outcome

_GRACE_S = 2.0
"""Seconds beyond `rewards.timeout` before an event loop that gives no sign of life is blocked."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Outcomes in the order asked for; how many processes were replaced; the end of what was printed."""

    outcomes: list[Outcome]
    restarts: int
    printed: str


class _Lost(NamedTuple):
    """A process that has to be replaced. guilty: the calls one of which did it."""

    guilty: list[int]
    innocent: list[int]
    fault: Literal["timeout", "died"]
    reason: str
    seconds: float


class Scorer:
    """The configured rewards, in a process of their own.

    folders: where the run was started, for plug-in files named relative to it; start_s: seconds that
    importing the rewards may take.
    """

    def __init__(self, rewards: Rewards, folders: Sequence[str], start_s: float) -> None:
        self.done, self.asked = 0, 0
        self._rewards, self._folders, self._start_s = rewards, list(folders), start_s
        self._process: RewardProcess | None = None

    def start(self) -> RewardProcess:
        """The process, started if there is none. Raises PluginError if the rewards cannot be used."""
        if self._process is None:
            process = RewardProcess(self._rewards, self._folders)
            process.wait_ready(self._start_s)
            self._process = process
        return self._process

    def close(self) -> str:
        """Ends the process and all that it started; says how it had ended before, if it had."""
        process, self._process = self._process, None
        return process.close() if process is not None else "ended"

    def score(self, items: Sequence[bytes]) -> Scored:
        """The outcomes of pickled `(Attempt, Task)` pairs.

        Raises PluginError if a new process cannot import the rewards.
        """
        self.done, self.asked = 0, len(items)
        outcomes: dict[int, Outcome] = {}
        todo, suspects = deque(range(len(items))), deque[int]()
        restarts = 0
        printed = ""
        while todo or suspects:
            batch = deque([suspects.popleft()]) if suspects else todo
            lost = self._exchange(batch, items, outcomes)
            if lost is None:
                continue
            printed = self._process.printed if self._process else printed
            ending = self.close()
            restarts += 1
            todo.extendleft(reversed(lost.innocent))
            if batch is not todo:
                suspects.extendleft(batch)  # it was not asked yet
            if len(lost.guilty) == 1:
                reason = lost.reason or f"the reward process {ending}"
                reason += f"\nIt printed last:\n{printed[-500:]}" if printed.strip() else ""
                failed = Outcome("error", None, {}, reason, lost.seconds, lost.fault)
                self._take(outcomes, lost.guilty[0], failed)
            suspects.extend(lost.guilty if len(lost.guilty) > 1 else ())
        printed = (self._process.printed if self._process else "") or printed
        return Scored([outcomes[i] for i in range(len(items))], restarts, printed)

    def _exchange(
        self, waiting: deque[int], items: Sequence[bytes], outcomes: dict[int, Outcome]
    ) -> _Lost | None:
        """Asks for all of `waiting`; returns when it is empty and all are answered, or on a loss."""
        process = self.start()
        process.pump(0)
        if process.ended:  # between two scorings: no call did it
            return _Lost([], [], "died", "", 0.0)
        window = self._rewards.concurrency if process.is_async else 1
        flight: dict[int, float] = {}
        while waiting or flight:
            while waiting and len(flight) < window:
                index = waiting.popleft()
                process.send(index, items[index])
                flight[index] = process.heard = time.monotonic()
            for message in process.pump(min(1.0, self._rewards.timeout)):
                if "stuck" in message and message["stuck"] in flight:
                    stuck = int(message["stuck"])
                    return self._late([stuck], [i for i in flight if i != stuck], flight, "")
                if message.get("index") in flight:
                    try:
                        outcome = frames.understood(message.get("outcome"))
                    except frames.BrokenStream as error:
                        return _Lost([*flight], [], "died", f"the reward process sent {error}", 0.0)
                    flight.pop(message["index"])
                    self._take(outcomes, message["index"], outcome)
            now = time.monotonic()
            if process.ended:
                first = min(flight.values(), default=now)
                return _Lost([*flight], [], "died", "", now - first)
            limit = self._rewards.timeout + (_GRACE_S if process.is_async else 0.0)
            if flight and now - process.heard >= limit:
                return self._late([*flight], [], flight, process.stack())
        return None

    def _late(
        self, guilty: list[int], innocent: list[int], flight: dict[int, float], where: str
    ) -> _Lost:
        limit = self._rewards.timeout
        reason = f"timed out after {limit:g} s (rewards.timeout); its process was killed.{where}"
        seconds = time.monotonic() - min(flight[i] for i in guilty)
        return _Lost(guilty, sorted(innocent), "timeout", reason, seconds)

    def _take(self, outcomes: dict[int, Outcome], index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        self.done += 1
