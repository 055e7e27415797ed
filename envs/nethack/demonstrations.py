"""Recorded games as demonstrations: shards of compressed arrays, or NLD's data base.

A folder of shards has `games.jsonl` (a game a line: `game`, `set`, `steps`, `files`), `actions.json` (the
actions in index order, with their `key`) and the shards, xz-compressed `.npz` files of some thousand steps
each: row t is what was seen before action t. `DIR` reads all sets, `DIR/SET` one. `nld:FILE.db:NAME` reads
the data set NAME of a data base that nle.dataset made (nld.py).

Shards are unpacked when they are read from and a few are kept; a game of 60,000 steps is 250 MB unpacked.
"""

from __future__ import annotations

import functools
import io
import json
import lzma
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlft.demonstrations import Demonstration
from rlft.errors import DataError

if TYPE_CHECKING:
    from envs.nethack import NetHack
    from rlft.recordings import Recordings

NLD = "nld:"
_SCREEN = {
    "tty_chars": ((24, 80), np.uint8),
    "tty_colors": ((24, 80), np.int8),
    "tty_cursor": ((2,), np.uint8),
    "blstats": ((27,), np.int32),
    "action": ((), np.uint8),
    "prev_action": ((), np.int16),
    "reward": ((), np.float32),
    "done": ((), np.bool_),
}
"""What is read of a shard: `[T, ...]` each."""
_DAMAGED = (OSError, ValueError, EOFError, KeyError, lzma.LZMAError, zipfile.BadZipFile)


@functools.lru_cache(maxsize=2)
def open_recordings(path: str, recipe: NetHack) -> Recordings | None:
    """The recordings at `path` for the environment `recipe`, checked from end to end; None: a path of the
    formats that are read whole. Raises DataError: nothing there, damaged, or other actions."""
    keys = keys_of(recipe)
    if path.startswith(NLD):
        from envs.nethack.nld import open_nld

        return open_nld(path.removeprefix(NLD), keys)
    folder = Path(path).expanduser()
    if folder.suffix in (".npz", ".jsonl") or path.startswith("minari:"):
        return None
    if not folder.is_dir():
        raise DataError(
            f"{path} is no folder; expected recorded games: a folder with games.jsonl (or a set in it), "
            f"or {NLD}FILE.db:NAME"
        )
    return Shards(folder, keys)


def keys_of(recipe: NetHack) -> tuple[int, ...]:
    """Codes of the keys that the environment's actions press, in index order."""
    from nle import nethack
    from nle.env import tasks

    actions = nethack.ACTIONS if recipe.actions == "full" else tasks.TASK_ACTIONS
    return tuple(int(key) for key in actions)


class Shards:
    """The games of a folder of shards. kept: how many shards stay unpacked, some 20 MB each."""

    def __init__(self, folder: Path, keys: Sequence[int], kept: int = 48) -> None:
        root, chosen = folder, ""
        if not (root / "games.jsonl").is_file() and (root.parent / "games.jsonl").is_file():
            root, chosen = root.parent, folder.name
        rows = [r for r in _lines(root / "games.jsonl") if not chosen or r["set"] == chosen]
        if not rows:
            of = f" of set {chosen!r}" if chosen else ""
            raise DataError(f"{root / 'games.jsonl'} has no game{of}")
        _same_actions(root / "actions.json", keys)
        self._root, self._num_actions = root, len(keys)
        self.names = [f"{r['set']}/{r['game']}" for r in rows]
        self.seeds = [_seed_of(r) for r in rows]
        self._files: list[list[str]] = [list(r["files"]) for r in rows]
        self._lengths = self._checked([int(r["steps"]) for r in rows])
        self._ends = [np.cumsum(lengths) for lengths in self._lengths]
        self._shard = functools.lru_cache(maxsize=kept)(self._unpacked)

    def keep(self, games: int) -> None:
        """See `Recordings.keep`."""
        if games > self._shard.cache_info().maxsize:
            self._shard = functools.lru_cache(maxsize=games)(self._unpacked)

    def steps(self, game: int) -> int:
        return int(self._ends[game][-1])

    def read(self, game: int, first: int, last: int) -> Demonstration:
        """See `Recordings.read`."""
        ends, files = self._ends[game], self._files[game]
        parts: list[Mapping[str, np.ndarray]] = []
        for number in range(int(np.searchsorted(ends, first, "right")), len(files)):
            begin = int(ends[number - 1]) if number else 0
            if begin >= last:
                break
            arrays = self._shard(files[number])
            cut = slice(max(0, first - begin), last - begin)
            parts.append({name: array[cut] for name, array in arrays.items()})
        joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        return demonstration(joined, self._num_actions)

    def summary(self) -> str:
        steps = sum(int(ends[-1]) for ends in self._ends)
        shards = sum(len(files) for files in self._files)
        return f"{len(self.names):,} games of {steps:,} steps in {shards:,} shards"

    def _checked(self, promised: Sequence[int]) -> list[list[int]]:
        """Lengths of all shards of each game: every one is unpacked once, so that damage shows now."""
        flat = [name for files in self._files for name in files]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            lengths = dict(zip(flat, pool.map(self._length, flat), strict=True))
        found = [[lengths[name] for name in files] for files in self._files]
        for name, there, steps in zip(self.names, found, promised, strict=True):
            if sum(there) != steps or not steps:
                raise DataError(
                    f"{self._root}: game {name} has {sum(there)} steps in its shards, games.jsonl says "
                    f"{steps}; copy the folder again"
                )
        return found

    def _length(self, name: str) -> int:
        """Of a shard, all of which is looked at: it is unpacked anyway, and a run must not end on it."""
        found = self._unpacked(name)
        for key, least in (("action", 0), ("prev_action", -1)):
            x = found[key]
            if len(x) and not least <= int(x.min()) <= int(x.max()) < self._num_actions:
                raise DataError(
                    f"{self._root / name}: {key} goes from {x.min()} to {x.max()}, expected {least} to "
                    f"{self._num_actions - 1}"
                )
        if not np.isfinite(found["reward"]).all():
            raise DataError(f"{self._root / name} holds a reward that is no finite number")
        return len(found["action"])

    def _unpacked(self, name: str) -> dict[str, np.ndarray]:
        arrays = self._opened(name)
        with _damage_of(self._root / name):
            found = {key: arrays[key] for key in _SCREEN}
        steps = len(found["action"])
        for key, (shape, dtype) in _SCREEN.items():
            if found[key].shape != (steps, *shape) or found[key].dtype != dtype:
                raise DataError(
                    f"{self._root / name}: {key} is {found[key].dtype} {list(found[key].shape)}, expected "
                    f"{np.dtype(dtype)} {[steps, *shape]}"
                )
        return found

    def _opened(self, name: str) -> Any:
        path = self._root / name
        if not path.is_file():
            raise DataError(f"{path} is missing, which games.jsonl names; copy the folder again")
        with _damage_of(path):
            arrays = np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False)
        missing = [key for key in _SCREEN if key not in arrays.files]
        if missing:
            raise DataError(f"{path} has no array {missing[0]!r}; it has {sorted(arrays.files)}")
        return arrays


def demonstration(arrays: Mapping[str, np.ndarray], num_actions: int) -> Demonstration:
    """Arrays `[T, ...]` of a shard as what the environment shows and takes."""
    prev = arrays["prev_action"].astype(np.int64)
    return Demonstration(
        {
            **{name: arrays[name] for name in ("tty_chars", "tty_colors", "tty_cursor", "blstats")},
            "prev_action": np.where(prev < 0, num_actions, prev),
        },
        arrays["action"].astype(np.int64),
        arrays["reward"],
        terminated=bool(arrays["done"].any()),
    )


class _damage_of:
    """What is raised while a damaged file is read becomes a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _DAMAGED) and not isinstance(error, DataError):
            raise DataError(
                f"{self._path} is damaged or no xz-compressed .npz ({type(error).__name__}: {error}); copy "
                f"it again, or take its game out of games.jsonl"
            ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} is missing: the folder holds no recorded games")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        needed = ("game", "set", "steps", "files")
        return [{**{k: row[k] for k in needed}, "seed_core": row.get("seed_core")} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected an object a line with game, set, steps and files: {error!r}"
        ) from error


def _seed_of(row: Mapping[str, Any]) -> int | None:
    """What `reset(seed=)` takes to begin the game again, where it is known."""
    seed = row["seed_core"]
    return seed if isinstance(seed, int) and 0 <= seed < 2**63 else None


def _same_actions(path: Path, keys: Sequence[int]) -> None:
    try:
        recorded = [int(action["key"]) for action in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a list of actions with their key: {error!r}") from error
    if recorded != list(keys):
        differ = next(
            (i for i, (a, b) in enumerate(zip(recorded, keys, strict=False)) if a != b),
            min(len(recorded), len(keys)),
        )
        raise DataError(
            f"{path}: the games were recorded with {len(recorded)} actions, the environment has "
            f"{len(keys)}, and number {differ} is another key; set env.actions to what they were recorded "
            f"with (full: the 121 of nle.nethack.ACTIONS)"
        )
