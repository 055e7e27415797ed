"""REINFORCE++ (arXiv 2501.03262): one mean and one deviation for all tokens of the batch.

Without a discount and with the reward at the last token, every token of a row has the row's reward
as its return. So whitening over tokens is whitening rows weighted by their lengths, and needs no
per-token array. Departures: no discount, and no KL penalty inside the reward (it is a term of its
own, `kl_coef`; the baseline form has it so in the paper).
"""

from __future__ import annotations

import torch

from rlft.credit.group import centred, checked


def reinforce_pp(
    reward_B: torch.Tensor, length_B: torch.Tensor, *, eps: float = 1e-6
) -> torch.Tensor:
    """Advantage float32 `[B]`: the reward, whitened over all tokens of the batch.

    Over tokens, its mean is 0 and its variance (n - 1) 1. There is no baseline of the prompt: a task
    that is always solved is pushed up, one that never is, down. length_B: trained-on tokens, int64;
    a batch of equal rewards, or of one token, gets 0.
    """
    reward_B, _ = checked(reward_B, torch.zeros_like(length_B))
    return _whitened(reward_B, length_B, eps)


def reinforce_pp_baseline(
    reward_B: torch.Tensor, group_B: torch.Tensor, length_B: torch.Tensor, *, eps: float = 1e-6
) -> torch.Tensor:
    """Advantage float32 `[B]`: the reward minus its group's mean, then whitened over all tokens.

    One deviation for the whole batch, none a group, so an almost solved task is not magnified.
    Arguments as in `reinforce_pp` and `group_relative`.
    """
    centred_B, _ = centred(*checked(reward_B, group_B))
    return _whitened(centred_B, length_B, eps)


def _whitened(x_B: torch.Tensor, length_B: torch.Tensor, eps: float) -> torch.Tensor:
    """`x` minus its mean over tokens, by its deviation over tokens (n - 1): float32 `[B]`."""
    if length_B.shape != x_B.shape or bool((length_B < 0).any()):
        raise ValueError(
            f"expected lengths of at least 0 and shape {list(x_B.shape)}, got "
            f"{length_B.tolist()[:5]} of {list(length_B.shape)}."
        )
    length_B = length_B.to(x_B.dtype)
    tokens = length_B.sum()
    shifted_B = x_B - (x_B.min() if len(x_B) else 0)  # equal rewards are then exactly 0
    centred_B = shifted_B - (shifted_B * length_B).sum() / tokens.clamp(min=1)
    var = (centred_B**2 * length_B).sum() / (tokens - 1).clamp(min=1)
    white_B = centred_B / (var.sqrt() + eps)
    return torch.where(centred_B == 0, 0.0, white_B).float()
