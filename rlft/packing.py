"""Packing: short rows behind each other in one sequence, so that little of it is padding. Pure.

A sequence is at most twice as long as the longest row of its micro-batch: wide enough to fill, and
attention, which is worked out between all of its tokens and then masked, stays in proportion. Which rows
share a sequence follows from lengths, order and token budget, so the driver that plans and the rank that
lays rows out agree without telling each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Packing(NamedTuple):
    """Where packed rows lie. sequence_B: int64 `[B]`, the sequence of each row; within_SL: int64
    `[S, L]`, each token's place in its own row, from 0. Padding counts from 0, too: a row of its own."""

    sequence_B: torch.Tensor
    within_SL: torch.Tensor


@dataclass(slots=True)
class Sequences:
    """Sequences of at most `width` tokens, filled first fit. rows: places of the rows of each; room: what
    is left of it."""

    width: int
    rows: list[list[int]] = field(default_factory=list)
    room: list[int] = field(default_factory=list)

    def fits(self, length: int) -> bool:
        return any(length <= room for room in self.room)

    def add(self, row: int, length: int) -> int:
        """Puts a row into the first sequence with room, or a new one; returns where it begins there."""
        index = next((i for i, room in enumerate(self.room) if length <= room), len(self.room))
        if index == len(self.room):
            self.room.append(self.width)
            self.rows.append([])
        self.rows[index].append(row)
        self.room[index] -= length
        return self.width - self.room[index] - length


def sequences_for(longest: int, budget: int) -> Sequences:
    """Of a micro-batch whose longest row has `longest` tokens."""
    return Sequences(max(longest, min(2 * longest, budget)))


def pack(rows: Sequence[int], lengths: Sequence[int], budget: int, share: int) -> list[list[int]]:
    """`rows`, longest first, in micro-batches of at most `share` tokens, padding included, except that a
    longer row, or sequence, gets its own. Each row takes the first room that there is in any of them.
    budget: of tokens, as in `sequences_for`."""
    micros: list[tuple[Sequences, list[int]]] = []
    for row in rows:
        length = lengths[row]
        found = next((micro for micro in micros if micro[0].fits(length)), None)
        if found is None:
            last = micros[-1][0] if micros else None
            if last is None or (len(last.rows) + 1) * last.width > share:
                micros.append((sequences_for(length, budget), []))
            found = micros[-1]
        found[0].add(row, length)
        found[1].append(row)
    return [rows for _, rows in micros]
