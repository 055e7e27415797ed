"""How often something may be started again: a crash loop must end in a clear error."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

from rlft.config import Recovery
from rlft.errors import RecoveryFailed


class Budget:
    """Counts restarts by name over a sliding window."""

    def __init__(self, cfg: Recovery, clock: Callable[[], float] = time.monotonic) -> None:
        self._cfg, self._clock = cfg, clock
        self._spent: dict[str, deque[float]] = defaultdict(deque)

    def spend(self, name: str, cause: Exception) -> str:
        """Allows one more restart of `name`, and says the how manieth it is.

        Raises `cause` itself if there are to be no restarts, RecoveryFailed if there were too many.
        """
        limit, window = self._cfg.max_restarts, self._cfg.window
        if limit == 0:
            raise cause
        spent, now = self._spent[name], self._clock()
        while spent and now - spent[0] > window:
            spent.popleft()
        if len(spent) == limit:
            raise RecoveryFailed(
                f"{name} was started again {limit} times within {window / 60:g} minutes and is lost "
                f"once more: stopping (recovery.max_restarts, recovery.window). The last cause: {cause}"
            ) from cause
        spent.append(now)
        return f"restart {len(spent)} of {limit}"
