"""What a way of mixing models is: a class with a `mixed`, and what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor sits. depth: 0 in the first layer, 1 in the last; see `rlft.merging.layers`."""

    name: str
    depth: float


class Versions(Sequence["torch.Tensor"]):
    """One tensor as each model has it, float32, read from disk at each access: a method that takes them
    one after the other holds one at a time, and may write into what it got."""

    def __init__(self, read: Sequence[Callable[[], torch.Tensor]]) -> None:
        self._read = read

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, index):  # no slices are asked for
        return self._read[index]().float()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (read().float() for read in self._read)


class Method(Protocol):
    """A frozen dataclass whose fields are its settings.

    takes: the roles before the models, of `base` (what they were fine-tuned from) and `onto` (a new
    base); models: the least and the largest number of them, None: no limit; swept: the setting that
    `--sweep` varies, or None; whole_runs: a run folder stands for all its checkpoints, not the newest.
    """

    takes: ClassVar[tuple[str, ...]]
    models: ClassVar[tuple[int, int | None]]
    swept: ClassVar[str | None]
    whole_runs: ClassVar[bool] = False

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        """The merged tensor, float32. of: that of `takes` in their order, then of the models."""
        ...
