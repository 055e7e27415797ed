"""One `fit` on strips of episodes, as a rank runs it: credit first, then minibatches of steps or strips.

The same terms, sums and rules as for language models (`fit.py`). What differs: old log-probs, values and
distributions came with the strips, from the same weights and the same code, so none is computed again;
and a policy without memory learns from single steps in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from rlft.credit.decision import Credit, Seen
from rlft.learning.control_learner import ControlLearner
from rlft.learning.fit import FitReport
from rlft.learning.objective import Sums, objective
from rlft.learning.retained import Retained, coefs, told
from rlft.learning.visits import Visits
from rlft.losses.corrected import with_effective_share
from rlft.policy.actor_critic import Normaliser
from rlft.schedule import Decay
from rlft.seeding import Key
from rlft.types import Batch, PolicyOut, Strip, Term

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


@dataclass(slots=True)
class _Table:
    """All steps of a fit, `[N, ...]`, strips one after the other."""

    obs: dict[str, torch.Tensor]
    action: torch.Tensor
    params: torch.Tensor
    logp: torch.Tensor
    value: torch.Tensor
    reward: torch.Tensor
    on_policy: torch.Tensor
    row: torch.Tensor
    adv: torch.Tensor
    ret: torch.Tensor
    teacher: torch.Tensor | None = None


def fit_strips(
    learner: ControlLearner,
    job: StripJob,
    rank: int,
    strips: Sequence[Strip],
    visits: Visits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    retained: Retained | None = None,
) -> FitReport:
    """Runs the updates of `job`; every rank holds all of `strips`. visits: counted so far; retained: for
    the terms of retention. A collective."""
    retained = retained or Retained()
    learner.begin(job.step)
    lengths = np.array([len(s.reward) for s in strips])
    if learner.state_size or getattr(job.credit, "anew", False):
        job = replace(job, unit="strip")  # order matters
    table = _table(strips, lengths, job, learner.device)
    table.teacher = retained.teacher_params(strips)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    metrics: dict[str, float] = {}
    anew = job.credit is not None and getattr(job.credit, "anew", False)
    if job.credit is not None and not anew:
        _appraise(job, strips, lengths, table, visits or Visits())
        metrics |= _worth(table)
    sums, returns, nonfinite = Sums(), Sums(), set()
    skipped = done = updates = 0
    total = job.epochs * job.minibatches
    for epoch in range(job.epochs):
        moved = Sums()
        for chosen in _minibatches(job, epoch, lengths):
            applied, guilty = _update(
                *(learner, job, rank, table, strips, starts, chosen, sums, moved, returns),
                first=done == 0,
                taken=job.taken + updates - skipped,
                retained=retained,
            )
            updates += 1
            skipped += not applied
            nonfinite |= guilty
            done += 1
            progress(done, total)
        if (
            job.target_kl is not None
            and epoch + 1 < job.epochs
            and moved.reduced(learner.device)["approx_kl"] > job.target_kl
        ):
            break
    if job.learn:
        learner.take_in(table.obs)
        if learner.policy.returns is not None and job.credit is not None:
            _take_in_returns(
                learner.policy.returns, returns.reduced(learner.device), len(table.row)
            )
            metrics["value/scale"] = float(learner.policy.returns.var.sqrt())
    metrics |= with_effective_share(sums.reduced(learner.device))
    metrics |= {"lr": job.lr, "skipped_updates": float(skipped), "updates": float(updates)}
    if job.critic_lr is not None:
        metrics["critic/lr"] = job.critic_lr
    last = coefs(job, job.taken + max(0, updates - skipped - 1))
    metrics.update({f"coef/{name}": coef for name, coef in told(job.terms, last, job.coef)})
    return FitReport(metrics, skipped, tuple(sorted(nonfinite)))


def _table(
    strips: Sequence[Strip], lengths: np.ndarray, job: StripJob, device: torch.device
) -> _Table:
    def joined(arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device)

    row = np.repeat(np.arange(len(strips)), lengths)
    zeros = torch.zeros(int(lengths.sum()), device=device)
    return _Table(
        {name: joined([s.obs[name] for s in strips]) for name in strips[0].obs},
        **{
            name: joined([getattr(s, name) for s in strips])
            for name in ("action", "params", "logp", "value")
        },
        reward=_clipped(joined([s.reward for s in strips]), job.reward_clip),
        on_policy=torch.from_numpy(job.on_policy[row]).to(device),
        row=torch.from_numpy(row).to(device),
        adv=zeros,
        ret=zeros,
    )


def _clipped(reward: torch.Tensor, bound: float | None) -> torch.Tensor:
    return reward if bound is None else reward.clamp(-bound, bound)


def _take_in_returns(running: Normaliser, seen: Mapping[str, float], count: int) -> None:
    """Targets of a fit, by their mean and mean square over all ranks."""
    mean, square = (torch.tensor([seen[n]], dtype=torch.float64) for n in ("mean", "square"))
    device = running.mean.device
    running.merge(count, mean.to(device), (square - mean**2).clamp(min=0).to(device))


def _appraise(
    job: StripJob, strips: Sequence[Strip], lengths: np.ndarray, table: _Table, visits: Visits
) -> None:
    """Advantages and targets of all steps, from whole strips."""
    assert job.credit is not None
    device = table.reward.device
    mask = torch.from_numpy(np.arange(lengths.max(initial=1)) < lengths[:, None]).to(device)

    def padded(flat: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(mask.shape, device=device)
        out[mask] = flat
        return out

    seen = Seen(
        mask=mask,
        reward=padded(table.reward),
        value=padded(table.value),
        over=torch.tensor([s.bootstrap for s in strips], device=device),
        number=torch.from_numpy(job.number).to(device),
        sample_logp=padded(table.logp),
    )
    adv, ret = job.credit(seen)
    table.adv, table.ret = adv[mask], ret[mask]
    if job.ucb:
        table.adv = table.adv + job.ucb * visits.bonus(table.obs, table.action)
    if job.normalise == "batch":
        table.adv = _standard(table.adv)


def _standard(adv: torch.Tensor) -> torch.Tensor:
    return (adv - adv.mean()) / (adv.std() + 1e-8) if len(adv) > 1 else adv


def _worth(table: _Table) -> dict[str, float]:
    target, value = table.ret.double(), table.value.double()
    found = {"value/mean": float(value.mean()), "value/target": float(target.mean())}
    if len(target) > 1 and float(target.std()) > 1e-6 * max(1.0, abs(float(target.mean()))):
        found["value/explained_variance"] = 1 - float(((target - value).std() / target.std()) ** 2)
    return found


def _minibatches(job: StripJob, epoch: int, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the steps, or of the strips, of each minibatch of an epoch."""
    if job.minibatch is not None:
        yield from (np.flatnonzero(job.minibatch == m) for m in range(job.minibatches))
        return
    whole = np.flatnonzero(lengths) if job.unit == "strip" else np.arange(int(lengths.sum()))
    order = np.random.default_rng(job.key.child("epoch", epoch).seed()).permutation(whole)
    yield from np.array_split(order, min(job.minibatches, max(1, len(order))))


def _update(
    learner: ControlLearner,
    job: StripJob,
    rank: int,
    table: _Table,
    strips: Sequence[Strip],
    starts: np.ndarray,
    chosen: np.ndarray,
    sums: Sums,
    moved: Sums,
    returns: Sums,
    first: bool,
    taken: int,
    retained: Retained,
) -> tuple[bool, set[int]]:
    """One optimizer step; returns whether it was applied, and the strips whose loss is not finite."""
    lengths = np.diff(starts)
    count = len(chosen) if job.unit == "step" else int(lengths[chosen].sum())
    anew = getattr(job.credit, "anew", False)
    mine = _chunks(chosen, lengths, job, rank, learner.world)
    scale = None
    if job.normalise == "minibatch" and not anew and count > 1:
        index, mask = _places(chosen, starts, job.unit)
        adv = table.adv[torch.from_numpy(index[mask]).to(table.adv.device)]
        scale = (adv.mean(), adv.std() + 1e-8)
    guilty: set[int] = set()
    now = list(zip(job.terms, coefs(job, taken), strict=True))
    for chunk in mine:
        index, mask = _places(chunk, starts, job.unit)
        at = torch.from_numpy(index).to(learner.device)
        mask_BT = torch.from_numpy(mask).to(learner.device)
        obs = {name: x[at] for name, x in table.obs.items()}
        state = None
        if learner.state_size:
            state = _states(strips, chunk, job, learner)
        with torch.set_grad_enabled(job.learn):
            teacher = None if table.teacher is None else table.teacher[at]
            out = learner.forward(
                *(obs, state, table.action[at], table.params[at], teacher),
                critic_only=job.critic_only,
                streams=() if job.stream is None else job.stream[chunk].tolist(),
            )
        adv_BT, ret_BT = table.adv[at], table.ret[at]
        old_BT = table.logp[at]
        if anew:
            adv_BT, ret_BT = _anew(job, out, table, at, mask_BT, chunk, strips)
        if scale is not None:
            adv_BT = (adv_BT - scale[0]) / scale[1]
        elif anew and job.normalise == "minibatch" and int(mask_BT.sum()) > 1:
            seen = adv_BT[mask_BT]
            adv_BT = (adv_BT - seen.mean()) / (seen.std() + 1e-8)
        old_value_BT = table.value[at]
        if learner.policy.value_scale is not None and job.credit is not None:
            for name, x_BT in (("mean", ret_BT), ("square", ret_BT.double() ** 2)):
                returns.over(name, x_BT, mask_BT)
            # The critic's loss is of normalised returns, as the value head speaks of them.
            assert out.value is not None
            mean, deviation = learner.policy.value_scale
            out = replace(out, value=(out.value - mean) / deviation)
            ret_BT, old_value_BT = ((x - mean) / deviation for x in (ret_BT, old_value_BT))
        batch = Batch(
            mask=mask_BT,
            weight=mask_BT.float(),
            adv=adv_BT,
            sample_logp=old_BT,
            old_logp=old_BT,
            on_policy=table.on_policy[at[:, 0]],
            ret=ret_BT,
            old_value=old_value_BT,
        )
        rows = table.row[at[:, 0]].tolist()
        loss, bad = objective(now, "policy", rows, out, batch, float(max(count, 1)), sums)
        guilty |= bad
        if job.learn:
            learner.backward(loss)
        with torch.no_grad():
            sums.over("entropy", out.entropy, mask_BT)
            if job.credit is None and out.top is not None:
                sums.over("clone/accuracy", out.top.float(), mask_BT)
            gap = torch.where(mask_BT, out.logp - old_BT, 0.0)
            known = mask_BT & ~gap.isnan()
            moved.over("approx_kl", gap.exp() - 1 - gap, known)
            sums.over("approx_kl", gap.exp() - 1 - gap, known)
            if first:
                sums.over("mismatch/mean_logp_gap", gap.abs(), known)
                sums.largest("mismatch/max_logp_gap", gap.abs(), known)
    if not job.learn:
        return True, guilty
    retained.add(learner, now, taken, rank, sums)
    applied, norm = learner.step(job.lr, job.critic_lr)
    sums.add("grad_norm", norm if applied else 0.0, float(applied))
    return applied, guilty


def _chunks(
    chosen: np.ndarray, lengths: np.ndarray, job: StripJob, rank: int, world: int
) -> list[np.ndarray]:
    """This rank's share of a minibatch, in forwards of at most `token_budget` steps; as many on each
    rank."""
    if job.unit == "step":
        each = job.token_budget
    else:
        each = max(1, job.token_budget // int(lengths[chosen].max(initial=1)))
    shares = [chosen[r::world] for r in range(world)]
    if job.stream is not None:  # a stream's state stays with the rank that has it
        shares = [chosen[job.stream[chosen] % world == r] for r in range(world)]
    num = max(1, max(-(-len(share) // each) for share in shares))
    return np.array_split(shares[rank], num)


def _places(
    chunk: np.ndarray, starts: np.ndarray, unit: Literal["step", "strip"]
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of steps int64 `[B, T]`, mask bool `[B, T]`) of a chunk; of nothing, one masked step."""
    if len(chunk) == 0:
        return np.zeros((1, 1), np.int64), np.zeros((1, 1), bool)
    if unit == "step":
        return chunk[:, None], np.ones((len(chunk), 1), bool)
    first, length = starts[chunk], (starts[1:] - starts[:-1])[chunk]
    steps = np.arange(length.max())
    mask = steps < length[:, None]
    return np.where(mask, first[:, None] + steps, first[:, None]), mask


def _states(
    strips: Sequence[Strip], chunk: np.ndarray, job: StripJob, learner: ControlLearner
) -> torch.Tensor:
    """What a memory held before each strip `[B, H]`; nothing, at the start of a demonstration."""
    blank = torch.zeros(learner.state_size, device=learner.device)
    found = [blank] if len(chunk) == 0 else []
    for i in chunk:
        state = strips[i].state
        if state is not None and len(state):
            found.append(torch.from_numpy(state).to(learner.device))
        elif state is None and job.stream is not None:
            found.append(learner.carried.get(int(job.stream[i]), blank))
        else:
            found.append(blank)
    return torch.stack(found)


def _anew(
    job: StripJob,
    out: PolicyOut,
    table: _Table,
    at: torch.Tensor,
    mask_BT: torch.Tensor,
    chunk: np.ndarray,
    strips: Sequence[Strip],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Credit by policy and values as they are now."""
    assert job.credit is not None and out.value is not None
    over = [strips[i].bootstrap for i in chunk] or [0.0]
    return job.credit(
        Seen(
            mask=mask_BT,
            reward=table.reward[at],
            value=out.value.detach(),
            old_logp=out.logp.detach(),
            over=torch.tensor(over, device=mask_BT.device),
            sample_logp=table.logp[at],
        )
    )
