"""What a rank is told of one `fit` on strips of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlft.credit.decision import Credit
from rlft.schedule import Decay
from rlft.seeding import Key
from rlft.types import Term

Normalise = Literal["minibatch", "batch", "none"]


@dataclass(frozen=True, slots=True)
class StripJob:
    """What every rank is told: the same on all of them.

    number: float32 `[rows]`, what the algorithm says of each strip, NaN: nothing; on_policy: bool
    `[rows]`; coef: each term's coefficient this step; key: of the order of minibatches; normalise: over
    what advantages get mean 0 and deviation 1; target_kl: no further epoch once the policy has moved by
    so many nats a step; unit: what a minibatch is made of; token_budget: steps of one forward; step: of the
    run, and taken: optimizer steps of it, both before this fit.
    reward_clip: rewards beyond it count as it; critic_only: the policy stays as it is.
    stream, minibatch: int `[rows]`, of demonstrations that are read window after window: minibatch number
    m holds the next window of each stream, and a row without a state begins in the state that its stream
    arrived at.
    """

    number: np.ndarray
    on_policy: np.ndarray
    terms: tuple[Term, ...]
    coef: tuple[float | Decay, ...]
    credit: Credit | None
    epochs: int
    minibatches: int
    key: Key
    lr: float
    critic_lr: float | None
    token_budget: int
    normalise: Normalise = "none"
    unit: Literal["step", "strip"] = "step"
    target_kl: float | None = None
    ucb: float = 0.0
    learn: bool = True
    reward_clip: float | None = None
    critic_only: bool = False
    stream: np.ndarray | None = None
    minibatch: np.ndarray | None = None
    step: int = 0
    taken: int = 0
