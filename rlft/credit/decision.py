"""Credit that learner ranks compute: picklable, pure functions from a micro-batch to its advantages.

What they read is `[B, T]` and lies where the tokens lie; the driver sends numbers per row or per step
of reasoning and the function itself (`ByToken`). Rewards are placed at decisions beforehand: the row's
number at its last one, a step's at the last token of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.credit.token import discounted_return, gae
from rlft.errors import ConfigError
from rlft.losses.aggregate import masked

RowSteps = tuple[tuple[int, float], ...]
"""Steps of one answer: (characters up to the step's end, its reward)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What credit reads, `[B, T]`; T is the number of decisions. reward: as placed; value: the critic's
    before the fit; old_logp, ref_logp: policy and reference, in nats. None: not asked for. Of
    environments also: over, `[B]`, the value of what came after each row, 0 if it terminated; number,
    `[B]`, what the algorithm says of each row, NaN: nothing; sample_logp: of whoever chose the action.
    """

    mask: torch.Tensor
    reward: torch.Tensor
    value: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None
    ref_logp: torch.Tensor | None = None
    over: torch.Tensor | None = None
    number: torch.Tensor | None = None
    sample_logp: torch.Tensor | None = None


Credit = Callable[[Seen], tuple[torch.Tensor, torch.Tensor]]
"""`(advantage, target of the value)`, both `[B, T]`, 0 where masked. `needs` names the optional fields
that it reads; `whiten` says whether advantages are standardised over all decisions of the batch."""


@dataclass(frozen=True, slots=True)
class GAE:
    """Generalised advantage estimation with a learned critic (arXiv 1506.02438).

    gamma, lam: in [0, 1]. kl_coef: each decision's reward is lowered by this times
    `old_logp - ref_logp` (InstructGPT, arXiv 2203.02155, equation 2); 0 needs no reference. whiten:
    mean 0 and deviation 1 (n - 1) over all decisions of the batch. Every answer of a language model counts
    as terminated, also one that was cut off: its reward was given for what there is.
    """

    gamma: float = 1.0
    lam: float = 1.0
    kl_coef: float = 0.0
    whiten: bool = True

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"value"} if not self.kl_coef else {"value", "old_logp", "ref_logp"})

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        assert seen.value is not None
        reward_BT = seen.reward
        if self.kl_coef:
            assert seen.old_logp is not None and seen.ref_logp is not None
            old_BT = masked("old_logp", seen.old_logp, seen.mask)
            reward_BT = reward_BT - self.kl_coef * (
                old_BT - masked("ref_logp", seen.ref_logp, seen.mask)
            )
        over_B = torch.zeros(len(seen.mask), device=seen.mask.device)
        if seen.over is not None:
            over_B = seen.over
        return gae(reward_BT, seen.value, over_B, seen.mask, gamma=self.gamma, lam=self.lam)


@dataclass(frozen=True, slots=True)
class Returns:
    """The (discounted) sum of the rewards from each decision on, as its advantage: no critic.

    Of normalised step rewards it is the advantage of process supervision (`process_supervision`).
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    gamma: float = 1.0
    whiten: bool = False

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        return_BT = discounted_return(seen.reward, seen.mask, gamma=self.gamma)
        return return_BT, return_BT


@dataclass(frozen=True, slots=True)
class ByToken:
    """How learner ranks get advantages of each token. credit: from the rows' numbers, which are then
    rewards; None: they are advantages. steps: an entry per member; a member's number counts beside
    its steps. critic_lr: the critic's learning rate this step; critic_only: the policy stays as it is.
    """

    credit: Credit | None = None
    steps: tuple[RowSteps, ...] = ()
    critic_lr: float = 0.0
    critic_only: bool = False


NOTHING = ByToken()
"""One advantage a row."""
