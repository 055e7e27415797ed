"""Two rooms of MiniGrid, one after the other, that ask for opposite things of the same sight.

CLOSE, where episodes begin: a room with blue walls. Its green square is a trap that ends the episode with
nothing; the way out is an opening in the wall, worth 0.3, which closes behind the agent, and each action
that brings it nearer is worth 0.02 (what leads away costs as much). FAR: a room with grey walls and lava,
whose green square is the goal, worth `0.7 (1 - t / 2H)` after t of H actions. So a policy that knows FAR
alone walks into the trap, and what it learns in CLOSE (keep off the green square) is wrong in FAR: the
state coverage gap of arXiv 2402.02868, in the shape of its AppleRetrieval.

The level was changed twice, each time after plain PPO alone. First it had no reward for coming nearer, and
PPO from a clone of FAR got none at all in 205,000 steps. Then CLOSE had a blue floor, a sight so unlike FAR
that the clone gave the action "forward" before the opening a chance below 0.001: PPO left CLOSE in none of
1,500 episodes, where random actions leave in 14%, so it forgot FAR and learned nothing for it. With blue
walls on the same floor the same clone leaves in 7% of episodes and walks into the trap in 39%; that was
measured of the clone, before any fine-tuning.

It needs the package minigrid, whose partial 7 x 7 view is observed as uint8 `[147]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlft.errors import ConfigError
from rlft.starts import Starts, held_out_starts, training_starts

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class TwoStage:
    """start: `close`, or `far`: in a free cell of FAR, the opening closed; room: width and height of each
    room; lava: cells of it in FAR; max_steps: H; train_size, held_out_size: levels of each part; seed:
    picks them, not the run's seed.

    Traces: stage, 0 in CLOSE, 1 in FAR, 2 at the goal; position and room."""

    start: Literal["close", "far"] = "close"
    room: Annotated[int, Field(ge=3, le=9)] = 5
    lava: Annotated[int, Field(ge=0, le=8)] = 3
    max_steps: Annotated[int, Field(ge=2)] = 60
    train_size: int = 1_000_000
    held_out_size: int = 200
    seed: int = 0

    traces = ("stage", "position", "room")
    snapshots = "copy"
    solved_above = None
    limit = "ends"
    id = "two_stage"

    def train(self) -> Starts:
        """Levels to train on."""
        return training_starts(self.train_size, self.seed)

    def held_out(self) -> Starts:
        """Levels to evaluate on."""
        return held_out_starts(self.held_out_size, self.seed)

    def make(self) -> gymnasium.Env:
        """One environment with three actions: left, right, forward. Raises ConfigError: no minigrid."""
        try:
            from envs.minigrid.stages import staged
        except ImportError as error:
            raise ConfigError(
                "env two_stage needs the package minigrid: pip install 'rlft[minigrid]'"
            ) from error
        return staged(self.start == "far", self.room, self.lava, self.max_steps)
