"""Recorded games that are too many to hold: read window after window, in an order that a key decides.

An environment plug-in with `recordings(path)` gives them (envs/nethack/demonstrations.py); others have
files that fit into memory (`demonstrations.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlft.demonstrations import Demonstration
from rlft.seeding import Key


class Recordings(Protocol):
    """names: of the games; seeds: what `reset(seed=)` begins each again with, None: that is not known.
    What is read is checked, and DataError says what is wrong with it."""

    names: Sequence[str]
    seeds: Sequence[int | None]

    def steps(self, game: int) -> int:
        """Its length; at least 1."""
        ...

    def read(self, game: int, first: int, last: int) -> Demonstration:
        """Its steps `first` to `last - 1`, with the observations and actions of the environment."""
        ...

    def keep(self, games: int) -> None:
        """Says how many games are read at a time, in turn: so much should stay unpacked."""
        ...

    def summary(self) -> str:
        """What a person should know of them, in a line."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first` to `last - 1` of a game. fresh: a memory begins here empty."""

    game: int
    first: int
    last: int
    fresh: bool


class Streams:
    """`num` readers, each of which goes through one game after the other, window by window.

    The games are taken in a new random order each time round. A reader's first game begins at a random
    window, so that not all of them are at the beginnings of games. What reader `s` has at number `n` is a
    function of the key, so there is nothing to save; `steps` is asked of games only as they come up.
    """

    def __init__(
        self, games: Sequence[int], steps: Callable[[int], int], num: int, window: int, key: Key
    ) -> None:
        self._games, self._steps, self._num = list(games), steps, num
        self._window, self._key = window, key
        self._orders: dict[int, np.ndarray] = {}
        self._ends: list[list[int]] = [[] for _ in range(num)]
        self._skipped = [0] * num

    def at(self, stream: int, number: int) -> Window:
        """Window `number`, from 0, of a reader."""
        ends = self._ends[stream]
        while not ends or ends[-1] <= number:
            windows = -(-self._steps(self._game(stream, len(ends))) // self._window)
            if not ends:
                rng = np.random.default_rng(self._key.child("skip", stream).seed())
                self._skipped[stream] = int(rng.integers(windows))
                windows -= self._skipped[stream]
            ends.append((ends[-1] if ends else 0) + windows)
        place = bisect_right(ends, number)
        within = number - (ends[place - 1] if place else -self._skipped[stream])
        game = self._game(stream, place)
        first = within * self._window
        last = min(first + self._window, self._steps(game))
        return Window(game, first, last, first == 0 or number == 0)

    def _game(self, stream: int, place: int) -> int:
        turn, index = divmod(stream + place * self._num, len(self._games))
        if turn not in self._orders:
            rng = np.random.default_rng(self._key.child("order", turn).seed())
            self._orders[turn] = rng.permutation(len(self._games))
        return self._games[self._orders[turn][index]]


def stretches(
    recordings: Recordings, games: Sequence[int], steps: int, length: int
) -> list[Window]:
    """About `steps` steps of `games` in windows of `length`, evenly spaced over each game, to measure on:
    the same each time. If there are more games than windows, some games, and one window of each: from
    its beginning, its end or between, so that together they show all of a game."""
    count = max(1, round(steps / length))
    each = max(1, round(count / max(1, len(games))))
    if count < len(games):
        games = [games[int(i)] for i in np.linspace(0, len(games) - 1, count)]
    found: list[Window] = []
    for place, game in enumerate(games):
        total = recordings.steps(game)
        room = max(0, total - length)
        # Fractions by the golden ratio: any few of them in a row are spread.
        alone = [room * (place * 0.618034 % 1)]
        starts = {int(x) for x in (alone if each == 1 else np.linspace(0, room, each))}
        found += [Window(game, s, min(s + length, total), True) for s in sorted(starts)]
        if len(found) * length >= steps:
            break
    return found
