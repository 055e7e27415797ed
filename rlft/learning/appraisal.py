"""Before the first step of a fit: old values, advantages and targets of every decision.

Advantages are standardised over the global batch: every row once, whatever the epochs, ranks and
micro-batches. A row's values are computed anew for each epoch, on the micro-batch that it is in then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from rlft.batch import Inputs
from rlft.credit.decision import Credit, Seen
from rlft.learning.critic import Critic

TokenSteps = tuple[tuple[int, float], ...]
"""Steps of one row: (index of the step's last decision, its reward)."""

_EPS = 1e-6


@dataclass(slots=True)
class Micro:
    """A micro-batch on this rank: which rows, their inputs, and what is fixed before the fit. adv,
    ret, old_value: `[B, T]`, of credit per decision."""

    rows: tuple[int, ...]
    inputs: Inputs
    old_logp: torch.Tensor | None = None
    ref_logp: torch.Tensor | None = None
    kl_point: torch.Tensor | None = None
    adv: torch.Tensor | None = None
    ret: torch.Tensor | None = None
    old_value: torch.Tensor | None = None


def appraise(
    credit: Credit,
    plan: Sequence[Sequence[Micro]],
    first_epoch: int,
    number: Sequence[float],
    steps: Mapping[int, TokenSteps],
    critic: Critic | None,
) -> dict[str, float]:
    """Sets `adv`, `ret` and `old_value` of every micro-batch; returns what the critic was worth.

    number: each row's reward, placed at its last decision; steps: rewards placed elsewhere. Metrics:
    `value/mean`, `value/target` (means over decisions), and `value/explained_variance`,
    `1 - Var(target - value) / Var(target)`, absent where targets do not vary. A collective.
    """
    for micros in plan:
        for micro in micros:
            if critic is not None:
                with torch.no_grad():
                    micro.old_value = critic.forward(micro.inputs)
            seen = Seen(
                mask=micro.inputs.mask,
                reward=_placed(micro, number, steps),
                value=micro.old_value,
                old_logp=micro.old_logp,
                ref_logp=micro.ref_logp,
            )
            micro.adv, micro.ret = credit(seen)
    fresh = [micro for micros in plan[:first_epoch] for micro in micros]
    device = plan[0][0].inputs.mask.device
    if getattr(credit, "whiten", False):
        mean, deviation, _ = _moments([_chosen(m, m.adv) for m in fresh], device)
        for micros in plan:
            for micro in micros:
                assert micro.adv is not None
                white_BT = (micro.adv - mean) / (deviation + _EPS)
                micro.adv = torch.where(micro.inputs.mask, white_BT, 0.0)
    return _worth(fresh, device) if critic is not None else {}


def _worth(fresh: Sequence[Micro], device: torch.device) -> dict[str, float]:
    values = [_chosen(m, m.old_value) for m in fresh]
    targets = [_chosen(m, m.ret) for m in fresh]
    target, spread, count = _moments(targets, device)
    errors = [t - v for t, v in zip(targets, values, strict=True)]
    found = {"value/mean": _moments(values, device)[0], "value/target": target}
    # Equal targets leave rounding for a deviation, and nothing to explain.
    if count and spread > 1e-6 * max(1.0, abs(target)):
        share = 1 - (_moments(errors, device)[1] / spread) ** 2
        found |= {"value/explained_variance": share}
    return found


def _placed(micro: Micro, number: Sequence[float], steps: Mapping[int, TokenSteps]) -> torch.Tensor:
    """Rewards float32 `[B, T]`."""
    mask_BT = micro.inputs.mask
    reward_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for place, row in enumerate(micro.rows):
        last = int(mask_BT[place].sum()) - 1
        reward_BT[place, last] += float(number[row])
        for at, value in steps.get(row, ()):
            reward_BT[place, min(at, last)] += value
    return reward_BT


def _chosen(micro: Micro, x_BT: torch.Tensor | None) -> torch.Tensor:
    assert x_BT is not None
    return x_BT[micro.inputs.mask].double()


def _moments(parts: Sequence[torch.Tensor], device: torch.device) -> tuple[float, float, float]:
    """(mean, deviation with n - 1, count) over all ranks. A collective, whatever the numbers are."""
    flat = torch.cat(list(parts)) if parts else torch.zeros(0, device=device).double()
    totals = torch.stack([flat.sum(), flat.new_tensor(float(len(flat)))])
    dist.all_reduce(totals)
    count = float(totals[1])
    mean = float(totals[0]) / max(count, 1.0)
    squares = ((flat - mean) ** 2).sum()
    dist.all_reduce(squares)
    return mean, (float(squares) / max(count - 1, 1.0)) ** 0.5, count
