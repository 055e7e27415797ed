"""The level of `env: two_stage`, and its wrapper."""

from __future__ import annotations

from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Floor, Goal, Lava, Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.minigrid.rooms import reachable
from envs.minigrid.stack import Level
from envs.minigrid.words import Vocabulary

_OUT = 0.3
"""For leaving CLOSE; the rest of 1 is for the goal."""


class TwoRooms(MiniGridEnv):
    """See envs/two_stage.py. stage: 0, 1 or 2; gap: the row of the opening."""

    def __init__(self, far: bool, room: int, lava: int, max_steps: int) -> None:
        self._far, self._room, self._lava = far, room, lava
        self.stage, self.gap = 0, 1
        super().__init__(
            mission_space=MissionSpace(mission_func=_mission),
            width=2 * room + 3,
            height=room + 2,
            max_steps=max_steps,
            see_through_walls=False,
        )

    def _gen_grid(self, width: int, height: int) -> None:
        self.mission, room = _mission(), self._room
        rng = self.np_random
        while True:
            self.grid = Grid(width, height)
            self.grid.wall_rect(0, 0, width, height)
            self.grid.vert_wall(room + 1, 0)
            self.gap = 1 + int(rng.integers(room))
            for x in range(1, room + 1):
                for y in range(1, room + 1):
                    self.grid.set(x, y, Floor("blue"))
            near = [(x, y) for x in range(1, room + 1) for y in range(1, room + 1)]
            far = [(x + room + 1, y) for x, y in near]
            near.remove((room, self.gap))  # the cell before the opening, and the one behind it
            far.remove((room + 2, self.gap))
            trap = near.pop(int(rng.integers(len(near))))
            self.grid.set(*trap, Goal())
            goal = far.pop(int(rng.integers(len(far))))
            self.grid.set(*goal, Goal())
            for _ in range(self._lava):
                self.grid.set(*far.pop(int(rng.integers(len(far)))), Lava())
            self.stage = int(self._far)
            self._set_opening()
            cells = far if self._far else near
            self.agent_pos = cells[int(rng.integers(len(cells)))]
            self.agent_dir = int(rng.integers(4))
            if self._solvable(goal):
                return

    def step(self, action: Any) -> Any:
        seen, _, terminated, truncated, info = super().step(action)
        x = int(self.agent_pos[0])
        reward = 0.0
        if self.stage == 0 and x > self._room + 1:
            self.stage, reward = 1, _OUT
            self._set_opening()
            seen = self.gen_obs()
        at = self.grid.get(*self.agent_pos)
        if terminated and self.stage == 1 and at is not None and at.type == "goal":
            self.stage = 2
            reward += (1 - _OUT) * (1 - 0.5 * self.step_count / self.max_steps)
        return seen, reward, terminated, truncated, info

    def _set_opening(self) -> None:
        self.grid.set(self._room + 1, self.gap, None if self.stage == 0 else Wall())

    def _solvable(self, goal: tuple[int, int]) -> bool:
        """Whether the goal can be walked to from the opening, and by the agent, around lava."""
        here, self.agent_pos = self.agent_pos, (self._room + 2, self.gap)
        from_opening = reachable(self)
        self.agent_pos = here
        return goal in from_opening and (not self._far or goal in reachable(self))


class Staged(Level):
    """`Level`, with the stage among the traces."""

    def _traces(self, level: Any) -> dict[str, Any]:
        return {**super()._traces(level), "stage": np.array([level.stage], np.int32)}


def staged(far: bool, room: int, lava: int, max_steps: int) -> Staged:
    """One environment, flat and with three actions."""
    level = TwoRooms(far, room, lava, max_steps)
    words = Vocabulary(24)
    return Staged(level, flat=True, time_penalty=None, num_actions=3, walls=False, vocabulary=words)


def _mission() -> str:
    return "reach the goal"
