"""Episodic memory: a replay buffer some of whose slots are never overwritten.

Source: arXiv 2402.02868, where a buffer of 100,000 transitions of SAC keeps 10,000 from pre-training. It is
for off-policy algorithms, which learn from whatever the buffer holds. rlft has no such algorithm of its
own yet; behavioural cloning keeps its states here, all of them protected, and an algorithm of yours that
learns from a buffer takes it as it is. Arrays in numpy, no framework.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlft.errors import ConfigError


class Memory:
    """`capacity` slots, each a row of every column. protected: what the first slots hold for ever, arrays
    `[P, ...]` by name, P at most the capacity; `add` fills the others, and then writes over the oldest.

    Raises ConfigError: columns of different lengths, or more protected rows than slots.
    """

    def __init__(self, capacity: int, protected: Mapping[str, np.ndarray] | None = None) -> None:
        given = {n: np.asarray(x) for n, x in (protected or {}).items()}
        self.protected = _length(given)
        if capacity < max(1, self.protected):
            raise ConfigError(
                f"a memory of {capacity} slots cannot protect {self.protected}; raise its capacity"
            )
        self.capacity = capacity
        self._filled, self._next = self.protected, self.protected
        self._columns: dict[str, np.ndarray] = {}
        if given:
            self._make(given)
            for name, x in given.items():
                self._columns[name][: self.protected] = x

    def __len__(self) -> int:
        """Slots that hold something."""
        return self._filled

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The filled slots `[len, ...]` by name, views."""
        return {n: x[: self._filled] for n, x in self._columns.items()}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows `[N, ...]`; the oldest that are not protected make room.

        Raises ConfigError: other columns, kinds or shapes, or a memory whose every slot is protected.
        """
        rows = {n: np.asarray(x) for n, x in rows.items()}
        if self.protected == self.capacity:
            raise ConfigError(
                f"all {self.capacity} slots of the memory are protected; raise capacity"
            )
        if not self._columns:
            self._make(rows)
        if rows.keys() != self._columns.keys():
            raise ConfigError(
                f"rows have columns {sorted(rows)}, the memory has {sorted(self._columns)}"
            )
        for name, x in rows.items():
            held = self._columns[name]
            if x.shape[1:] != held.shape[1:] or not np.can_cast(x.dtype, held.dtype, "same_kind"):
                raise ConfigError(
                    f"rows have {name!r} as {x.dtype} {list(x.shape)}, the memory holds {held.dtype} "
                    f"{['N', *held.shape[1:]]}"
                )
        free = self.capacity - self.protected
        count = _length(rows)
        kept = min(count, free)  # of more than fit, the newest stay
        first = self._next + count - kept
        at = self.protected + (first - self.protected + np.arange(kept)) % free
        for name, x in rows.items():
            self._columns[name][at] = x[count - kept :]
        self._next = self.protected + (self._next - self.protected + count) % free
        self._filled = min(self.capacity, max(self._filled, self._filled + count))

    def sample(
        self, count: int, rng: np.random.Generator, protected: float | None = None
    ) -> dict[str, np.ndarray]:
        """`count` random rows by name. protected: this share of them from protected slots; None: slots are
        drawn alike. Raises ConfigError: there is nothing to draw from."""
        if not self._filled:
            raise ConfigError("the memory is empty; add rows before drawing")
        if protected is None:
            at = rng.integers(0, self._filled, count)
        else:
            kept = round(count * protected) if self._filled > self.protected else count
            kept = kept if self.protected else 0
            at = np.concatenate(
                [
                    rng.integers(0, max(1, self.protected), kept),
                    rng.integers(self.protected, max(self._filled, 1), count - kept),
                ]
            )
        return {n: x[at] for n, x in self._columns.items()}

    def _make(self, rows: Mapping[str, np.ndarray]) -> None:
        self._columns = {
            n: np.zeros((self.capacity, *x.shape[1:]), x.dtype) for n, x in rows.items()
        }


def _length(columns: Mapping[str, np.ndarray]) -> int:
    lengths = {len(x) for x in columns.values()}
    if len(lengths) > 1:
        raise ConfigError(
            f"columns have {sorted(lengths)} rows, expected one number: "
            f"{ {n: len(x) for n, x in columns.items()} }"
        )
    return lengths.pop() if lengths else 0
