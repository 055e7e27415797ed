"""A sequence-classification model with one label, trained in the place of a policy.

It scores a prompt with its response; it chooses nothing. Scores are those of the Hugging Face model's
own forward, so whoever loads the saved folder gets what was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlft.errors import ConfigError
from rlft.policy.lm import LMPolicy, choose_attention

if TYPE_CHECKING:
    from rlft.config import Model


class RewardModelPolicy(LMPolicy):
    """`forward` as of `LMPolicy`; returns zeros `[B, T]` twice, and the score of each row `[B]`."""

    def forward(  # type: ignore[override]
        self,
        ids_BL: torch.Tensor,
        position_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        temperature: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        choose_attention(self.lm, ids_BL)
        # A row ends with its last decision; one without any is padding, of which one token is read.
        last_B = torch.where(mask_BT, position_BT, 0).amax(1)
        there_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) <= last_B[:, None]
        scored = self.lm(input_ids=ids_BL, attention_mask=there_BL.long())
        blank = torch.zeros(mask_BT.shape, dtype=torch.float32, device=ids_BL.device)
        return blank, blank.clone(), scored.logits[:, 0].float()

    def describe(self, folder: Path) -> None:
        """The configuration of a model with one label, in place of the language model's."""
        self.causal_lm().config.save_pretrained(folder)


def load_reward_model(
    path: str | Path, model: Model, *, pad_id: int, seed: int
) -> RewardModelPolicy:
    """Loads `path` as a sequence-classification model with one label; the head of a language model's
    folder is made new, from `seed`. pad_id: by which the model finds the end of each row.

    Raises ConfigError: the folder is a classifier with several labels, or `model` asks for LoRA.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if model.lora is not None:
        raise ConfigError(
            "model.lora is not supported for a reward model: its new head must be trained whole; "
            "remove model.lora"
        )
    config: Any = AutoConfig.from_pretrained(str(path))
    classifies = any("SequenceClassification" in a for a in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise ConfigError(
            f"{path} is a classifier with {config.num_labels} labels; a reward model has one. Start "
            f"from a language model, or from a classifier with num_labels=1."
        )
    config.num_labels = 1
    config.pad_token_id = pad_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the new head, the same on every rank
        lm: Any = AutoModelForSequenceClassification.from_pretrained(
            str(path), config=config, dtype=getattr(torch, model.dtype)
        )
    lm.config.architectures = [type(lm).__name__]
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.enable_input_require_grads()
    return RewardModelPolicy(lm)
