"""Which room a cell of a level belongs to, and the cells from which an episode may start elsewhere."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.roomgrid import RoomGrid
from minigrid.envs.fourrooms import FourRoomsEnv

_STEPS = tuple((int(dx), int(dy)) for dx, dy in DIR_TO_VEC)


def pitch(level: Any, walls: bool) -> int | None:
    """Cells from one room to the next: `room = (x // pitch, y // pitch)`; None: a single room.

    Four Rooms: half its width, so a room is a quadrant. BabyAI and other grids of rooms: the room's
    size, as the polychromic paper has it; `walls`: one less, which is where the walls stand (rooms
    share them).
    """
    if isinstance(level, FourRoomsEnv):
        return level.width // 2
    if isinstance(level, RoomGrid):
        return level.room_size - 1 if walls else level.room_size
    return None


def other_rooms(level: Any, pitch: int) -> list[tuple[int, int]]:
    """Free cells that can be walked to from where the agent is, doors that are not locked included,
    and that lie in another room; in the order of x, then y."""
    here = tuple(int(c) // pitch for c in level.agent_pos)
    return sorted(
        (x, y)
        for x, y in reachable(level)
        if (x // pitch, y // pitch) != here and _free(level, x, y)
    )


def reachable(level: Any) -> set[tuple[int, int]]:
    """Cells that the agent can walk to without moving anything, its own among them."""
    start = (int(level.agent_pos[0]), int(level.agent_pos[1]))
    seen, line = {start}, deque([start])
    while line:
        x, y = line.popleft()
        for dx, dy in _STEPS:
            cell = (x + dx, y + dy)
            if cell not in seen and _passable(level.grid.get(*cell)):
                seen.add(cell)
                line.append(cell)
    return seen


def clear_directions(level: Any, x: int, y: int) -> list[int]:
    """Directions in which an agent at (x, y) does not face an object, as at BabyAI's own starts."""
    facing = [level.grid.get(x + dx, y + dy) for dx, dy in _STEPS]
    return [d for d, cell in enumerate(facing) if cell is None or cell.type == "wall"]


def position_table(level: Any) -> list[list[np.ndarray]]:
    """`table[x][y]`: (x, y) as read-only int32 `[2]`, made once so that steps need not."""
    return [[_fixed(x, y) for y in range(level.height)] for x in range(level.width)]


def room_table(level: Any, pitch: int | None) -> list[list[np.ndarray]]:
    """`table[x][y]`: the room of (x, y) as read-only int32 `[2]`."""
    size = pitch or max(level.width, level.height)
    return [[_fixed(x // size, y // size) for y in range(level.height)] for x in range(level.width)]


def _fixed(*numbers: int) -> np.ndarray:
    array = np.array(numbers, dtype=np.int32)
    array.flags.writeable = False
    return array


def _free(level: Any, x: int, y: int) -> bool:
    return level.grid.get(x, y) is None and bool(clear_directions(level, x, y))


def _passable(cell: Any) -> bool:
    if cell is None or cell.type in ("goal", "floor"):
        return True
    return cell.type == "door" and not cell.is_locked
