"""What of a model is trained: the interface of `learner.trainable`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from rlft.seeding import Key


@dataclass(frozen=True, slots=True)
class Seen:
    """What a choice may look at. step: optimizer steps taken; shapes: of every weight that could be
    trained, by its name in the Hugging Face model; weight, grad: of the parameter in question, whole,
    float32, read when called (a collective: all ranks call alike)."""

    step: int
    key: Key
    shapes: Mapping[str, tuple[int, ...]]
    weight: Callable[[], torch.Tensor]
    grad: Callable[[], torch.Tensor]


class Trainable(Protocol):
    """A frozen dataclass whose fields are its keys.

    chooses: whether it picks elements while training goes on; else `prepared` settles all of it.
    adds: whether it trains tensors of its own, and the model's stay as they are.
    pushed: the end of the names of weights that a penalty pushes down by `sparsity`, or None.
    """

    chooses: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    pushed: ClassVar[str | None] = None

    def check(self) -> None:
        """Raises ConfigError or DataError for what can be known to be wrong before any work starts."""
        return

    def fits(self, lm: Any) -> None:
        """Raises ConfigError: a model like `lm`, which has shapes and no weights (torch's `meta` device; it
        may be changed), cannot be trained so."""
        return

    def prepared(self, lm: Any, seed: int) -> Any:
        """The model with adapters in place and `requires_grad` set."""
        return lm

    def due(self, step: int) -> bool:
        """Whether to choose anew before this step; step 0 always does."""
        return False

    def kept(self, name: str, seen: Seen) -> torch.Tensor | bool:
        """Which elements of `name` are trained: bool of its shape, or one answer for all of it."""
        return True


_NUMBERED = re.compile(r"\.\d+\.")


def is_layer_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a matrix of a numbered layer: not an embedding, a head, a norm or a bias."""
    return len(shape) == 2 and bool(_NUMBERED.search(name))


def largest(size: torch.Tensor, share: float) -> torch.Tensor:
    """Which elements are the largest, bool: exactly the rounded share of them, at least one."""
    count = max(1, round(share * size.numel()))
    chosen = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
    chosen[size.reshape(-1).topk(count).indices] = True
    return chosen.view(size.shape)


class Optimizing(Protocol):
    """An optimizer of `learner.optimizer`: a frozen dataclass whose fields are its keys."""

    def made(self, named: Mapping[str, torch.nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        """The optimizer of `named`; settings: the section `learner`. One that has an attribute `layout`
        is given the flat tensors' layout after DeepSpeed has made them."""
        ...
