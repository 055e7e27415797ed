"""S2FT (arXiv 2412.06289): whole channels of the feed-forward layers and whole heads, chosen at random.

The paper permutes the chosen channels to the front and trains the contiguous slice. Here the layer stays
as it is and the slice is a dense matrix beside it, from zero: the same weights are trained, the output
is unchanged at the start, and nothing is to be permuted back. Of a channel: its row of up and gate, its
column of down. Of a head: its rows of q, its columns of o.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from rlft.errors import ConfigError
from rlft.learning.trained_part import Trainable
from rlft.policy.adapters import Wrapped, wrap
from rlft.seeding import Key

_ROWS, _COLUMNS = ("up_proj", "gate_proj"), ("down_proj",)
_HEAD_ROWS, _HEAD_COLUMNS = ("q_proj",), ("o_proj",)


class Sliced(Wrapped):
    """A linear layer of which some rows, or some columns, are trained. index: int64 `[K]`; delta: what
    was learnt, `[K, in]` for rows and `[out, K]` for columns."""

    index: torch.Tensor

    def __init__(self, base_layer: nn.Linear, index: torch.Tensor, rows: bool) -> None:
        super().__init__(base_layer)
        self.register_buffer("index", index, persistent=False)
        out, inner = base_layer.weight.shape
        shape = (len(index), inner) if rows else (out, len(index))
        self.delta = nn.Parameter(torch.zeros(shape, dtype=base_layer.weight.dtype))
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.base_layer(x)
        if self.rows:
            return whole.index_add(-1, self.index, x @ self.delta.T)
        return whole + x[..., self.index] @ self.delta.T

    def change(self) -> torch.Tensor:
        empty = torch.zeros(
            (self.base_layer.out_features, self.base_layer.in_features), device=self.delta.device
        )
        return empty.index_add(0 if self.rows else 1, self.index, self.delta.float())


@dataclass(frozen=True)
class S2ft(Trainable):
    """channels, heads: the shares of each layer that are trained; at least one where not 0."""

    adds: ClassVar[bool] = True

    channels: float = 0.05
    heads: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.channels <= 1 and 0 <= self.heads <= 1) or not self.channels + self.heads:
            raise ConfigError(
                f"channels {self.channels}, heads {self.heads}: expected shares from 0 to 1, not both 0"
            )

    def prepared(self, lm: Any, seed: int) -> Any:
        lm.requires_grad_(False)
        before = {n: m for n, m in lm.named_modules() if isinstance(m, nn.Linear)}
        size = _head_size(lm.config)
        count = 0
        for name, module in before.items():
            block, _, role = name.rpartition(".")
            key = Key(seed).child("s2ft", block.removesuffix(".mlp").removesuffix(".self_attn"))
            if self.channels and role in (*_ROWS, *_COLUMNS):
                rows, unit, share, what = role in _ROWS, 1, self.channels, "channels"
            elif self.heads and role in (*_HEAD_ROWS, *_HEAD_COLUMNS):
                rows, unit, share, what = role in _HEAD_ROWS, size, self.heads, "heads"
            else:
                continue
            total = (module.out_features if rows else module.in_features) // unit
            chosen = sorted(
                key.child(what).rng().sample(range(total), max(1, round(share * total)))
            )
            index = torch.tensor([c * unit + i for c in chosen for i in range(unit)])
            wrap(lm, name, Sliced(module, index, rows))
            count += 1
        if not count:
            raise ConfigError(
                f"learner.trainable=s2ft: the model has no layer called {', '.join(_ROWS + _COLUMNS)} (or "
                f"q_proj, o_proj for heads); use patterns or lift"
            )
        return lm


def _head_size(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)
