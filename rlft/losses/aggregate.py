"""How a `[B, T]` loss becomes one number: `sum(weight * mask * loss) / denominator`.

Every normaliser in use has this form, with the weight per decision and one denominator for the
whole batch. So micro-batches and ranks add up: each sums its own part and divides by the same
number. Sources of the three kinds: DAPO (arXiv 2503.14476, section 3.3) for `token`; GRPO (arXiv
2402.03300, equation 3) for `sequence`; Dr. GRPO (arXiv 2503.20783) for `constant`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from rlft.errors import ConfigError, did_you_mean

Aggregation = Literal["token", "sequence", "constant"]
"""Mean over decisions; mean over rows of each row's mean; sum over `rows * max_len`."""


def decision_weight(mask_BT: torch.Tensor, kind: Aggregation) -> torch.Tensor:
    """Weight float32 `[B, T]` of each decision, 0 where masked.

    `token` and `constant`: 1. `sequence`: 1 / number of decisions of the row; a row without any
    has weight 0 throughout. Depends on its own row only, so it may be taken of any part of a batch.

    Raises ConfigError (a ValueError): unknown kind. ValueError: the mask is not bool `[B, T]`.
    """
    _check(mask_BT, kind)
    weight_BT = mask_BT.float()
    if kind == "sequence":
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1)
    return weight_BT


def denominator(mask_BT: torch.Tensor, kind: Aggregation, max_len: int | None = None) -> float:
    """What the weighted sum is divided by. Always at least 1.

    mask_BT: of the *global* batch (all ranks, all micro-batches): denominators of parts must not be
    added, an empty part counts 1. max_len: decisions, needed by `constant`, unused by the others.

    `token`: the number of decisions. `sequence`: the number of rows with at least one decision;
    rows without (filtered out, or padding) are not in the mean. `constant`: `rows * max_len`, where
    rows without decisions do count, as the paper's constant does not depend on the data: keep
    padding rows out of this mask. A batch without any decision gives at least 1, so that its loss
    is 0, not NaN.

    Raises ConfigError (a ValueError): unknown kind, or `constant` without a positive max_len.
    ValueError: the mask is not bool `[B, T]`.
    """
    _check(mask_BT, kind)
    if kind == "token":
        count = int(mask_BT.sum())
    elif kind == "sequence":
        count = int(mask_BT.any(1).sum())
    else:
        if max_len is None or max_len < 1:
            raise ConfigError(
                f"`constant` divides by rows * max_len: max_len must be a positive number of "
                f"decisions (the longest allowed completion), got {max_len!r}."
            )
        count = mask_BT.shape[0] * max_len
    return float(max(count, 1))


def masked(name: str, x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """`x` where the mask is True, else 0 with zero gradient, even where `x` is NaN or infinite.

    Every tensor passes here before any arithmetic: afterwards is too late, since the gradient of
    `where(mask, exp(x), 0)` at a NaN is `0 * NaN`. Raises ValueError naming `name` if the shapes
    differ: broadcasting an advantage `[B]` over `[B, T]` is silent and wrong when B equals T.
    """
    if x_BT.shape != mask_BT.shape:
        raise ValueError(
            f"{name} must have the shape of the mask, {list(mask_BT.shape)}; got "
            f"{list(x_BT.shape)}."
        )
    return torch.where(mask_BT, x_BT, torch.zeros_like(x_BT))


def per_decision(name: str, loss: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The loss as `[B, T]`, 0 where masked: as it is, or `[B]` given to each decision of its row.

    So one weight and one denominator serve both kinds of term, exactly over any split of the rows:
    with `sequence` a row loss is averaged over rows, with `token` over rows by their length.
    Raises ValueError naming `name`: any other shape.
    """
    if loss.shape == mask_BT.shape[:1]:
        loss = loss[:, None].expand(mask_BT.shape)
    if loss.shape != mask_BT.shape:
        raise ValueError(
            f"loss {name!r} returned shape {tuple(loss.shape)}, expected unreduced [B, T] = "
            f"{tuple(mask_BT.shape)} or [B] = {tuple(mask_BT.shape[:1])}"
        )
    return masked(name, loss, mask_BT)


def row_mean(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean `[B]` of `x`, already 0 where masked, over each row's decisions; 0 for a row without."""
    return x_BT.sum(1) / mask_BT.sum(1).clamp(min=1)


def _check(mask_BT: torch.Tensor, kind: str) -> None:
    kinds = get_args(Aggregation)
    if kind not in kinds:
        raise ConfigError(
            f"the aggregation must be one of {', '.join(kinds)}; got {kind!r}."
            f"{did_you_mean(str(kind), kinds)}"
        )
    if mask_BT.dtype != torch.bool or mask_BT.ndim != 2:
        raise ValueError(
            f"the mask must be bool [B, T], True where trained on; got {mask_BT.dtype} "
            f"{list(mask_BT.shape)}."
        )
