"""One `fit`: several optimizer steps on one set of rows, as a rank runs it.

Every normaliser is `sum(weight * mask * loss) / denominator` with one denominator over the global
batch of an update, so the gradient does not depend on how rows were split over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rlft.batch import Inputs, Update, assemble
from rlft.credit.decision import Credit, RowSteps
from rlft.learning.appraisal import Micro, TokenSteps, appraise
from rlft.learning.critic import Critic
from rlft.learning.learner import Learner
from rlft.learning.objective import Sums, objective
from rlft.learning.retained import Retained, coefs, told
from rlft.losses.aggregate import Aggregation, decision_weight, denominator
from rlft.losses.corrected import with_effective_share
from rlft.losses.correction import mismatch
from rlft.policy.distil import Taught
from rlft.schedule import Decay
from rlft.types import Batch, PolicyOut, Row, Term


@dataclass(frozen=True, slots=True)
class FitJob:
    """What every rank is told: the same on all of them.

    adv: float32 `[rows]`; on_policy: bool `[rows]`; coef: each term's coefficient this step;
    lr: the learning rate of this step; first_epoch: how many updates it takes to see every row once;
    watch: rows whose log-probs are reported token by token; unit: int64 `[rows]`, which rows stay
    together, None: each on its own; learn: False to measure only, without a gradient or a step;
    credit, steps, critic_lr, critic_only: see `ByToken`; packed: the budget by which rows
    lie behind each other, 0 if they do not; step: of the run, and taken: optimizer steps of it, both
    before this fit.
    """

    updates: tuple[Update, ...]
    adv: np.ndarray
    on_policy: np.ndarray
    terms: tuple[Term, ...]
    coef: tuple[float | Decay, ...]
    aggregate: Aggregation
    max_tokens: int
    lr: float
    temperature: float
    first_epoch: int
    watch: tuple[int, ...] = ()
    unit: np.ndarray | None = None
    learn: bool = True
    credit: Credit | None = None
    steps: tuple[RowSteps, ...] = ()
    critic_lr: float = 0.0
    critic_only: bool = False
    packed: int = 0
    step: int = 0
    taken: int = 0

    def needs(self, field: str) -> bool:
        """Whether a term, or the credit, reads `field`."""
        given = [term.needs for term in self.terms]
        return any(field in names for names in [*given, getattr(self.credit, "needs", ())])


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """A row token by token. ids: int32 `[T]`; engine_logp, learner_logp: float32 `[T]`, the learner's
    before its first step on the row."""

    row: int
    ids: np.ndarray
    engine_logp: np.ndarray
    learner_logp: np.ndarray


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit says: averages over the global batch, how many updates of the policy and of a critic
    were skipped, which rows gave a non-finite loss, and the traces of the watched rows that this rank
    held."""

    metrics: Mapping[str, float]
    skipped: int
    nonfinite_rows: tuple[int, ...]
    traces: tuple[TokenTrace, ...] = ()
    critic_skipped: int = 0


def run_fit(
    learner: Learner,
    job: FitJob,
    rank: int,
    rows: Mapping[int, Row],
    *,
    pad_id: int,
    reference: Callable[[Inputs, float], torch.Tensor] | None = None,
    critic: Critic | None = None,
    steps: Mapping[int, TokenSteps] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    retained: Retained | None = None,
) -> FitReport:
    """Runs the updates of `job` for this rank, which holds `rows` (by index). A collective.

    critic: trained by the terms whose module it is; steps: rewards of steps by row; retained: for the
    terms of retention.
    """
    retained = retained or Retained()
    learner.begin(job.step)
    plan = [
        [_micro(m, rows, pad_id, learner.device, job.packed) for m in u.ranks[rank]]
        for u in job.updates
    ]
    _fix_logps(learner, job, plan, reference)
    metrics = {}
    if job.credit is not None:
        metrics = appraise(job.credit, plan, job.first_epoch, job.adv.tolist(), steps or {}, critic)
    sums = Sums()
    nonfinite: set[int] = set()
    traces: list[TokenTrace] = []
    skipped, critic_skipped, done, total = 0, 0, 0, sum(len(micros) for micros in plan)
    for index, micros in enumerate(plan):
        denom = _global_denominator(micros, job, learner)
        taken = job.taken + index - skipped
        now = list(zip(job.terms, coefs(job, taken), strict=True))
        point = _kl_point(learner, job, micros)
        for micro in micros:
            micro.kl_point = point
            fresh = index < job.first_epoch
            if not job.critic_only:
                first = sums if fresh else Sums()
                taught = retained.taught(micro.inputs)
                guilty, logp = _accumulate(*(learner, job, micro, denom, first, sums), now, taught)
                nonfinite |= guilty
                if fresh:
                    traces += _traces(micro, logp, rows, job.watch)
            if job.learn and critic is not None:
                nonfinite |= _accumulate_critic(critic, job, micro, denom, sums)
            done += 1
            progress(done, total)
        if job.learn and not job.critic_only:
            retained.add(learner, now, taken, rank, sums)
            applied, norm = learner.step(job.lr)
            skipped += not applied
            sums.add("grad_norm", norm if applied else 0.0, float(applied))
        if job.learn and critic is not None:
            applied, norm = critic.step(job.critic_lr)
            critic_skipped += not applied
            sums.add("critic/grad_norm", norm if applied else 0.0, float(applied))
    metrics |= with_effective_share(sums.reduced(learner.device))
    metrics["lr"] = job.lr
    if (share := learner.trained_share()) is not None:
        metrics["trained_share"] = share
    last = coefs(job, job.taken + max(0, len(plan) - skipped - 1))
    metrics.update({f"coef/{name}": coef for name, coef in told(job.terms, last, job.coef)})
    metrics["skipped_updates"] = float(skipped)
    if critic is not None:
        metrics["critic/lr"] = job.critic_lr
        metrics["critic/skipped_updates"] = float(critic_skipped)
    return FitReport(metrics, skipped, tuple(sorted(nonfinite)), tuple(traces), critic_skipped)


def _traces(
    micro: Micro, logp_BT: torch.Tensor, rows: Mapping[int, Row], watch: tuple[int, ...]
) -> Iterator[TokenTrace]:
    """Traces of the watched rows of a micro-batch, from a forward that the fit has done anyway."""
    for place, index in enumerate(micro.rows):
        if index in watch:
            row = rows[index]
            ids = row.ids[row.prompt_len :][row.decisions]
            logp = logp_BT[place, : len(ids)].float().cpu().numpy()
            yield TokenTrace(index, ids, row.sample_logp[row.decisions], logp)


def _micro(
    indices: tuple[int, ...], rows: Mapping[int, Row], pad_id: int, device: Any, packed: int
) -> Micro:
    return Micro(indices, assemble([rows[i] for i in indices], pad_id, packed).to(device))


def _fix_logps(
    learner: Learner,
    job: FitJob,
    plan: list[list[Micro]],
    reference: Callable[[Inputs, float], torch.Tensor] | None,
) -> None:
    """The policy's log-probs at the start of the fit, and the reference's, for each micro-batch.

    With one update the policy's are those of the update itself and cost nothing. They are computed on
    the micro-batches of each epoch, so that a ratio is exactly 1 until the first step: in bf16 another
    padding would give other roundings.
    """
    needs_old = len(job.updates) > 1 or job.needs("old_logp")
    needs_ref = job.needs("ref_logp")
    for micros in plan:
        for micro in micros:
            with torch.no_grad():
                if needs_old:
                    micro.old_logp = _forward(learner, micro.inputs, job.temperature).logp
                if needs_ref:
                    assert reference is not None
                    micro.ref_logp = reference(micro.inputs, job.temperature)


def _forward(
    learner: Learner, inputs: Inputs, temperature: float, taught: Taught | None = None
) -> PolicyOut:
    return learner.forward(
        inputs.ids, inputs.position, inputs.mask, temperature, inputs.packing, taught
    )


def _global_denominator(micros: list[Micro], job: FitJob, learner: Learner) -> float:
    local = sum(denominator(m.inputs.mask, job.aggregate, job.max_tokens) for m in micros if m.rows)
    total = torch.tensor([float(local)], dtype=torch.float64, device=learner.device)
    dist.all_reduce(total)
    return max(float(total), 1.0)


def _kl_point(learner: Learner, job: FitJob, micros: list[Micro]) -> torch.Tensor | None:
    """What `Batch.kl_point` is, if a term needs it: by the policy as it is before this update, over all
    ranks, so that it does not depend on how rows were split. A collective."""
    if not any("kl_point" in term.needs for term in job.terms):
        return None
    total = torch.zeros(2, dtype=torch.float64, device=learner.device)
    for micro in micros:
        with torch.no_grad():
            logp = _forward(learner, micro.inputs, job.temperature).logp
        assert micro.ref_logp is not None  # who needs the one needs the other
        zero = [bool(job.adv[row] == 0) for row in micro.rows] or [False]
        there_B = torch.tensor(zero, device=learner.device)
        counted = micro.inputs.mask & there_B[:, None]
        total[0] += (logp - micro.ref_logp)[counted].sum()
        total[1] += there_B.sum()
    dist.all_reduce(total)
    return (total[0] / total[1].clamp(min=1)).clamp(min=0).float()


def _accumulate(
    learner: Learner,
    job: FitJob,
    micro: Micro,
    denom: float,
    mismatch_sums: Sums,
    sums: Sums,
    now: Sequence[tuple[Term, float]],
    taught: Taught | None,
) -> tuple[set[int], torch.Tensor]:
    """Forward and backward of one micro-batch; returns the rows whose loss is not finite, and the
    log-probs `[B, T]` that the loss took for those of the start of the fit."""
    inputs = micro.inputs
    with torch.set_grad_enabled(job.learn):
        out = _forward(learner, inputs, job.temperature, taught)
    batch = _batch(job, micro, out.logp.detach())
    loss, guilty = objective(now, "policy", micro.rows, out, batch, denom, sums)
    if job.learn:
        learner.backward(loss)
    sums.over("entropy", out.entropy, inputs.mask)
    gaps = mismatch(batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    trusted = batch.mask & batch.on_policy[:, None]
    mismatch_sums.over("mismatch/kl", gaps["kl"], trusted)
    mismatch_sums.over("mismatch/mean_logp_gap", gaps["abs_gap"], trusted)
    mismatch_sums.largest("mismatch/max_logp_gap", gaps["abs_gap"], trusted)
    return guilty, batch.old_logp


def _accumulate_critic(
    critic: Critic, job: FitJob, micro: Micro, denom: float, sums: Sums
) -> set[int]:
    """The same of the critic, after the policy's graph is gone; returns the rows with a loss that is
    not finite."""
    blank = torch.zeros(micro.inputs.mask.shape, device=critic.device)
    out = PolicyOut(logp=blank, entropy=blank, value=critic.forward(micro.inputs))
    batch = _batch(job, micro, blank)
    now = zip(job.terms, coefs(job, job.taken), strict=True)
    loss, guilty = objective(now, "critic", micro.rows, out, batch, denom, sums)
    critic.backward(loss)
    return guilty


def _batch(job: FitJob, micro: Micro, logp_BT: torch.Tensor) -> Batch:
    """What a loss sees. logp_BT: what the policy says now, which is old where nothing older is known."""
    inputs = micro.inputs
    device, shape = inputs.mask.device, inputs.mask.shape
    adv = torch.zeros(shape[0], device=device)
    on_policy = torch.zeros(shape[0], dtype=torch.bool, device=device)
    unit = None if job.unit is None else torch.full((shape[0],), -1, device=device)
    for place, row in enumerate(micro.rows):
        adv[place] = float(job.adv[row])
        on_policy[place] = bool(job.on_policy[row])
        if unit is not None and job.unit is not None:
            unit[place] = int(job.unit[row])
    return Batch(
        mask=inputs.mask,
        weight=decision_weight(inputs.mask, job.aggregate),
        adv=adv[:, None].expand(shape) if micro.adv is None else micro.adv,
        sample_logp=inputs.sample_logp,
        old_logp=logp_BT if micro.old_logp is None else micro.old_logp,
        on_policy=on_policy,
        ref_logp=micro.ref_logp,
        ret=micro.ret,
        old_value=micro.old_value,
        unit=unit,
        kl_point=micro.kl_point,
    )
