"""A penalty for leaving the reference policy, estimated from the actions that were taken.

Left out: the exact KL over the vocabulary, which needs the whole distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from rlft.errors import ConfigError, did_you_mean
from rlft.losses.aggregate import masked
from rlft.losses.correction import MAX_LOG_RATIO, ratio_of
from rlft.losses.surrogate import log_ratio
from rlft.types import Batch, PolicyOut

Estimator = Literal["k1", "k2", "k3", "k3_corrected"]


@dataclass(frozen=True, slots=True)
class KLToReference:
    """Estimate of KL(policy || reference) from one action: nats `[B, T]`, 0 where masked.

    With `d = ref_logp - logp`: `k1 = -d`, unbiased, of either sign; `k2 = d^2 / 2`, biased, at
    least 0; `k3 = exp(d) - 1 - d`, unbiased, at least 0 (GRPO, arXiv 2402.03300, equation 4;
    estimators from J. Schulman, "Approximating KL Divergence", 2020). Unbiased for actions of the
    policy itself: not in demo rows, and only roughly after the first update of a batch.

    Choose by the gradient, since a loss is differentiated, and the gradient of an unbiased estimate
    need not estimate the gradient. `k1` and `k3` do not give the gradient of this KL. In
    expectation under the policy, `k1` gives 0 (as a loss it only adds noise) and `k3` the gradient
    of the *other* direction, KL(reference || policy), whose minimum is the same; `k2` gives the
    gradient of KL(policy || reference). `k3_corrected` is k3 times the ratio `exp(logp - old_logp)`,
    with its gradient: it has the gradient of KL(policy || reference) too, and stays unbiased in
    later updates of a batch (DeepSeek-V3.2, arXiv 2512.02556, section 3.1; TRL's
    `use_bias_correction_kl`). On the first update its gradient is that of `k2`, decision by decision.

    Departure: `d` is clamped to plus or minus 20, beyond which there is no gradient.
    """

    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)

    estimator: Estimator = "k3"

    def __post_init__(self) -> None:
        choices = get_args(Estimator)
        if self.estimator not in choices:
            raise ConfigError(
                f"estimator must be one of {', '.join(choices)}; got {self.estimator!r}."
                f"{did_you_mean(str(self.estimator), choices)}"
            )

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        """`[B, T]`, nats. Raises ValueError: the batch has no `ref_logp`, or a shape differs."""
        if batch.ref_logp is None:
            raise ValueError(
                "KLToReference needs batch.ref_logp, got None: evaluate the reference policy first."
            )
        ref_BT = masked("ref_logp", batch.ref_logp, batch.mask).detach()
        d_BT = ref_BT - masked("logp", out.logp, batch.mask)
        d_BT = d_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if self.estimator == "k1":
            return -d_BT
        if self.estimator == "k2":
            return d_BT**2 / 2
        # expm1: in float32 `exp(d) - 1 - d` is noise of either sign for |d| below 1e-3.
        k3_BT = torch.expm1(d_BT) - d_BT
        return k3_BT if self.estimator == "k3" else k3_BT * ratio_of(log_ratio(out, batch))
