"""What an algorithm is: a frozen dataclass with two verbs. Its fields are its YAML keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rlft.types import Group, Term, Ticket, WeightUpdate

if TYPE_CHECKING:
    from rlft.config import Config


class Algo:
    """Base of algorithms. `collect` gathers groups for a ticket, `learn` turns them into an update.

    samples: whether `collect` needs samplers; max_staleness: how many updates old its data may be;
    by_noise: its updates are noise added to the weights (`TextRun.add_noise`), and not a `fit`; acts: its
    policy acts in an environment that answers back, and does not write (`ControlRun`, `Acting`).
    """

    samples: ClassVar[bool] = True
    max_staleness: ClassVar[int] = 0
    by_noise: ClassVar[bool] = False
    acts: ClassVar[bool] = False

    @property
    def terms(self) -> tuple[Term, ...]:
        """The objective: what is summed, each with its coefficient."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Optional batch fields that learning reads: `ref_logp` asks for the reference policy, `value`
        for a critic."""
        return frozenset().union(*(term.needs for term in self.terms))

    @property
    def critic(self) -> str | None:
        """The Hugging Face folder that a critic starts from; None: the policy's."""
        return None

    def suits(self, cfg: Config) -> list[str]:
        """Raises ConfigError where the rest of the configuration does not suit; returns what a person
        should know before the run."""
        return []

    def init_state(self) -> Any:
        """State that changes while running, if there is any; saved with each checkpoint."""
        return None

    def next_state(self, state: Any, metrics: Mapping[str, float]) -> Any:
        """The state after a fit that measured `metrics`; here, the same."""
        return state

    async def collect(self, run: Any, ticket: Ticket) -> list[Group]:
        """run: `Collecting`, or `Acting` of an algorithm that acts."""
        raise NotImplementedError

    def learn(self, run: Any, groups: list[Group]) -> WeightUpdate | None:
        """Returns the update, or None when there was nothing to learn from. run: `TextRun`, or
        `ControlRun` of an algorithm that acts."""
        raise NotImplementedError
