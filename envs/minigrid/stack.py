"""One wrapper around a bare MiniGrid level: reward, observation and traces, at little cost a step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid.envs.babyai.core import roomgrid_level

from envs.minigrid.rooms import (
    clear_directions,
    other_rooms,
    pitch,
    position_table,
    room_table,
)
from envs.minigrid.view import quick, share_walls
from envs.minigrid.words import Vocabulary
from rlft.errors import ConfigError
from rlft.sampling.snapshot import Course, Snapshot, restore, take

HIGHEST = 10
"""Of a cell's three numbers: object type (0 to 10), colour (0 to 5), state (0 to 3)."""


class Level(gymnasium.Wrapper):
    """A level as policies and runners see it.

    flat: observe uint8 `[147]`, else a Dict of image `[7, 7, 3]`, direction and mission; time_penalty:
    a success is worth `1 - time_penalty * step_count / max_steps`, anything else 0; None: the level's
    own reward. num_actions: the first so many of the seven; walls: see `rooms.pitch`;
    fast_view: see `view.quick`. starts: where to keep the levels of starts that come again, and to find
    them: restoring one is exact and many times faster than drawing it.

    It holds no state: what changes is the level's own, and the clock of the reward is its step_count.
    """

    snapshot_state = ()

    def __init__(
        self,
        level: Any,
        *,
        flat: bool,
        time_penalty: float | None,
        num_actions: int,
        walls: bool,
        vocabulary: Vocabulary,
        fast_view: bool = True,
        starts: dict[Any, Snapshot] | None = None,
    ) -> None:
        super().__init__(level)
        _be_quiet()
        self._quick = fast_view and quick(level)
        self._starts = starts
        self._flat, self._penalty, self._vocabulary = flat, time_penalty, vocabulary
        self._pitch = pitch(level, walls)
        self._position, self._room = position_table(level), room_table(level, self._pitch)
        view = level.observation_space["image"].shape
        image = spaces.Box(0, HIGHEST, view, np.uint8)
        if flat:
            self.observation_space = spaces.Box(0, HIGHEST, (int(np.prod(view)),), np.uint8)
        else:
            mission = spaces.MultiDiscrete([vocabulary.size] * vocabulary.length, dtype=np.int32)
            self.observation_space = spaces.Dict(
                {"direction": spaces.Discrete(4), "image": image, "mission": mission}
            )
        self.action_space = spaces.Discrete(num_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """options: `{"start": "other_room"}` moves the agent to a free cell of another room, drawn with
        the level's generator; the level and its mission are those of `seed` alone.

        Raises ConfigError: other options, or a level with only one room.
        """
        if self._starts is None or seed is None:
            return self._drawn(seed, options)
        start = (seed, *(options or {}).items())
        if start in self._starts:
            return restore(self, self._starts[start])
        observation, info = self._drawn(seed, options)
        self._starts[start] = take(self, Course(seed, options, (), observation, info))
        return observation, info

    def _drawn(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        level = self.env
        raw, _ = level.reset(seed=seed)
        if self._quick:
            share_walls(level)
        if options:
            self._move(level, options)
            raw = level.gen_obs()
        return self._observed(raw), self._traces(level)

    def step(self, action: Any) -> Any:
        level = self.env
        # int: comparing a numpy integer with MiniGrid's enumeration takes longer than the rest here.
        raw, reward, terminated, truncated, _ = level.step(int(action))
        won = terminated and reward > 0
        if self._penalty is not None:
            reward = 1 - self._penalty * level.step_count / level.max_steps if won else 0.0
        info = self._traces(level)
        if terminated or truncated:
            info["success"] = won
            truncated = not terminated  # MiniGrid says both of a success at the last step
        return self._observed(raw), reward, terminated, truncated, info

    def _traces(self, level: Any) -> dict[str, Any]:
        x, y = level.agent_pos
        return {"position": self._position[x][y], "room": self._room[x][y]}

    def _observed(self, raw: dict[str, Any]) -> Any:
        if self._flat:
            return raw["image"].reshape(-1)
        mission = self._vocabulary.ids(raw["mission"])
        return {"direction": np.int64(raw["direction"]), "image": raw["image"], "mission": mission}

    def _move(self, level: Any, options: dict[str, Any]) -> None:
        if dict(options) != {"start": "other_room"}:
            raise ConfigError(
                f"{type(level).__name__}: reset got options {options}, expected none or "
                f"{{'start': 'other_room'}}"
            )
        cells = other_rooms(level, self._pitch) if self._pitch else []
        if not cells:
            raise ConfigError(
                f"{type(level).__name__}: no free cell in another room can be walked to; expected a "
                f"level of several rooms, such as MiniGrid-FourRooms-v0, for start: other_room"
            )
        level.agent_pos = cells[int(level.np_random.integers(len(cells)))]
        directions = clear_directions(level, *level.agent_pos)
        level.agent_dir = directions[int(level.np_random.integers(len(directions)))]


def _be_quiet() -> None:
    """BabyAI prints a line for each level that it draws and rejects. The name `print` is shadowed in
    that one module; redirecting stdout would swallow what other threads print meanwhile."""
    roomgrid_level.print = _nothing  # type: ignore[attr-defined]


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
