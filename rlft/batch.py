"""From rows to batches: who learns what in which order, and the padded tensors of a micro-batch.

Both halves are pure. `plan` needs lengths only, so the driver runs it without touching a token;
`assemble` runs in the learner rank that holds the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlft.packing import Packing, pack, sequences_for
from rlft.seeding import Key
from rlft.types import Row

MicroBatch = tuple[int, ...]
"""Indices of rows; empty: a micro-batch that only keeps ranks in step."""


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step: for each rank its micro-batches, the same number on every rank."""

    ranks: tuple[tuple[MicroBatch, ...], ...]

    @property
    def rows(self) -> list[int]:
        """Every row of the update, each once."""
        return [row for rank in self.ranks for micro in rank for row in micro]


def in_forwards(shares: Sequence[np.ndarray], rank: int, each: int) -> list[np.ndarray]:
    """The share of a rank, of those of all ranks, in forwards of at most `each` rows; as many on each rank,
    since under ZeRO-3 a forward is a collective."""
    num = max(1, max(-(-len(share) // each) for share in shares))
    return np.array_split(shares[rank], num)


def plan(
    lengths: Sequence[int],
    *,
    world: int,
    budget: int,
    minibatches: int = 1,
    epochs: int = 1,
    key: Key | None = None,
    unit: Sequence[int] | None = None,
    packed: bool = False,
) -> tuple[Update, ...]:
    """Returns `epochs x minibatches` updates over rows of `lengths` tokens.

    unit: a number for each row; rows of one number are never split over micro-batches or minibatches,
    and lie next to each other in the order of their indices. None: every row is on its own.

    Rows of similar length share a micro-batch, so little is padded: `rows x longest` stays within
    `budget` tokens, except that a unit longer than that gets its own. packed: short rows lie behind each
    other, and `sequences x longest` stays within it; without `unit`. With more than one minibatch the
    units are shuffled by `key`, differently each epoch. Every row occurs once an epoch.
    Raises ValueError if there are fewer units than minibatches.
    """
    units = _units(range(len(lengths)) if unit is None else unit, len(lengths))
    if minibatches > len(units):
        raise ValueError(f"{minibatches} minibatches of only {len(units)} rows")
    updates = []
    for epoch in range(epochs):
        order = list(units)
        if minibatches > 1:
            if key is None:
                raise ValueError("minibatches need a key to shuffle by")
            key.child("epoch", epoch).rng().shuffle(order)
        for index in range(minibatches):
            part = order[index::minibatches]
            updates.append(_one_update(part, lengths, world, budget, packed))
    return tuple(updates)


def _units(unit: Sequence[int], rows: int) -> list[MicroBatch]:
    """The rows of each unit, units in the order of their first row."""
    if len(unit) != rows:
        raise ValueError(f"unit has {len(unit)} numbers for {rows} rows")
    members: dict[int, list[int]] = {}
    for row, number in enumerate(unit):
        members.setdefault(number, []).append(row)
    return [tuple(m) for m in members.values()]


def _one_update(
    units: list[MicroBatch], lengths: Sequence[int], world: int, budget: int, packed: bool
) -> Update:
    longest = {unit: max(lengths[row] for row in unit) for unit in units}
    # Longest first; ties by index, so that the plan depends on nothing else.
    ordered = sorted(units, key=lambda unit: (-longest[unit], unit))
    fair = budget
    if world > 1:  # never so large that a rank would be left without work
        fair = min(budget, -(-sum(lengths[row] for unit in units for row in unit) // world))
    micros: list[list[int]] = []
    widest = 0
    if packed:
        micros = pack([row for [row] in ordered], lengths, budget, fair)
    for unit in [] if packed else ordered:
        if micros and (len(micros[-1]) + len(unit)) * widest <= fair:
            micros[-1].extend(unit)
        else:
            micros.append([*unit])
            widest = longest[unit]
    while len(micros) % world:
        micros.append([])
    # Neighbours in length go to different ranks, which balances tokens.
    return Update(tuple(tuple(tuple(m) for m in micros[rank::world]) for rank in range(world)))


@dataclass(frozen=True, slots=True)
class Inputs:
    """A padded micro-batch. ids: int64 `[B, L]`, packed `[S, L]`; position: int64 `[B, T]`, index into L
    of each decision; mask: bool `[B, T]`; sample_logp: float32 `[B, T]`, NaN where padded; packing: where
    packed rows lie."""

    ids: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    sample_logp: torch.Tensor
    packing: Packing | None = None

    def to(self, device: torch.device) -> Inputs:
        packing = self.packing
        if packing is not None:
            packing = Packing(packing.sequence_B.to(device), packing.within_SL.to(device))
        return Inputs(
            ids=self.ids.to(device),
            position=self.position.to(device),
            mask=self.mask.to(device),
            sample_logp=self.sample_logp.to(device),
            packing=packing,
        )


def assemble(rows: Sequence[Row], pad_id: int, packed: int = 0) -> Inputs:
    """Pads `rows` on the right to the longest; packed: the token budget by which they were planned to lie
    behind each other, 0 if not. No rows: one row of padding with nothing to train."""
    num = max(1, len(rows))
    length = max((len(r.ids) for r in rows), default=2)
    chosen = [_decisions(r) for r in rows]
    decisions = max((len(at) for at in chosen), default=1)
    sequences = sequences_for(length, packed)
    begins = [sequences.add(i, len(r.ids)) if packed else 0 for i, r in enumerate(rows)]
    if packed and rows:
        length = sequences.width - min(sequences.room)
    place = {row: s for s, held in enumerate(sequences.rows) for row in held}
    ids = np.full((len(sequences.rows) if packed and rows else num, length), pad_id, np.int64)
    within = np.tile(np.arange(length), (len(ids), 1))
    position = np.zeros((num, decisions), np.int64)
    mask = np.zeros((num, decisions), bool)
    sample_logp = np.full((num, decisions), np.nan, np.float32)
    for index, (row, begin) in enumerate(zip(rows, begins, strict=True)):
        num_chosen, end = len(chosen[index]), begin + len(row.ids)
        at = place.get(index, index)
        ids[at, begin:end] = row.ids
        within[at, begin:] = np.arange(length - begin)  # the row that comes next begins anew
        within[at, end:] = np.arange(length - end)
        position[index, :num_chosen] = begin + chosen[index]
        mask[index, :num_chosen] = True
        sample_logp[index, :num_chosen] = row.sample_logp[row.decisions]
    packing = None
    if packed and rows:
        sequence = np.array([place[i] for i in range(num)], np.int64)
        packing = Packing(torch.from_numpy(sequence), torch.from_numpy(within))
    return Inputs(
        ids=torch.from_numpy(ids),
        position=torch.from_numpy(position),
        mask=torch.from_numpy(mask),
        sample_logp=torch.from_numpy(sample_logp),
        packing=packing,
    )


def _decisions(row: Row) -> np.ndarray:
    """Where in the row's tokens its decisions are: what an environment wrote is none, so that losses,
    credit and lengths never see it."""
    return row.prompt_len + np.arange(len(row.ids) - row.prompt_len)[row.decisions]
