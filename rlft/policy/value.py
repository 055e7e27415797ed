"""A language model as a critic: what reward is still to come, at each token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlft.policy.lm import adapted, choose_attention

if TYPE_CHECKING:
    from rlft.config import Config


class ValueHead(nn.Module):
    """`hidden [N, H]` to values `[N]`, in float32. It starts at 0: no value is expected of anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return (hidden_NH.float() @ self.weight.float().T + self.bias.float()).squeeze(1)


class LMValue(nn.Module):
    """`forward(ids [B, L], position [B, T], mask [B, T])` returns values float32 `[B, T]`, 0 where masked.

    A decision's value is read where its distribution is read: at the token before.
    """

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = ValueHead(width)

    def forward(
        self, ids_BL: torch.Tensor, position_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> torch.Tensor:
        trunk: Any = self.trunk
        plain = trunk.get_base_model() if hasattr(trunk, "get_base_model") else trunk
        choose_attention(plain, ids_BL)
        hidden_BLH = plain(input_ids=ids_BL, use_cache=False).last_hidden_state
        row, column = mask_BT.nonzero(as_tuple=True)
        if row.numel() == 0:
            # As in `LMPolicy`: a padding micro-batch still runs every layer.
            row = column = torch.zeros(1, dtype=torch.int64, device=ids_BL.device)
        hidden_NH = hidden_BLH[row, (position_BT[row, column] - 1).clamp_min(0)]
        blank = torch.zeros(mask_BT.shape, dtype=torch.float32, device=ids_BL.device)
        return blank.index_put((row, column), self.head(hidden_NH))


def load_value(path: str | Path, cfg: Config) -> LMValue:
    """The trunk of the Hugging Face causal model at `path` with a new head, dtype, adapters and
    checkpointing as `cfg.model` has them for the policy. With adapters the head is trained whole."""
    from transformers import AutoModel

    dtype = getattr(torch, cfg.model.dtype)
    trunk: Any = AutoModel.from_pretrained(str(path), dtype=dtype)
    width = trunk.config.hidden_size
    if cfg.model.gradient_checkpointing:
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
        trunk.enable_input_require_grads()
    if cfg.model.lora is not None:
        trunk = adapted(trunk, cfg.model.lora, cfg.seed, None)
    return LMValue(trunk, width).to(dtype)
