"""One `fit` on strips of episodes, as a rank runs it: credit first, then minibatches of steps or strips.

The same terms, sums and rules as for language models (`fit.py`). What differs: old log-probs, values and
distributions came with the strips, from the same weights and the same code, so none is computed again;
and a policy without memory learns from single steps in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from rlft.batch import in_forwards
from rlft.credit.decision import Seen
from rlft.learning.control_learner import ControlLearner
from rlft.learning.fit import FitReport
from rlft.learning.objective import Sums, objective
from rlft.learning.retained import Retained, coefs, told
from rlft.learning.strip_job import StripJob
from rlft.learning.visits import Visits
from rlft.losses.corrected import with_effective_share
from rlft.policy.actor_critic import Normaliser
from rlft.types import Batch, PolicyOut, Strip


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
    bonus: torch.Tensor
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
    if learner.state_size or _anew_each_time(job):
        job = replace(job, unit="strip")  # order matters
    table = _table(strips, lengths, job, learner.device)
    table.teacher = retained.teacher_params(strips)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    metrics: dict[str, float] = {}
    if job.ucb:
        table.bonus = job.ucb * (visits or Visits()).bonus(table.obs, table.action)
    if job.credit is not None and not _anew_each_time(job):
        _appraise(job, strips, lengths, table)
        metrics |= _worth(table)
    fit = _Updates(learner, job, rank, table, strips, starts, retained)
    nonfinite: set[int] = set()
    skipped = updates = 0
    total = job.epochs * job.minibatches
    for epoch in range(job.epochs):
        fit.moved = Sums()
        for chosen in _minibatches(job, epoch, lengths):
            applied, guilty = fit.step(chosen, job.taken + updates - skipped, first=updates == 0)
            updates += 1
            skipped += not applied
            nonfinite |= guilty
            progress(updates, total)
        if (
            job.target_kl is not None
            and epoch + 1 < job.epochs
            and fit.moved.reduced(learner.device)["approx_kl"] > job.target_kl
        ):
            break
    if job.learn:
        returns = learner.policy.returns if job.credit is not None else None
        with learner.running_numbers() as policy:
            if not job.critic_only:  # what normalises observations belongs to the policy
                policy.take_in(table.obs)
            if returns is not None:
                _take_in_returns(returns, fit.returns.reduced(learner.device), len(table.row))
        if returns is not None:
            metrics["value/scale"] = float(returns.var.sqrt())
    metrics |= with_effective_share(fit.sums.reduced(learner.device))
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
        adv=zeros.clone(),
        ret=zeros.clone(),
        bonus=zeros,
    )


def _clipped(reward: torch.Tensor, bound: float | None) -> torch.Tensor:
    return reward if bound is None else reward.clamp(-bound, bound)


def _take_in_returns(running: Normaliser, seen: Mapping[str, float], count: int) -> None:
    """Targets of a fit, by their mean and mean square over all ranks."""
    mean, square = (torch.tensor([seen[n]], dtype=torch.float64) for n in ("mean", "square"))
    device = running.mean.device
    running.merge(count, mean.to(device), (square - mean**2).clamp(min=0).to(device))


def _appraise(job: StripJob, strips: Sequence[Strip], lengths: np.ndarray, table: _Table) -> None:
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
    table.adv, table.ret = adv[mask] + table.bonus, ret[mask]
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


@dataclass(slots=True)
class _Updates:
    """The optimizer steps of a fit. starts: int `[rows + 1]`, where each strip begins among all steps;
    sums: for metrics; moved: how far the policy went in this epoch; returns: of the critic's targets."""

    learner: ControlLearner
    job: StripJob
    rank: int
    table: _Table
    strips: Sequence[Strip]
    starts: np.ndarray
    retained: Retained
    sums: Sums = field(default_factory=Sums)
    moved: Sums = field(default_factory=Sums)
    returns: Sums = field(default_factory=Sums)

    def step(self, chosen: np.ndarray, taken: int, first: bool) -> tuple[bool, set[int]]:
        """One of them; returns whether it was applied, and the strips whose loss is not finite."""
        learner, job = self.learner, self.job
        lengths = np.diff(self.starts)
        count = len(chosen) if job.unit == "step" else int(lengths[chosen].sum())
        chunks = _chunks(chosen, lengths, job, self.rank, learner.world)
        # Credit of now comes with the pass that learns from it, where one pass is the whole minibatch.
        at_once = _anew_each_time(job) and len(chunks) == 1 and learner.world == 1
        if _anew_each_time(job) and not at_once:
            self._credit_anew(chosen, chunks)
        scale = None if at_once else self._scale(chosen, count)
        guilty: set[int] = set()
        now = list(zip(job.terms, coefs(job, taken), strict=True))
        for chunk in chunks:
            at, mask_BT, real = self._at(chunk)
            out = self._read(chunk, at, real)
            if at_once:
                self._take_credit(out, chunk, at, mask_BT)
                scale = self._scale(chosen, count)
            out, batch = self._judged(out, at, mask_BT, scale)
            rows = self.table.row[at[:, 0]].tolist()
            loss, bad = objective(now, "policy", rows, out, batch, float(max(count, 1)), self.sums)
            guilty |= bad
            if job.learn:
                learner.backward(loss)
            self._note(out, batch, first)
        if not job.learn:
            return True, guilty
        if not job.critic_only:
            self.retained.add(learner, now, taken, self.rank, self.sums)
        applied, norm = learner.step(job.lr, job.critic_lr, critic_only=job.critic_only)
        self.sums.add("grad_norm", norm if applied else 0.0, float(applied))
        return applied, guilty

    def _scale(self, chosen: np.ndarray, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and deviation of the minibatch's advantages, if they are to be made standard. (Credit
        of now has no other batch than its minibatch.)"""
        wanted = ("minibatch", "batch") if _anew_each_time(self.job) else ("minibatch",)
        if self.job.normalise not in wanted or count < 2:
            return None
        index, mask = _places(chosen, self.starts, self.job.unit)
        adv = self.table.adv[torch.from_numpy(index[mask]).to(self.table.adv.device)]
        return adv.mean(), adv.std() + 1e-8

    def _at(self, chunk: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`_places` on the learner's device, and which of them are real, where some are and not all."""
        index, mask = _places(chunk, self.starts, self.job.unit)
        device = self.learner.device
        real = None
        if mask.any() and not mask.all():
            real = torch.from_numpy(np.flatnonzero(mask)).to(device)
        return torch.from_numpy(index).to(device), torch.from_numpy(mask).to(device), real

    @torch.no_grad()
    def _credit_anew(self, chosen: np.ndarray, chunks: list[np.ndarray]) -> None:
        """Credit of a whole minibatch by the policy as it is, before any of it is learnt from: what
        advantages are standardised over does not depend on how the minibatch is cut. A collective."""
        table = self.table
        steps = torch.from_numpy(
            np.concatenate([self._steps(i) for i in chosen] or [np.zeros(0, int)])
        )
        steps = steps.to(self.learner.device)
        table.adv[steps], table.ret[steps] = 0.0, 0.0
        for chunk in chunks:
            at, mask_BT, real = self._at(chunk)
            self._take_credit(self._read(chunk, at, real), chunk, at, mask_BT)
        if self.learner.world > 1:  # each step is one rank's, and 0 on the others
            for kept in (table.adv, table.ret):
                whole = kept[steps]
                dist.all_reduce(whole)
                kept[steps] = whole

    def _steps(self, strip: int) -> np.ndarray:
        return np.arange(self.starts[strip], self.starts[strip + 1])

    def _take_credit(
        self, out: PolicyOut, chunk: np.ndarray, at: torch.Tensor, mask_BT: torch.Tensor
    ) -> None:
        adv, ret = _anew(self.job, out, self.table, at, mask_BT, chunk, self.strips)
        where = at[mask_BT]
        self.table.adv[where] = adv[mask_BT] + self.table.bonus[where]
        self.table.ret[where] = ret[mask_BT]

    def _read(self, chunk: np.ndarray, at: torch.Tensor, real: torch.Tensor | None) -> PolicyOut:
        """What policy and critic say of these steps now."""
        learner, job, table = self.learner, self.job, self.table
        obs = {name: x[at] for name, x in table.obs.items()}
        state = _states(self.strips, chunk, job, learner) if learner.state_size else None
        with torch.set_grad_enabled(job.learn and torch.is_grad_enabled()):
            teacher = None if table.teacher is None else table.teacher[at]
            return learner.forward(
                *(obs, state, table.action[at], table.params[at], teacher),
                real=real,
                critic_only=job.critic_only,
                streams=() if job.stream is None else job.stream[chunk].tolist(),
            )

    def _judged(
        self,
        out: PolicyOut,
        at: torch.Tensor,
        mask_BT: torch.Tensor,
        scale: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[PolicyOut, Batch]:
        """The batch that terms read, and `out` with its values in the critic's own scale."""
        job, table = self.job, self.table
        adv_BT, ret_BT, old_value_BT = table.adv[at], table.ret[at], table.value[at]
        if scale is not None:
            adv_BT = (adv_BT - scale[0]) / scale[1]
        if self.learner.policy.value_scale is not None and job.credit is not None:
            for name, x_BT in (("mean", ret_BT), ("square", ret_BT.double() ** 2)):
                self.returns.over(name, x_BT, mask_BT)
            # The critic's loss is of normalised returns, as the value head speaks of them.
            assert out.value is not None
            mean, deviation = self.learner.policy.value_scale
            out = replace(out, value=(out.value - mean) / deviation)
            ret_BT, old_value_BT = ((x - mean) / deviation for x in (ret_BT, old_value_BT))
        logp_BT = table.logp[at]
        return out, Batch(
            mask=mask_BT,
            weight=mask_BT.float(),
            adv=adv_BT,
            sample_logp=logp_BT,
            old_logp=logp_BT,
            on_policy=table.on_policy[at[:, 0]],
            ret=ret_BT,
            old_value=old_value_BT,
        )

    @torch.no_grad()
    def _note(self, out: PolicyOut, batch: Batch, first: bool) -> None:
        """Adds to the metrics. first: no step was taken yet, so policy and sampler must agree."""
        self.sums.over("entropy", out.entropy, batch.mask)
        if self.job.credit is None and out.top is not None:
            self.sums.over("clone/accuracy", out.top.float(), batch.mask)
        gap = torch.where(batch.mask, out.logp - batch.sample_logp, 0.0)
        known = batch.mask & ~gap.isnan()
        for sums in (self.moved, self.sums):
            sums.over("approx_kl", gap.exp() - 1 - gap, known)
        if first:
            self.sums.over("mismatch/mean_logp_gap", gap.abs(), known)
            self.sums.largest("mismatch/max_logp_gap", gap.abs(), known)


def _anew_each_time(job: StripJob) -> bool:
    """Whether credit depends on policy and values as they are at each step."""
    return getattr(job.credit, "anew", False)


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
    return in_forwards(shares, rank, each)


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
