"""Every weight; with `model.lora`, every adapter."""

from __future__ import annotations

from dataclasses import dataclass

from rlft.learning.trained_part import Trainable


@dataclass(frozen=True)
class Full(Trainable):
    """Has no key."""
