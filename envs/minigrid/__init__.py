"""MiniGrid and BabyAI: small grid worlds with partial views and missions in words.

The reward is that of the polychromic paper (arXiv 2509.25424): `1 - 0.5 t / H` for a success after `t`
actions of at most `H`, else 0. MiniGrid's own takes 0.9 off.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlft.errors import ConfigError
from rlft.starts import MOST_HELD_OUT, Starts, held_out_starts, training_starts

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class MiniGrid:
    """id: a level of the package, `MiniGrid-FourRooms-v0` or `BabyAI-GoTo-v0`; max_steps: H, null for the
    level's own.

    view: `flat`: the 7 x 7 x 3 view as uint8 `[147]`, without direction and mission (the paper's Four
    Rooms); `dict`: image uint8 `[7, 7, 3]`, direction, and mission as word numbers int32
    `[mission_length]` (words.py), padded with 0. mission_length: null takes 72 for levels that chain
    instructions, else 24; words: further words of missions; actions: the first so many of MiniGrid's
    seven (left, right, forward, pick up, drop, toggle, done), so 3 only move.

    configurations: so many fixed starts for training *and* evaluation, as in the paper; null: fresh
    starts to train on, `train_size` of them, and `held_out_size` others to evaluate on. held_out_start:
    `other_room` evaluates from another room of the same level (generalisation). time_penalty: what a
    success at the last step loses; null leaves the level's own reward. limit: `ends`, an episode that runs
    out of steps has failed, as in the paper's tasks of H steps; `cuts`: it goes on unseen, and the critic
    says what would have come.
    rooms: `paper` divides positions by the room's size, `walls` goes by where BabyAI's walls are.
    fast_view: compute the same view by tables (view.py); false: by MiniGrid's own code, much slower.
    seed: picks the starts, not the run's seed.
    """

    id: str = "MiniGrid-FourRooms-v0"
    max_steps: int | None = 100
    view: Literal["flat", "dict"] = "flat"
    configurations: int | None = None
    held_out_start: Literal["same", "other_room"] = "same"
    time_penalty: float | None = 0.5
    limit: Literal["ends", "cuts"] = "ends"
    actions: int = 7
    mission_length: int | None = None
    words: tuple[str, ...] = ()
    rooms: Literal["paper", "walls"] = "paper"
    fast_view: bool = True
    snapshots: Literal["copy", "replay", "none"] = "copy"
    train_size: int = 1_000_000
    held_out_size: int = 100
    seed: int = 0

    traces = ("position", "room")
    solved_above = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_steps", 1, 10**6),
            ("configurations", 1, MOST_HELD_OUT),
            ("actions", 1, 7),
            ("mission_length", 1, 10**4),
            ("train_size", 1, 10**8),
            ("held_out_size", 1, MOST_HELD_OUT),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value} must be from {low} to {high}")
        if self.time_penalty is not None and not 0 <= self.time_penalty <= 1:
            raise ConfigError(f"time_penalty={self.time_penalty} must be from 0 to 1, or null")

    def train(self) -> Starts:
        """Levels to train on."""
        if self.configurations is not None:
            return held_out_starts(self.configurations, self.seed)
        return training_starts(self.train_size, self.seed)

    def held_out(self) -> Starts:
        """Levels to evaluate on: the training ones with `configurations`, else none of them."""
        options = {"start": "other_room"} if self.held_out_start == "other_room" else {}
        return held_out_starts(self.configurations or self.held_out_size, self.seed, options)

    def make(self) -> gymnasium.Env:
        """One environment. Raises ConfigError: the package or the level does not exist."""
        level = self._level()
        level.tile_size = 8  # pixels of a cell when it is drawn; 32 take many times longer
        if self.max_steps is not None:
            level.max_steps = self.max_steps
            level.fixed_max_steps = True  # BabyAI would compute its own at each reset
        from envs.minigrid.stack import Level
        from envs.minigrid.words import Vocabulary

        return Level(
            level,
            flat=self.view == "flat",
            time_penalty=self.time_penalty,
            num_actions=self.actions,
            walls=self.rooms == "walls",
            fast_view=self.fast_view,
            starts=None if self.configurations is None else _kept_starts(self),
            vocabulary=Vocabulary(self.mission_length or _length(level), self.words),
        )

    def _level(self) -> Any:
        try:
            import gymnasium
            import minigrid  # noqa: F401  (registers its levels)
            from minigrid.minigrid_env import MiniGridEnv
        except ImportError as error:
            raise ConfigError(
                "env minigrid needs the package minigrid: pip install 'rlft[minigrid]'"
            ) from error
        try:
            # `unwrapped`: Gymnasium's checks would add a tenth to each step.
            level: Any = gymnasium.make(self.id, disable_env_checker=True).unwrapped
        except gymnasium.error.Error as error:
            raise ConfigError(f"env minigrid: {error}") from error
        if not isinstance(level, MiniGridEnv):
            raise ConfigError(
                f"env minigrid: {self.id} is a {type(level).__name__}, expected a level of MiniGrid or "
                f"BabyAI; use `env: {{name: gym, id: {self.id}}}`"
            )
        return level


@functools.cache
def _kept_starts(recipe: MiniGrid) -> dict[Any, Any]:
    """One for all environments of a recipe in a process: there are few starts, and they come again."""
    return {}


def _length(level: Any) -> int:
    """The longest mission of a level generator that chains instructions has 72 words (four times "put
    the yellow ball in front of you next to ..."), of any other level 19."""
    return 72 if getattr(level, "instr_kinds", ("action",)) != ("action",) else 24
