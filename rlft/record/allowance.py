"""What a run may spend: `budget` in its configuration, such as sampled tokens or environment steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlft.errors import ConfigError


class Allowance:
    """Sums of metrics over the steps of a run, and whether one has reached its limit.

    Counted from the rows of `metrics.jsonl` alone, so that a resumed run knows what was spent.
    """

    def __init__(self, limits: Mapping[str, float], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._limits, self._sums = limits, dict.fromkeys(limits, 0.0)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a step. Raises ConfigError for a metric that it does not have."""
        for name in self._limits:
            if name not in row:
                raise ConfigError(
                    f"budget.{name}: step {row['step']} has no such metric; it has "
                    f"{', '.join(sorted(k for k in row if k != 'step'))}"
                )
            self._sums[name] += float(row[name])

    @property
    def spent(self) -> str | None:
        """The metric whose limit is reached, if one is."""
        return next((n for n, limit in self._limits.items() if self._sums[n] >= limit), None)

    @property
    def share(self) -> float:
        """Of the limit that is nearest: how much is spent, 0 to 1; 0 without one."""
        return min(1.0, max((self._sums[n] / x for n, x in self._limits.items()), default=0.0))
