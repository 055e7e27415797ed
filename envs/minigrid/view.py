"""MiniGrid's partial view, number for number, by tables: a level then steps about seven times as fast.

MiniGrid builds up to five grids of Python objects for each observation, and that is most of a step. Here
the cells in view are picked by a table of places, and what walls hide by a table of rows.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv


class _SharedWall(Wall):
    """The grey wall, one for all cells of all levels: a level of few objects is quick to look at and to
    pickle. A level that would change it is told not to."""

    def __setattr__(self, name: str, value: Any) -> None:
        if "_WALL" in globals():
            raise AttributeError(
                f"a level set {name} of a wall, but all grey walls are one object here; put another "
                f"wall in its place, or set env.fast_view: false"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> str:
        return "_WALL"


_WALL = _SharedWall()
_WALL_CODE, _EMPTY_CODE = bytes(_WALL.encode()), bytes((1, 0, 0))
_WIDEST = 7
"""Of views: the table of rows has `4 ** width` entries."""


def quick(level: Any) -> bool:
    """Lets `level` observe by the tables. False, and unchanged, if it has an observation of its own."""
    own = type(level)
    if (
        own.gen_obs is not MiniGridEnv.gen_obs
        or own.gen_obs_grid is not MiniGridEnv.gen_obs_grid
        or level.agent_view_size > _WIDEST
    ):
        return False
    # A class, not a method on the instance: nothing that a snapshot or a deep copy would have to carry.
    level.__class__ = _quick(own)
    return True


@functools.cache
def _quick(level_class: type) -> type:
    return type(level_class.__name__, (level_class,), {"gen_obs": _gen_obs})


def share_walls(level: Any) -> None:
    """Puts the one grey wall in the place of each that a new level was drawn with."""
    level.grid.grid = [
        _WALL if type(cell) is Wall and cell.color == "grey" else cell for cell in level.grid.grid
    ]


def _gen_obs(level: Any) -> dict[str, Any]:
    """What `MiniGridEnv.gen_obs` returns, image uint8 `[size, size, 3]`."""
    grid, size = level.grid, level.agent_view_size
    x, y = level.agent_pos
    cells = _picker(grid.width, grid.height, size, int(x), int(y), int(level.agent_dir))(
        [*grid.grid, _WALL]
    )
    codes, clear = [], [(1 << size) - 1] * size
    columns, rows = _places(size)
    for cell, column, row in zip(cells, columns, rows, strict=True):
        if cell is None:
            codes.append(_EMPTY_CODE)
        elif cell is _WALL:
            codes.append(_WALL_CODE)
            clear[row] &= ~column
        else:
            codes.append(bytes(cell.encode()))
            if not cell.see_behind():
                clear[row] &= ~column
    image = np.frombuffer(b"".join(codes), np.uint8).reshape(size, size, 3)
    if level.see_through_walls:
        image = image.copy()
    else:
        image = np.multiply(image, _visible(clear, size), out=np.empty_like(image))
    image[size // 2, size - 1] = level.carrying.encode() if level.carrying else (1, 0, 0)
    return {"image": image, "direction": level.agent_dir, "mission": level.mission}


def _visible(clear: list[int], size: int) -> np.ndarray:
    """0 or 1 `[size, size, 1]`, column then row. clear: of each row, the columns that can be seen
    through, as bits. Rows from the agent's own, the last, to the farthest."""
    table, masks = _rows(size), _masks(size)
    seen, rows = 1 << (size // 2), [0] * size
    for row in range(size - 1, -1, -1):
        rows[row], seen = table[seen][clear[row]]
    return masks[rows].T[:, :, None]


@functools.lru_cache(maxsize=200_000)
def _picker(width: int, height: int, size: int, x: int, y: int, facing: int) -> Callable:
    """From the cells of a grid, a wall at their end, to those in view; outside is that wall."""
    left = {0: x, 1: x - size // 2, 2: x - size + 1, 3: x - size // 2}[facing]
    top = {0: y - size // 2, 1: y, 2: y - size // 2, 3: y - size + 1}[facing]
    places = np.full((size, size), width * height)
    for i in range(size):
        for j in range(size):
            if 0 <= left + i < width and 0 <= top + j < height:
                places[i, j] = (top + j) * width + left + i
    for _ in range(facing + 1):
        places = places[::-1].T
    return operator.itemgetter(*places.ravel().tolist())


@functools.cache
def _places(size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each cell in view, column by column: its column as a bit, and its row."""
    columns = tuple(1 << i for i in range(size) for _ in range(size))
    return columns, tuple(range(size)) * size


@functools.cache
def _masks(size: int) -> np.ndarray:
    """`[2 ** size, size]`: the bits of each number."""
    return np.array([[m >> i & 1 for i in range(size)] for m in range(1 << size)], np.uint8)


@functools.cache
def _rows(size: int) -> list[list[tuple[int, int]]]:
    """`table[seen][clear]`: what is seen of a row in the end, and of the one beyond at first."""
    every = range(1 << size)
    return [[_row(seen, clear, size) for clear in every] for seen in every]


def _row(seen: int, clear: int, size: int) -> tuple[int, int]:
    """One row of MiniGrid's `process_vis`: sight spreads to the right, then to the left, through clear
    cells, and from each of those to the row beyond."""
    beyond = 0
    for i in range(size - 1):
        if seen & clear & 1 << i:
            seen |= 1 << i + 1
            beyond |= 3 << i
    for i in range(size - 1, 0, -1):
        if seen & clear & 1 << i:
            seen |= 1 << i - 1
            beyond |= 3 << i - 1
    return seen, beyond
