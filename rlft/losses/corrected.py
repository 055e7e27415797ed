"""A loss with its weights between engine and learner, and what share of the sample they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlft.losses.aggregate import Aggregation, per_decision
from rlft.losses.correction import Correction, TokenTruncate
from rlft.types import Batch, LossFn, PolicyOut


@dataclass(frozen=True, slots=True)
class Corrected:
    """A loss times correction weights. weights: multiplied with each other; none leaves the loss be.

    Other terms, such as the KL penalty, are not touched. Adds the diagnostics `is_weight`, the
    product, and `is_weight_squared`, of which `with_effective_share` makes a number.
    """

    fn: LossFn
    weights: tuple[Correction, ...] = (TokenTruncate(),)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(getattr(self.fn, "needs", ()))

    @property
    def aggregate(self) -> Aggregation:
        """What the loss asks for."""
        return getattr(self.fn, "aggregate", "token")

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`[B, T]`, 0 where masked, whatever the kind of the loss, and its diagnostics."""
        value = self.fn(out, batch)
        loss, diagnostics = value if isinstance(value, tuple) else (value, {})
        loss_BT = per_decision(type(self.fn).__name__, loss, batch.mask)
        if not self.weights:
            return loss_BT, diagnostics
        weight_BT = batch.mask.to(batch.old_logp.dtype)
        for weight in self.weights:
            weight_BT = weight_BT * weight(
                batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy
            )
        weights = {"is_weight": weight_BT, "is_weight_squared": weight_BT**2}
        return loss_BT * weight_BT, {**diagnostics, **weights}


def with_effective_share(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with `is_weight/effective_share` in place of the mean squared weight.

    `(sum w)^2 / (n sum w^2)`, in (0, 1]: the effective sample size as a share of all decisions n; 1
    if all weights are equal, 0 if all are 0. Rows that the policy did not choose count with weight 1.
    """
    out = dict(metrics)
    if "is_weight_squared" not in out:
        return out
    squared = out.pop("is_weight_squared")
    share = out["is_weight"] ** 2 / squared if squared else 0.0
    return {**out, "is_weight/effective_share": min(1.0, share)}  # rounding may pass 1
