"""Behaviour cloning: the likelihood of demonstrated actions, before any reward is seen.

The share `held_out` of the demonstrations is kept aside, whole episodes, and measured with each step. An
entropy bonus keeps the policy from being surer than its data: what is fine-tuned afterwards must still
explore. Files: rlft/demonstrations.py.

Recordings that are too many to hold (rlft/recordings.py; of NetHack) are read window after window by
`batch / window` readers side by side. A memory goes on from window to window of a game, with the gradient
cut between them, and begins each game empty.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.cloning import Library, library_of, strips_of
from rlft.config import Config, Positive
from rlft.errors import DataError
from rlft.losses.entropy import EntropyBonus
from rlft.losses.likelihood import NegativeLogLikelihood
from rlft.recordings import Streams, stretches
from rlft.schedule import Scheduled
from rlft.seeding import Key
from rlft.types import Group, Strip, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class Clone(Algo):
    """path: demonstrations, `.npz`, `.jsonl`, `minari:ID`, or recordings of the environment; held_out: the
    share kept aside; entropy_coef: weight of the bonus; batch: steps of the demonstrations in one optimizer
    step (whole episodes, where the policy has a memory); minibatches: optimizer steps of one step of the
    run. Of recordings: window: steps that a reader reads at a time, through which the gradient goes;
    held_out_steps: steps of held-out games that are measured, in stretches of eight windows that a memory
    begins empty; held_out_every: steps of the run between measurements."""

    acts: ClassVar[bool] = True
    samples: ClassVar[bool] = False

    path: str
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    entropy_coef: Scheduled = 0.01
    batch: Positive = 256
    minibatches: Positive = 16
    window: Positive = 32
    held_out_steps: Positive = 4096
    held_out_every: Positive = 1

    @property
    def terms(self) -> tuple[Term, ...]:
        terms = [Term("nll", NegativeLogLikelihood())]
        if self.entropy_coef != 0:
            terms.append(Term("entropy_bonus", EntropyBonus(), self.entropy_coef))
        return tuple(terms)

    def suits(self, cfg: Config) -> list[str]:
        library = self.library(cfg)
        if library is not None:
            games = len(library.recordings.names)
            aside = len(self.games(cfg, library)[1])
            return [
                f"recordings: {library.recordings.summary()}; {games - aside:,} games to learn from, "
                f"{aside:,} held out, {self.readers} readers"
            ]
        train, held_out = self.split(cfg)
        steps = sum(len(s.reward) for s in train)
        return [
            f"demonstrations: {len(train):,} episodes of {steps:,} steps, {len(held_out):,} held out"
        ]

    def split(self, cfg: Config) -> tuple[list[Strip], list[Strip]]:
        """(training, held-out) demonstrations, split by the run's seed."""
        strips = strips_of(self.path, registry.build("env", cfg.env))
        order = np.random.default_rng(cfg.seed).permutation(len(strips))
        aside = int(len(strips) * self.held_out)
        return [strips[i] for i in order[aside:]], [strips[i] for i in order[:aside]]

    def library(self, cfg: Config) -> Library | None:
        """The recordings, if they are too many to hold."""
        return library_of(self.path, registry.build("env", cfg.env))

    def games(self, cfg: Config, library: Library) -> tuple[list[int], list[int]]:
        """(training, held-out) games of recordings, split by the run's seed. Raises DataError: there is
        one game only, and a share is to be held out."""
        count = len(library.recordings.names)
        aside = round(count * self.held_out)
        if self.held_out and not 0 < aside < count:
            raise DataError(
                f"{self.path} has {count} games, of which held_out={self.held_out:g} leaves "
                f"{count - aside} to learn from and {aside} aside; expected at least one each. Set "
                f"algo.held_out to 0"
            )
        order = np.random.default_rng(cfg.seed).permutation(count).tolist()
        return order[aside:], order[:aside]

    @property
    def readers(self) -> int:
        """How many games are read side by side."""
        return max(1, self.batch // self.window)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return []

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        library = self.library(run.cfg)
        if library is not None:
            return self._learn_windows(run, library)
        train, held_out = self.split(run.cfg)
        if held_out:
            run.fit_strips(held_out, learn=False)
        key = run.key.child("demonstrations", run.step)
        return run.fit_strips(
            some_of(train, self.batch * self.minibatches, key.seed()), minibatches=self.minibatches
        )

    def _learn_windows(self, run, library: Library) -> WeightUpdate | None:
        train, held_out = self.games(run.cfg, library)
        recordings = library.recordings
        if held_out and run.step % self.held_out_every == 0:
            found = stretches(recordings, held_out, self.held_out_steps, 8 * self.window)
            run.fit_strips([library.strip(window) for window in found], learn=False)
        key = run.key.child("readers")
        streams = _streams(library, tuple(train), self.readers, self.window, key)
        first = run.step * self.minibatches
        strips, stream, minibatch = library.windows(streams, self.readers, first, self.minibatches)
        return run.fit_strips(
            strips, minibatches=self.minibatches, stream=stream, minibatch=minibatch
        )


@functools.lru_cache(maxsize=1)
def _streams(library: Library, games: tuple[int, ...], num: int, window: int, key: Key) -> Streams:
    """Kept from step to step for the lengths that it has asked for; a function of its arguments."""
    return Streams(games, library.recordings.steps, num, window, key)


def some_of(strips: Sequence[Strip], steps: int, seed: int) -> list[Strip]:
    """Random episodes of together at least so many steps, or all of them."""
    found: list[Strip] = []
    count = 0
    for i in np.random.default_rng(seed).permutation(len(strips)):
        if count >= steps:
            break
        found.append(strips[i])
        count += len(strips[i].reward)
    return found
