"""Credit per decision: pure, picklable functions over `[B, T]` arrays, for a learner that holds them.

Here masked positions may lie *between* decisions (what an environment said in between): they are
skipped. They neither discount nor end anything, as in verl. Not chosen by `algo.advantage`, which
takes one number a row.
"""

from __future__ import annotations

import torch

from rlft.credit.group import group_relative
from rlft.losses.aggregate import masked


def discounted_return(
    reward_BT: torch.Tensor, mask_BT: torch.Tensor, *, gamma: float = 1.0
) -> torch.Tensor:
    """Return `[B, T]` of each decision: the rewards from it on, by gamma for each later decision."""
    reward_BT = masked("reward", reward_BT, mask_BT)
    out_BT = torch.zeros_like(reward_BT)
    later_B = torch.zeros_like(reward_BT[:, 0]) if reward_BT.shape[1] else reward_BT.sum(1)
    for t in reversed(range(reward_BT.shape[1])):
        here_B = reward_BT[:, t] + gamma * later_B
        later_B = torch.where(mask_BT[:, t], here_B, later_B)
        out_BT[:, t] = torch.where(mask_BT[:, t], here_B, 0.0)
    return out_BT


def whiten(
    x_BT: torch.Tensor, mask_BT: torch.Tensor, *, eps: float = 1e-6, shift: bool = True
) -> torch.Tensor:
    """`x` with mean 0 (unless not `shift`) and deviation 1 (n - 1) over the mask; 0 where masked."""
    flat = x_BT[mask_BT]
    if not len(flat):
        return torch.zeros_like(x_BT)
    deviation = (((flat - flat.mean()) ** 2).sum() / max(len(flat) - 1, 1)).sqrt()
    out_BT = (x_BT - flat.mean()) / (deviation + eps)
    return masked("x", out_BT if shift else out_BT + flat.mean(), mask_BT)


def gae(
    reward_BT: torch.Tensor,
    value_BT: torch.Tensor,
    bootstrap_B: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage and the value's target, both `[B, T]`, 0 where masked.

    `A_t = sum_l (gamma lam)^l d_(t+l)`, `d_t = r_t + gamma V_(t+1) - V_t` over a row's decisions; the
    target is A + V. value_BT: the critic's, at each decision; bootstrap_B: its value after the last
    one: 0 for a row that terminated. lam = 1: the return minus the value; lam = 0: one step.

    Source: arXiv 1506.02438, equation 16. Raises ValueError: shapes that differ.
    """
    if bootstrap_B.shape != mask_BT.shape[:1]:
        raise ValueError(
            f"bootstrap must be [B] = {list(mask_BT.shape[:1])}, got {list(bootstrap_B.shape)}."
        )
    reward_BT = masked("reward", reward_BT, mask_BT)
    value_BT = masked("value", value_BT, mask_BT).detach()
    adv_BT = torch.zeros_like(value_BT)
    next_B, later_B = (
        bootstrap_B.to(value_BT.dtype),
        torch.zeros_like(bootstrap_B, dtype=value_BT.dtype),
    )
    for t in reversed(range(mask_BT.shape[1])):
        here_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_B - value_BT[:, t]
        step_B = delta_B + gamma * lam * later_B
        adv_BT[:, t] = torch.where(here_B, step_B, 0.0)
        later_B = torch.where(here_B, step_B, later_B)
        next_B = torch.where(here_B, value_BT[:, t], next_B)
    return adv_BT, masked("target", adv_BT + value_BT, mask_BT)


def process_supervision(
    reward_BS: torch.Tensor,
    end_BS: torch.Tensor,
    group_B: torch.Tensor,
    num: int,
    *,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Advantage float32 `[B, num]`: for each decision, the normalised rewards of its and later steps.

    reward_BS: a reward for each of up to S steps of reasoning; end_BS: int64, the decision at which
    the step ends, -1 where there is no such step. Rewards are normalised by mean and deviation (n - 1)
    over *all* steps of the group. With one step at the end of each row it is `group_relative`.

    Source: GRPO with process supervision (DeepSeekMath, arXiv 2402.03300, section 4.1.3).
    Raises ValueError: a step that ends at or beyond `num`, shapes that differ.
    """
    if reward_BS.shape != end_BS.shape or len(group_B) != len(end_BS):
        raise ValueError(
            f"expected rewards and ends [B, S] and groups [B], got {list(reward_BS.shape)}, "
            f"{list(end_BS.shape)} and {list(group_B.shape)}."
        )
    if len(end_BS) and int(end_BS.max()) >= num:
        raise ValueError(f"a step ends at decision {int(end_BS.max())}, but there are only {num}.")
    there_BS = end_BS >= 0
    group_BS = group_B[:, None].expand(end_BS.shape)
    z_BS = torch.zeros(end_BS.shape)
    z_BS[there_BS] = group_relative(reward_BS[there_BS], group_BS[there_BS], eps=eps)
    # Steps ending at or after decision t.
    counts_BST = end_BS[:, :, None] >= torch.arange(num)
    return (z_BS[:, :, None] * counts_BST).sum(1)
