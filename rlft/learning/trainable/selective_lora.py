"""Selective LoRA (arXiv 2501.15377): adapters with learned gates, of which few stay on.

W + g(s) BA with g = 1[s > threshold], its gradient passed straight through to s. A penalty on the number
of open gates, added to the gradient of each s once per optimizer step, closes those that earn nothing.
Gate details of the paper are not verified: here each adapted layer has a gate, s starts at 1, and the
penalty is `sparsity` for each gate. With all gates shut the output is the base's, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from rlft.errors import ConfigError
from rlft.learning.trained_part import Trainable
from rlft.policy.adapters import Wrapped, wrap


class GatedLora(Wrapped):
    """A linear layer with a gated adapter; A `[r, in]`, B `[out, r]` from zero, s `[1]` from 1."""

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, threshold: float) -> None:
        super().__init__(base_layer)
        out, inner = base_layer.weight.shape
        like = base_layer.weight
        self.down = nn.Parameter(torch.empty(rank, inner, dtype=like.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.up = nn.Parameter(torch.zeros(out, rank, dtype=like.dtype))
        self.gate = nn.Parameter(torch.ones(1, dtype=like.dtype))
        self.scale, self.threshold = alpha / rank, threshold

    def open(self) -> torch.Tensor:
        """1 or 0, with the gradient of s."""
        hard = (self.gate > self.threshold).to(self.gate.dtype)
        return hard + self.gate - self.gate.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.open() * self.scale * (x @ self.down.T @ self.up.T)

    def change(self) -> torch.Tensor:
        return self.open().float() * self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class SelectiveLora(Trainable):
    """sparsity: what an open gate costs, in units of the loss; threshold: above which a gate is open."""

    rank: int = 16
    alpha: float = 32.0
    threshold: float = 0.5
    sparsity: float = 1e-3
    pushed: ClassVar[str | None] = ".gate"
    adds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.sparsity < 0 or not 0 <= self.threshold < 1:
            raise ConfigError(
                f"rank {self.rank}, sparsity {self.sparsity}, threshold {self.threshold}: expected "
                f"rank >= 1, sparsity >= 0, 0 <= threshold < 1 (gates start at 1)"
            )

    def prepared(self, lm: Any, seed: int) -> Any:
        lm.requires_grad_(False)
        linear = [(n, m) for n, m in lm.named_modules() if isinstance(m, nn.Linear)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the same on every rank
            for name, module in linear:
                wrap(lm, name, GatedLora(module, self.rank, self.alpha, self.threshold))
        return lm
