"""From what an algorithm asks of `fit` to what every learner rank is told. Pure: a run and a replay of
its step make the same job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlft.algo import Algo
from rlft.batch import plan
from rlft.config import Config
from rlft.credit.decision import NOTHING, ByToken, Returns
from rlft.credit.steps import StepAdvantages
from rlft.learning.fit import FitJob
from rlft.losses.aggregate import Aggregation
from rlft.retention.term import terms_of
from rlft.schedule import coef_at, value_at
from rlft.seeding import Key
from rlft.types import Trajectory


def fit_job(
    cfg: Config,
    algo: Algo,
    step: int,
    members: Sequence[Trajectory],
    adv: Sequence[float] | torch.Tensor | StepAdvantages | None,
    state: Any,
    *,
    aggregate: Aggregation,
    epochs: int,
    minibatches: int,
    by_token: ByToken = NOTHING,
    unit: Sequence[int] | None = None,
    learn: bool = True,
    packed: bool = False,
    taken: int = 0,
) -> FitJob:
    """The job of the fit after `step` steps on `members`, at least one; see `Run.fit`. state: the
    algorithm's own, which its coefficients may follow; unit: which members stay together; learn: False
    for `Run.measure`.

    packed: short rows lie behind each other in one sequence; taken: optimizer steps of the run before.

    Raises ValueError if `adv` or `by_token.steps` is not one entry per member.
    """
    if isinstance(adv, StepAdvantages):
        by_token, adv = replace(by_token, credit=Returns(), steps=adv.rows), None
    adv_B = np.zeros(len(members), np.float32) if adv is None else np.asarray(adv, np.float32)
    if adv_B.shape != (len(members),):
        raise ValueError(
            f"adv has shape {adv_B.shape}, expected one number per member: {len(members)}"
        )
    if by_token.steps and len(by_token.steps) != len(members):
        raise ValueError(f"steps of {len(by_token.steps)} rows, expected {len(members)}")
    if packed and (unit is not None or "value" in algo.needs or "score" in algo.needs):
        raise ValueError("packed rows are for policies alone: no units, critic or reward model")
    minibatches = min(minibatches, len(members) if unit is None else len(set(unit)))
    terms = terms_of(cfg, algo)
    on_policy = np.array([m.origin == "policy" for m in members])
    return FitJob(
        updates=plan(
            [m.length for m in members],
            world=cfg.learner.num,
            budget=cfg.learner.token_budget,
            minibatches=minibatches,
            epochs=epochs,
            key=Key(cfg.seed).child("fit", step),
            unit=unit,
            packed=packed,
        ),
        adv=adv_B,
        on_policy=on_policy,
        terms=terms,
        coef=tuple(coef_at(t.coef, step, state) for t in terms),
        aggregate=aggregate,
        max_tokens=_longest(cfg, members),
        lr=value_at(cfg.learner.lr, step),
        temperature=cfg.sampler.temperature if algo.samples else 1.0,
        first_epoch=minibatches,
        credit=by_token.credit,
        steps=by_token.steps,
        critic_lr=by_token.critic_lr,
        critic_only=by_token.critic_only,
        watch=tuple(int(i) for i in np.flatnonzero(on_policy)[: cfg.record.tokens]),
        unit=None if unit is None else np.asarray(unit, np.int64),
        learn=learn,
        packed=cfg.learner.token_budget if packed else 0,
        step=step,
        taken=taken,
    )


def _longest(cfg: Config, members: Sequence[Trajectory]) -> int:
    """Decisions that a row may have, by the configuration: what a `constant` aggregation divides by."""
    if not any(m.turns for m in members):
        return cfg.sampler.max_tokens
    longest = cfg.turns.max * cfg.sampler.max_tokens
    return longest if cfg.turns.max_tokens is None else min(longest, cfg.turns.max_tokens)
