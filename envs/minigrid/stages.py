"""The level of `env: two_stage`, and its wrapper."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Goal, Lava, Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.minigrid.rooms import reachable
from envs.minigrid.stack import Level
from envs.minigrid.words import Vocabulary

_OUT = 0.3
"""For leaving CLOSE; the rest of 1 is for the goal."""
_NEARER = 0.02
"""For each action in CLOSE that brings the opening nearer, counted in actions on a shortest way."""


class TwoRooms(MiniGridEnv):
    """See envs/two_stage.py. stage: 0, 1 or 2; gap: the row of the opening."""

    def __init__(self, far: bool, room: int, lava: int, max_steps: int) -> None:
        self._far, self._room, self._lava = far, room, lava
        self.stage, self.gap = 0, 1
        self.left: dict[tuple[int, int, int], int] = {}
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
            self.gap = 1 + int(rng.integers(room))
            for x in range(room + 1):
                for y in range(height) if x == 0 else (0, height - 1):
                    self.grid.set(x, y, Wall("blue"))
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
            self._set_wall_between()
            cells = far if self._far else near
            self.agent_pos = cells[int(rng.integers(len(cells)))]
            self.agent_dir = int(rng.integers(4))
            if self._solvable(goal):
                self.left = {} if self._far else self._ways_out()
                return

    def step(self, action: Any) -> Any:
        before = self.left.get(self._state(), 0)
        seen, _, terminated, truncated, info = super().step(action)
        x = int(self.agent_pos[0])
        reward = 0.0
        if self.stage == 0 and not terminated:
            reward = _NEARER * (before - self.left.get(self._state(), 0))
        if self.stage == 0 and x > self._room + 1:
            self.stage, reward = 1, reward + _OUT
            self._set_wall_between()
            seen = self.gen_obs()
        at = self.grid.get(*self.agent_pos)
        if terminated and self.stage == 1 and at is not None and at.type == "goal":
            self.stage = 2
            reward += (1 - _OUT) * (1 - 0.5 * self.step_count / self.max_steps)
        return seen, reward, terminated, truncated, info

    def _state(self) -> tuple[int, int, int]:
        x, y = self.agent_pos
        return int(x), int(y), int(self.agent_dir)

    def _ways_out(self) -> dict[tuple[int, int, int], int]:
        """Actions from each state of CLOSE, and of the opening, to the first cell behind it."""
        behind = (self._room + 2, self.gap)
        trap = [
            (x, y)
            for x in range(1, self._room + 1)
            for y in range(1, self._room + 1)
            if self.grid.get(x, y) is not None
        ]
        free = {
            (x, y)
            for x in range(1, self._room + 1)
            for y in range(1, self._room + 1)
            if (x, y) not in trap
        } | {(self._room + 1, self.gap), behind}
        left = {(*behind, facing): 0 for facing in range(4)}
        line = deque(left)
        while line:
            x, y, facing = line.popleft()
            dx, dy = (int(d) for d in DIR_TO_VEC[facing])
            turns = [] if (x, y) == behind else [(x, y, (facing + t) % 4) for t in (1, -1)]
            for state in (*turns, (x - dx, y - dy, facing)):
                if state not in left and state[:2] in free:
                    left[state] = left[x, y, facing] + 1
                    line.append(state)
        return left

    def _set_wall_between(self) -> None:
        """Blue and open while the agent is in CLOSE, then closed and grey: from within FAR is all grey."""
        for y in range(self.height):
            open_here = self.stage == 0 and y == self.gap
            self.grid.set(
                self._room + 1, y, None if open_here else Wall("grey" if self.stage else "blue")
            )

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
