"""A causal language model as the memory of a policy: it reads the last steps of an episode as tokens.

A step is three tokens: the action before, the return still wanted, the observation. So an episode reads
a_0 R_1 s_1 a_1 R_2 s_2 ..., the sequence of Decision Transformer (arXiv 2106.01345) begun with "no action",
and what the model says at an observation decides the next action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

TOKENS = 3


class Context(nn.Module):
    """size: of the model's vectors; hidden: of the perceptron that reads out what it says, 0: none; width:
    of what it says of a step; steps: how many it sees, its own the last; state_size: numbers
    that it carries: the inputs of the `steps - 1` before and how many of them there are."""

    reads_some = True
    """Whether `read` may be asked about some steps alone."""

    def __init__(self, lm: nn.Module, size: int, steps: int, hidden: int = 0) -> None:
        super().__init__()
        self.lm, self.size, self.steps = lm, size, steps
        self.out = nn.Sequential(nn.Linear(size, hidden), nn.GELU()) if hidden else nn.Identity()
        self.width = hidden or size
        self.state_size = (steps - 1) * TOKENS * size + 1

    def read(
        self, x_BTD: torch.Tensor, state_BH: torch.Tensor, real: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what it says of each step `[B, T, width]`, the state after the last). x_BTD: the three tokens
        of each step one after the other; real: int64 `[N]`, which of the B T steps are asked about, None:
        all; what is said of others is nothing to go by."""
        batch, new, past = x_BTD.shape[0], x_BTD.shape[1], self.steps - 1
        known = state_BH[:, -1].round().long()
        before = state_BH[:, :-1].reshape(batch, past, TOKENS * self.size)
        whole = torch.cat([before.to(x_BTD.dtype), x_BTD], 1)
        if new > 1 and new <= self.steps and not bool(known.any()):
            # Whole episodes that fit: each step sees all before it, in one pass.
            said = self._said(x_BTD, torch.zeros(batch, dtype=torch.long, device=x_BTD.device))
            at_observation = said[:, TOKENS - 1 :: TOKENS]
        else:
            # A pass for each step: with one pass for all, what a step may not see would reach it through
            # the steps between, layer by layer, and a policy that acts would say something else.
            windows = whole.unfold(1, self.steps, 1).movedim(-1, 2).flatten(0, 1)
            steps = torch.arange(new, device=x_BTD.device)
            held = (known[:, None] + steps).clamp(max=past).flatten()
            if real is not None:
                windows, held = windows[real], held[real]
            said = self._said(windows, past - held)[:, -1]
            if real is not None:
                said = said.new_zeros(batch * new, said.shape[1]).index_copy(0, real, said)
            at_observation = said.view(batch, new, -1)
        kept = whole[:, new:] if past else whole[:, :0]
        count = (known + new).clamp(max=past).to(state_BH.dtype)
        state = torch.cat([kept.reshape(batch, -1).to(state_BH.dtype), count[:, None]], 1)
        return self.out(at_observation), state

    def _said(self, x_NSD: torch.Tensor, blank_N: torch.Tensor) -> torch.Tensor:
        """What the model says at each token of N stretches of S steps, `[N, 3 S, size]`; the first `blank`
        steps of a stretch are not there."""
        tokens = x_NSD.reshape(len(x_NSD), -1, self.size)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        there = (place // TOKENS)[None] >= blank_N[:, None]
        # A token always reads itself: what is not there must not be an empty sum.
        itself = place[None] == place[:, None]
        seen = ((place[None] <= place[:, None]) & there[:, None]) | itself
        mask = torch.where(seen, 0.0, torch.finfo(tokens.dtype).min).to(tokens.dtype)[:, None]
        lm: Any = self.lm
        body = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        return body.model(
            inputs_embeds=tokens, attention_mask=mask, use_cache=False
        ).last_hidden_state
