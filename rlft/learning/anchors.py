"""Frozen policies that a term compares with: here the reference, the policy before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rlft.batch import Inputs
from rlft.config import Config
from rlft.learning.learner import Learner
from rlft.policy.lm import load_lm


def reference_logp(
    cfg: Config, learner: Learner, start: Path
) -> Callable[[Inputs, float], torch.Tensor]:
    """Returns the function from a micro-batch and a temperature to the reference's log-probs `[B, T]`.

    With LoRA it is the base under a disabled adapter and costs no memory; else a frozen copy of the
    start weights in every rank, in the model's dtype.
    """
    if cfg.model.lora is not None:

        def under_disabled_adapter(inputs: Inputs, temperature: float) -> torch.Tensor:
            with torch.no_grad(), learner.policy.without_adapter():
                out = learner.forward(
                    inputs.ids, inputs.position, inputs.mask, temperature, inputs.packing
                )
            return out.logp

        return under_disabled_adapter

    frozen = load_lm(start, cfg.model.dtype).to(learner.device).eval().requires_grad_(False)

    def from_copy(inputs: Inputs, temperature: float) -> torch.Tensor:
        with torch.no_grad():
            logp, _ = frozen(inputs.ids, inputs.position, inputs.mask, temperature, inputs.packing)
        return logp

    return from_copy
