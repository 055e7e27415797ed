"""Texts that the language model inside a policy that acts goes on to learn."""

from __future__ import annotations

from typing import Any

import torch

from rlft.learning.text_buffer import TextBuffer


class LanguageBuffer(TextBuffer):
    """A `TextBuffer` read by the memory of the policy, not by the policy."""

    def loss(self, learner: Any, ids_BL: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """See `TextBuffer.loss`."""
        said = learner.policy.memory.lm(
            input_ids=ids_BL, attention_mask=there(mask_BT), use_cache=False
        ).logits[:, :-1]
        chosen = ids_BL[:, 1:, None]
        return -said.float().log_softmax(-1).gather(-1, chosen).squeeze(-1)


def there(mask_BT: torch.Tensor) -> torch.Tensor:
    """The attention mask `[B, L]` of texts whose tokens after the first are there by `mask_BT`."""
    first = torch.ones_like(mask_BT[:, :1])
    return torch.cat([first, mask_BT], 1).long()
