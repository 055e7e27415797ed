"""How much of a demonstration is given, where only its beginning is: drawn from the ticket alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from rlft.config import Natural
from rlft.errors import ConfigError
from rlft.schedule import Scheduled, value_at
from rlft.types import Ticket


@dataclass(frozen=True)
class Prefix:
    """Which share of a demonstration is given, drawn anew for each task and step.

    Uniform on [low, high]; with chunks, that many equal parts of which Binomial(chunks, high) are
    given (UFT). until: from this step on nothing is given; null: for ever.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    low: Scheduled = 0.0
    high: Scheduled = 1.0
    chunks: Annotated[int, Field(ge=1)] | None = None
    until: Natural | None = None

    def share(self, ticket: Ticket, place: int) -> float:
        """The share of task `place`: a function of the ticket alone."""
        low, high = value_at(self.low, ticket.index), value_at(self.high, ticket.index)
        if not 0 <= min(low, high) <= max(low, high) <= 1:
            raise ConfigError(f"algo.prefix: low and high must lie in [0, 1], got {low}, {high}")
        if self.until is not None and ticket.index >= self.until:
            return 0.0
        rng = ticket.key.child("prefix", place).rng()
        if self.chunks is None:
            return rng.uniform(min(low, high), high)
        return sum(rng.random() < high for _ in range(self.chunks)) / self.chunks
