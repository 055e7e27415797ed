"""What a policy carries from step to step: a GRU's or an LSTM's state, as one vector `[H]` an episode.

Names of weights are those of the torch modules.
"""

from __future__ import annotations

import torch
from torch import nn


class GRU(nn.GRU):
    """width: numbers that it says of a step; state_size: numbers that it carries, the same."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)
        self.width = self.state_size = width

    def read(
        self, x_BTD: torch.Tensor, state_BH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what it says of each step `[B, T, width]`, the state after the last)."""
        read_BTW, last = self(x_BTD, state_BH[None].contiguous())
        return read_BTW, last[0]


class LSTM(nn.LSTM):
    """width: numbers that it says of a step; state_size: twice as many, output and cell."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)
        self.width, self.state_size = width, 2 * width

    def read(
        self, x_BTD: torch.Tensor, state_BH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `GRU.read`."""
        h, c = state_BH.chunk(2, -1)
        if x_BTD.shape[1] == 1 and not torch.is_grad_enabled():
            # A whole layer prepares its weights at each call, which costs more than one step.
            weights = [getattr(self, name) for name in self._all_weights[0]]
            h, c = torch.lstm_cell(x_BTD[:, 0], (h, c), *weights)
            return h[:, None], torch.cat([h, c], -1)
        read_BTW, (h, c) = self(x_BTD, (h[None].contiguous(), c[None].contiguous()))
        return read_BTW, torch.cat([h[0], c[0]], -1)


CELLS = {"gru": GRU, "lstm": LSTM}
