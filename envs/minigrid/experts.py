"""Who demonstrates: BabyAI's own bot, and a shortest path for levels whose mission is the goal.

An expert is made once an episode, after the reset, and says what to do next, whatever was done before.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from minigrid.core.constants import DIR_TO_VEC
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

from rlft.errors import ConfigError

LEFT, RIGHT, FORWARD = 0, 1, 2
MOVES = (LEFT, RIGHT, FORWARD)
_STEPS = tuple((int(dx), int(dy)) for dx, dy in DIR_TO_VEC)
_State = tuple[int, int, int]


class Expert(Protocol):
    def action(self, done: int | None) -> int | None:
        """What to do next; done: what was done last, None at the start. None: it does not know."""
        ...


def expert_of(level: Any) -> Expert:
    """The expert for a level that was just reset. Raises ConfigError for a level that has none."""
    return Bot(level) if isinstance(level, RoomGridLevel) else ShortestPath(level)


class Bot:
    """BabyAI's bot. It sees only what the agent has seen, and explores."""

    def __init__(self, level: Any) -> None:
        self._bot = BabyAIBot(level)

    def action(self, done: int | None) -> int | None:
        try:
            return int(self._bot.replan(done))
        except (AssertionError, DisappearedBoxError, IndexError, ValueError):
            return None  # its own way of saying that it cannot go on, after a disturbance


class ShortestPath:
    """The fewest turns and steps to the nearest goal, by a search over cells and directions of the whole
    grid; it knows what the agent cannot see. Of equally short ways it turns left first.

    Walls, lava, objects and doors that are not open are in the way. Raises ConfigError where no goal can
    be reached.
    """

    def __init__(self, level: Any) -> None:
        self._level = level
        self._distance = _to_the_goal(level)
        if self._state() not in self._distance:
            raise ConfigError(
                f"{type(level).__name__}: no goal can be reached by walking, expected a level such as "
                f"MiniGrid-FourRooms-v0; BabyAI levels have their bot, others have no expert here"
            )

    @property
    def distance(self) -> int:
        """Actions that are left on a shortest way."""
        return self._distance[self._state()]

    def action(self, done: int | None) -> int | None:
        x, y, facing = self._state()
        best = min(MOVES, key=lambda a: self._distance.get(_after(x, y, facing, a), 10**9))
        return best

    def _state(self) -> _State:
        x, y = self._level.agent_pos
        return int(x), int(y), int(self._level.agent_dir)


def _after(x: int, y: int, facing: int, action: int) -> _State:
    """Where an action leads on a free grid."""
    if action == FORWARD:
        dx, dy = _STEPS[facing]
        return x + dx, y + dy, facing
    return x, y, (facing + (1 if action == RIGHT else -1)) % 4


def _to_the_goal(level: Any) -> dict[_State, int]:
    """Actions from each state to the nearest goal: a breadth-first search backwards from the goals."""
    free = {
        (x, y)
        for x in range(level.width)
        for y in range(level.height)
        if _walkable(level.grid.get(x, y))
    }
    goals = [(x, y) for x, y in free if getattr(level.grid.get(x, y), "type", "") == "goal"]
    distance = {(x, y, facing): 0 for x, y in goals for facing in range(4)}
    line = deque(distance)
    while line:
        x, y, facing = line.popleft()
        dx, dy = _STEPS[facing]
        before = [(x, y, (facing + 1) % 4), (x, y, (facing - 1) % 4), (x - dx, y - dy, facing)]
        for state in before:
            if state not in distance and state[:2] in free and state[:2] not in goals:
                distance[state] = distance[x, y, facing] + 1
                line.append(state)
    return distance


def _walkable(cell: Any) -> bool:
    return cell is None or cell.type in ("goal", "floor") or (cell.type == "door" and cell.is_open)
