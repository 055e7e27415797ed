"""Losses of pairs: two rows of one unit of the batch, of which the advantage says which is better.

A pair is never split over micro-batches (`run.fit(..., together=True)`), its value is given to both of
its rows, and with `aggregate: sequence` the mean over rows is the mean over pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import logsigmoid

from rlft.errors import ConfigError
from rlft.losses.aggregate import Aggregation, masked
from rlft.losses.preference import dpo, kto, summed_logp
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class PairLoss:
    """`fn` of four log-probs of whole responses, `[P]`: chosen, rejected, and the reference's of both.

    The loss is `[B]`, a pair's value on each of its rows. Diagnostics, means over pairs: accuracy (the
    implicit reward `beta * log(policy / reference)` prefers the chosen; a tie counts half), margin of
    those rewards, both rewards, and the log-probs in nats.
    """

    fn: Callable[..., torch.Tensor] = dpo
    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    aggregate: ClassVar[Aggregation] = "sequence"

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.ref_logp is not None  # `needs` says so
        chosen_P, rejected_P = pairs_of(batch)
        logp_B = summed_logp(out.logp, batch.mask)
        ref_B = summed_logp(batch.ref_logp, batch.mask).detach()
        four = (logp_B[chosen_P], logp_B[rejected_P], ref_B[chosen_P], ref_B[rejected_P])
        value_P = self.fn(*four, beta=self.beta)
        logp_B = logp_B.detach()
        found = _compared(self.beta * (logp_B - ref_B), chosen_P, rejected_P, batch.mask)
        found["pairs/logp_chosen"] = _once(logp_B[chosen_P], chosen_P, batch.mask)
        found["pairs/logp_rejected"] = _once(logp_B[rejected_P], rejected_P, batch.mask)
        return _on_both(value_P, chosen_P, rejected_P, len(batch.mask)), found


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """`-log sigmoid(score of chosen - score of rejected - margin * strength)` on both rows: `[B]`.

    strength: the size of the pair's advantage, 1 unless the data says how much better the chosen one
    is; margin: what a strength of 1 asks for. Sources: Bradley and Terry (1952); the margin is that of
    Llama 2 (arXiv 2307.09288, section 3.2.2).
    """

    margin: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("score",)
    aggregate: ClassVar[Aggregation] = "sequence"

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ConfigError(f"margin must be at least 0, got {self.margin}.")

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if out.score is None:
            raise ValueError("Bradley-Terry compares scores, but a policy that writes has none")
        chosen_P, rejected_P = pairs_of(batch)
        asked_P = self.margin * batch.adv[chosen_P, 0]
        value_P = -logsigmoid(out.score[chosen_P] - out.score[rejected_P] - asked_P)
        found = _compared(out.score.detach(), chosen_P, rejected_P, batch.mask)
        return _on_both(value_P, chosen_P, rejected_P, len(batch.mask)), found


@dataclass(frozen=True, slots=True)
class Desirability:
    """KTO on the rows of a pair, one by one: `w (1 - sigmoid(+-beta (log ratio - kl_point)))`, `[B]`.

    A unit has a third row of advantage 0, a response to another prompt: it is not learnt from, and the
    log ratios of these rows are the reference point (arXiv 2402.01306, section 4.1). desirable,
    undesirable: the weights. Diagnostics as of `PairLoss`, and the point.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("ref_logp", "kl_point")
    aggregate: ClassVar[Aggregation] = "sequence"

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert batch.ref_logp is not None  # `needs` says so
        assert batch.kl_point is not None
        chosen_P, rejected_P = pairs_of(batch)
        logp_B = summed_logp(out.logp, batch.mask)
        ref_B = summed_logp(batch.ref_logp, batch.mask).detach()
        weights = {"weight_desirable": self.desirable, "weight_undesirable": self.undesirable}
        sign_B = batch.adv[:, 0]
        value_B = kto(logp_B, ref_B, sign_B > 0, batch.kl_point, beta=self.beta, **weights)
        # A third of the rows has no loss, and counts in the mean over rows.
        value_B = torch.where(sign_B == 0, 0.0, 1.5 * value_B)
        found = _compared(self.beta * (logp_B.detach() - ref_B), chosen_P, rejected_P, batch.mask)
        point_P = batch.kl_point.expand(len(chosen_P))
        found["pairs/kl_point"] = _once(point_P, chosen_P, batch.mask)
        return value_B, found


@dataclass(frozen=True, slots=True)
class ChosenLikelihood:
    """`-logp` of each decision of a chosen row, nats `[B, T]`; 0 on the rejected."""

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        return -2 * masked("logp", out.logp, batch.mask & (batch.adv > 0))  # of half of the rows


def pairs_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices `(chosen [P], rejected [P])` into the rows: of each unit the row with an advantage above
    0 and the one below. Rows of padding are in neither.

    Raises ValueError: rows were not kept together, or a unit is not such a pair.
    """
    if batch.unit is None:
        raise ValueError("a loss of pairs needs whole pairs: call run.fit(..., together=True)")
    sign_B = batch.adv[:, 0].sign() * batch.mask.any(1)
    order = batch.unit.argsort(stable=True)
    chosen_P, rejected_P = order[sign_B[order] > 0], order[sign_B[order] < 0]
    units = batch.unit[batch.mask.any(1)].unique()
    for half in (chosen_P, rejected_P):
        if not torch.equal(batch.unit[half], units):
            raise ValueError(
                "expected units of two rows, one with an advantage above 0 (chosen) and one below "
                f"(rejected); got units {batch.unit.tolist()} with signs {sign_B.tolist()}."
            )
    return chosen_P, rejected_P


def _compared(
    reward_B: torch.Tensor, chosen_P: torch.Tensor, rejected_P: torch.Tensor, mask_BT: torch.Tensor
) -> dict[str, Any]:
    gap_P = reward_B[chosen_P] - reward_B[rejected_P]
    right_P = (gap_P > 0).float() + 0.5 * (gap_P == 0).float()
    return {
        "pairs/accuracy": _once(right_P, chosen_P, mask_BT),
        "pairs/margin": _once(gap_P, chosen_P, mask_BT),
        "pairs/reward_chosen": _once(reward_B[chosen_P], chosen_P, mask_BT),
        "pairs/reward_rejected": _once(reward_B[rejected_P], rejected_P, mask_BT),
    }


def _on_both(
    value_P: torch.Tensor, chosen_P: torch.Tensor, rejected_P: torch.Tensor, rows: int
) -> torch.Tensor:
    value_B = value_P.new_zeros(rows)
    return value_B.index_put((chosen_P,), value_P).index_put((rejected_P,), value_P)


def _once(value_P: torch.Tensor, row_P: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`[B, T]`, a row's value at its first decision and NaN elsewhere: its mean is one over rows."""
    value_BT = torch.full(mask_BT.shape, torch.nan, device=mask_BT.device)
    value_BT[row_P, 0] = value_P.float()
    return value_BT
