"""Preference losses: functions of the summed log-probs of whole responses, by policy and reference.

Pure functions of pairs (or, KTO, of single rows) that return unreduced values; a response's summed
log-prob is in nats. `P` pairs: `chosen_P[i]` and `rejected_P[i]` answer the same prompt. Left out:
normalisation by length, and terms that join them to the learner.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from rlft.losses.aggregate import masked
from rlft.losses.correction import require_range


def summed_logp(logp_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Log-prob `[B]` of each whole response."""
    return masked("logp", logp_BT, mask_BT).sum(1)


def dpo(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    ref_chosen_P: torch.Tensor,
    ref_rejected_P: torch.Tensor,
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """`-log sigmoid(beta h)` `[P]`, h the margin of log ratios; log 2 where policy equals reference.

    beta: above 0, how hard the reference holds; smoothing: in [0, 0.5), the share of labels taken to
    be flipped, `-(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)`.

    Sources: DPO (arXiv 2305.18290, equation 7); conservative DPO (E. Mitchell, 2023, "A note on DPO
    with noisy preferences") for `smoothing`.
    """
    _above_zero("beta", beta)
    require_range("smoothing", smoothing, 0, 0.5)
    h_P = beta * _margin(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P)
    return -(1 - smoothing) * logsigmoid(h_P) - smoothing * logsigmoid(-h_P)


def ipo(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    ref_chosen_P: torch.Tensor,
    ref_rejected_P: torch.Tensor,
    *,
    beta: float = 0.1,
) -> torch.Tensor:
    """`(h - 1 / (2 beta))^2` `[P]`, h the margin of log ratios, which so has a finite target.

    beta: above 0, the paper's tau. Source: IPO (arXiv 2310.12036, equation 17). Departure from TRL:
    log-probs are summed over the response as in the paper, not averaged.
    """
    _above_zero("beta", beta)
    h_P = _margin(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P)
    return (h_P - 1 / (2 * beta)) ** 2


def kto(
    logp_B: torch.Tensor,
    ref_logp_B: torch.Tensor,
    desirable_B: torch.Tensor,
    kl: torch.Tensor | float,
    *,
    beta: float = 0.1,
    weight_desirable: float = 1.0,
    weight_undesirable: float = 1.0,
) -> torch.Tensor:
    """`w (1 - sigmoid(+-beta (log ratio - kl)))` `[B]`, of rows that need not come in pairs.

    desirable_B: bool, the sign: + if the response is one to be made likelier; kl: the reference point,
    an estimate of KL(policy || reference) over unrelated responses, clamped to at least 0 and without
    gradient; weights: of the two kinds, to balance their numbers.

    Source: KTO (arXiv 2402.01306, equation 8 and section 4.1).
    """
    _above_zero("beta", beta)
    if desirable_B.dtype != torch.bool or not (
        logp_B.shape == ref_logp_B.shape == desirable_B.shape
    ):
        raise ValueError(
            f"expected log-probs [B] and a bool [B]; got {list(logp_B.shape)}, "
            f"{list(ref_logp_B.shape)} and {desirable_B.dtype} {list(desirable_B.shape)}."
        )
    point = torch.as_tensor(kl, dtype=logp_B.dtype).detach().clamp(min=0)
    gain_B = beta * (logp_B - ref_logp_B.detach() - point)
    return torch.where(
        desirable_B,
        weight_desirable * torch.sigmoid(-gain_B),
        weight_undesirable * torch.sigmoid(gain_B),
    )


def _margin(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    ref_chosen_P: torch.Tensor,
    ref_rejected_P: torch.Tensor,
) -> torch.Tensor:
    """Log ratio of the chosen response minus that of the rejected one: nats `[P]`."""
    shapes = [list(x.shape) for x in (chosen_P, rejected_P, ref_chosen_P, ref_rejected_P)]
    if chosen_P.ndim != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"expected four log-probs of one shape [P], got {shapes}.")
    return (chosen_P - ref_chosen_P.detach()) - (rejected_P - ref_rejected_P.detach())


def _above_zero(name: str, got: float) -> None:
    require_range(name, got, math.ulp(0.0), math.inf)
