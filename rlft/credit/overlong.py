"""A soft penalty for answers that come close to the longest allowed."""

from __future__ import annotations

import torch

from rlft.errors import ConfigError


def soft_overlong(
    length_B: torch.Tensor, max_len: int, buffer: int, factor: float = 1.0
) -> torch.Tensor:
    """Added to a reward, float64 `[B]`: 0 up to `max_len - buffer` tokens, then falling to -factor.

    Between, `factor (max_len - buffer - length) / buffer`; beyond max_len, -factor. Whatever filters
    groups looks at rewards without it. Source: DAPO (arXiv 2503.14476, equation 13).
    Raises ConfigError: a buffer that is not in [1, max_len].
    """
    if not 1 <= buffer <= max_len:
        raise ConfigError(
            f"the buffer must lie in [1, {max_len}], the longest answer; got {buffer}."
        )
    return factor * ((max_len - buffer - length_B.double()) / buffer).clamp(-1, 0)
