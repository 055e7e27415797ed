"""AdamW as every learner here begins with it."""

from __future__ import annotations

from typing import Any

import torch


def adamw(parameters: Any, settings: Any) -> torch.optim.AdamW:
    """parameters: as torch's optimizers take them, tensors or groups; settings: the section `learner`.
    Its learning rate is set before each step, from the schedule."""
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over memory in place of ten
    )
