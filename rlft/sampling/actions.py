"""The actions of an episode under way, so that it can be played again.

They are copied and stored whenever a block of environments rests, so whole numbers are packed: an episode
of 50,000 choices is 200 kB that copy in microseconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np


class Actions(Sequence[Any]):
    """A list of actions that only grows. Whole numbers come back as int64, as a policy gives them."""

    __slots__ = ("_others", "_whole")

    def __init__(self) -> None:
        self._whole = array("i")
        self._others: list[Any] = []

    def append(self, action: Any) -> None:
        """Whole numbers below 2**31 are packed, as long as nothing else came before."""
        if not self._others:
            try:
                self._whole.append(action)
                return
            except (TypeError, OverflowError):
                self._others = list(self)
                self._whole = array("i")
        self._others.append(action)

    def copy(self) -> Actions:
        """The same so far; what is appended to either does not show in the other."""
        other = Actions()
        other._whole, other._others = self._whole[:], list(self._others)
        return other

    def __len__(self) -> int:
        return len(self._whole) or len(self._others)

    def __iter__(self) -> Iterator[Any]:
        return map(np.int64, self._whole) if self._whole else iter(self._others)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return list(self)[index]

    def __getstate__(self) -> Any:
        return self._whole, self._others

    def __setstate__(self, state: Any) -> None:
        self._whole, self._others = state
