"""Games of the NetHack Learning Dataset (arXiv 2211.00539), through NLE's own loader.

NLD keeps terminal recordings, key presses and scores. What they do not hold is read from the screen: the
bottom-line statistics from its last two lines (the number of the dungeon, the alignment and a monster's
level are unknown, and 0), the hero's place from the cursor. Two faults of the data are worked around.
NLE's loader marks borders of games wrongly (`done`), so a game is read by itself, and a border within its
file is where the turn counter falls or the clock goes back or jumps. And a recording may begin with keys
that were pressed before the first observation; they are left out.
"""

from __future__ import annotations

import bz2
import functools
import pickle
import re
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlft.demonstrations import Demonstration
from rlft.errors import DataError

_PAUSE_US = 3_600_000_000
"""A clock that jumps by more than an hour is another game's."""
_CHUNK = 5_000
_TOP = re.compile(
    r"St:(?P<st>\d+)(?:/(?P<more>\d+|\*\*))? Dx:(\d+) Co:(\d+) In:(\d+) Wi:(\d+) Ch:(\d+)"
    r".*?(?:S:(\d+))?\s*$"
)
_LOW = re.compile(
    r"Dlvl:(-?\d+)\s+\S:(\d+)\s+HP:(-?\d+)\((\d+)\)\s+Pw:(-?\d+)\((\d+)\)\s+AC:(-?\d+)\s+"
    r"(?:Xp|Exp):(\d+)(?:/(\d+))?(?:\s+T:(\d+))?"
)
_HUNGER = ("Satiated", "", "Hungry", "Weak", "Fainting", "Fainted", "Starved")
_CAPACITY = ("", "Burdened", "Stressed", "Strained", "Overtaxed", "Overloaded")
_CONDITIONS = (
    *("Stone", "Slime", "Strngl", "FoodPois", "TermIll", "Blind", "Deaf", "Stun", "Conf", "Hallu"),
    *("Lev", "Fly", "Ride"),
)


def open_nld(spec: str, keys: Sequence[int]) -> NLD:
    """The data set of `FILE.db:NAME`. Raises DataError: no such file, no data base of nle.dataset, no such
    data set, or recordings that it names and that are not there."""
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name:
        raise DataError(f"nld:{spec}: expected nld:FILE.db:NAME")
    if not path.is_file():
        raise DataError(
            f"{path} is no file; expected a data base that nle.dataset made (nle.dataset.db.create, then "
            f"add_nledata_directory or add_altorg_directory)"
        )
    from nle import dataset

    try:
        with dataset.db.db(filename=str(path)) as conn:
            known = [row[0] for row in conn.execute("SELECT dataset_name FROM roots")]
        if name not in known:
            raise DataError(f"{path} has no data set {name!r}; it has {', '.join(known) or 'none'}")
        data = dataset.TtyrecDataset(name, batch_size=1, dbfilename=str(path), shuffle=False)
    except sqlite3.Error as error:
        raise DataError(f"{path} is no data base of nle.dataset: {error}") from error
    root = Path(data._rootpath)
    missing = [
        str(root / part)
        for game in data._gameids
        for part in data.get_paths(game)
        if not (root / part).is_file()
    ]
    if missing or not data._gameids:
        raise DataError(
            f"{path}, data set {name!r}: {len(missing)} recordings are missing, the first {missing[:1]}; "
            f"its root is {root} (nle.dataset.db.set_root changes it)"
        )
    if data._ttyrec_version < 2:
        raise DataError(f"{path}, data set {name!r} has no key presses: nothing to imitate")
    for game in data._gameids:
        for part in data.get_paths(game):
            _require_both_ends(root / part)
    return NLD(data, keys)


_HEAD, _FOOT = b"BZh", 0x177245385090
"""What a bzip2 stream begins with, and the 48 bits before its last checksum, at any bit of a byte."""


def _require_both_ends(path: Path) -> None:
    """Raises DataError: a file that is cut or something else. Its first and last bytes tell, so that a data
    set of terabytes is opened in seconds; what lies between is checked when it is read."""
    with path.open("rb") as stream:
        head = stream.read(len(_HEAD))
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 4096))
        tail = stream.read()
    # Files may be filled up with zeros, and a checksum may end in some.
    bare = tail.rstrip(b"\0")
    if head != _HEAD or not any(_ends(bare + bytes(zeros)) for zeros in range(7)):
        raise _damaged(path, f"{size:,} bytes that are no whole bzip2 stream")


def _ends(tail: bytes) -> bool:
    """Whether these are the last bytes of a bzip2 stream: its foot, a checksum, and less than a byte."""
    last = int.from_bytes(tail[-11:], "big")
    return any((last >> (32 + pad)) & (2**48 - 1) == _FOOT for pad in range(8))


def _require_whole(path: Path) -> None:
    """Raises DataError: NLE's reader takes what is damaged for the end of a game."""
    unpacker = bz2.BZ2Decompressor()
    try:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                while block:
                    if unpacker.eof:  # another stream may follow, or zeros
                        if not (block := block.lstrip(b"\0")):
                            break
                        unpacker = bz2.BZ2Decompressor()
                    unpacker.decompress(block)
                    block = unpacker.unused_data
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if not unpacker.eof:
        raise _damaged(path, "it ends before its stream does")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is damaged ({why}); copy it again, or take its game out of the data set (tables games, "
        f"ttyrecs and datasets of the data base)"
    )


_BLOCK = 256
"""Steps that are packed together."""


class _Game:
    """A game in memory: its steps packed by blocks, a twentieth of 4 kB a step and less, and the block that
    was read last as it is."""

    def __init__(self, whole: Demonstration) -> None:
        assert isinstance(whole.observations, dict)
        self.steps = len(whole)
        arrays = {**whole.observations, "action": whole.actions, "reward": whole.rewards}
        cuts = range(0, self.steps, _BLOCK)
        self._blocks = [
            zlib.compress(pickle.dumps({n: x[t : t + _BLOCK] for n, x in arrays.items()}), 1)
            for t in cuts
        ]
        self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def read(self, first: int, last: int) -> Demonstration:
        """Steps `first` to `last - 1`."""
        last = min(last, self.steps)
        numbers = range(first // _BLOCK, (max(first, last - 1)) // _BLOCK + 1)
        parts = [self._unpacked(number) for number in numbers]
        cut = slice(first - numbers[0] * _BLOCK, last - numbers[0] * _BLOCK)
        joined = {n: np.concatenate([p[n] for p in parts])[cut] for n in parts[0]}
        actions, rewards = joined.pop("action"), joined.pop("reward")
        return Demonstration(joined, actions, rewards, terminated=last >= self.steps)

    def _unpacked(self, number: int) -> dict[str, np.ndarray]:
        if self._last[0] != number:
            self._last = number, pickle.loads(zlib.decompress(self._blocks[number]))
        return self._last[1]


class NLD:
    """The games of a data set. kept: how many stay in memory."""

    def __init__(self, data: Any, keys: Sequence[int], kept: int = 16) -> None:
        self._data, self._num_actions = data, len(keys)
        # Of actions that press the same key the last counts, as everywhere here.
        self._action = np.full(256, -1, np.int64)
        self._action[np.asarray(keys)] = np.arange(len(keys))
        self.names = [str(game) for game in data._gameids]
        self.seeds = [None] * len(self.names)  # a recording of a terminal has none
        self._lengths: dict[int, int] = {}
        self._whole: set[Path] = set()
        self._game = functools.lru_cache(maxsize=kept)(self._unpacked)

    def keep(self, games: int) -> None:
        """Says how many games are read at a time: each of them is converted once."""
        if games > self._game.cache_info().maxsize:
            self._game = functools.lru_cache(maxsize=games)(self._unpacked)

    def steps(self, game: int) -> int:
        if game not in self._lengths:
            self._lengths[game] = self._game(game).steps
        return self._lengths[game]

    def read(self, game: int, first: int, last: int) -> Demonstration:
        """See `Recordings.read`."""
        return self._game(game).read(first, last)

    def summary(self) -> str:
        return f"{len(self.names):,} games of NLD"

    def _unpacked(self, game: int) -> _Game:
        number = self._data._gameids[game]
        for path in (Path(self._data._rootpath) / part for part in self._data.get_paths(number)):
            if path not in self._whole:  # a game that was given up comes again
                _require_whole(path)
                self._whole.add(path)
        parts = self._data.get_ttyrec(number, chunk_size=_CHUNK)
        if not parts:
            raise DataError(f"game {number} of NLD has no frame: take it out of the data set")
        joined = {key: np.concatenate([p[key][0] for p in parts]) for key in parts[0]}
        joined = {key: array[joined["gameids"] == number] for key, array in joined.items()}
        stats, known = statistics(joined["tty_chars"], joined["tty_cursor"])
        if not known.any():
            raise DataError(f"game {number} of NLD never shows its status lines")
        begin = int(np.argmax(known))
        joined = {key: array[begin:] for key, array in joined.items()}
        stats = stats[begin:]
        upto = first_border(joined["timestamps"], stats[:, 20])
        actions = self._action[joined["keypresses"][:upto]]
        if (actions < 0).any():
            key = int(joined["keypresses"][int(np.argmax(actions < 0))])
            raise DataError(
                f"game {number} of NLD presses the key {key}, which is none of the environment's "
                f"{self._num_actions} actions; set env.actions: full"
            )
        score = joined["scores"][:upto] if "scores" in joined else stats[:upto, 9]
        reward = np.diff(score.astype(np.float32), append=score[-1:].astype(np.float32))
        seen = {
            "tty_chars": joined["tty_chars"][:upto],
            "tty_colors": joined["tty_colors"][:upto],
            "tty_cursor": joined["tty_cursor"][:upto].astype(np.uint8),
            "blstats": stats[:upto],
            "prev_action": np.concatenate([[self._num_actions], actions[:-1]]),
        }
        return _Game(Demonstration(seen, actions, reward))


def first_border(timestamps: np.ndarray, turns: np.ndarray) -> int:
    """How many frames belong to the first game: until the turn counter falls from above 1, or the clock
    (microseconds) goes back or jumps by more than an hour."""
    step = np.diff(timestamps)
    fell = (np.diff(turns) < 0) & (turns[1:] > 0)
    border = np.flatnonzero((step < 0) | (step > _PAUSE_US) | fell)
    return int(border[0]) + 1 if len(border) else len(timestamps)


def statistics(chars: np.ndarray, cursor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NLE's bottom-line statistics int32 `[T, 27]` as far as the last two lines of screens `[T, 24, 80]`
    say them, and bool `[T]`, whether they had been shown by then. While a menu covers them they stay."""
    found = np.zeros((len(chars), 27), np.int32)
    known = np.zeros(len(chars), bool)
    now, shown, before = np.zeros(27, np.int32), False, b""
    for t, screen in enumerate(chars):
        lines = screen[22:24].tobytes()
        if lines != before:
            before = lines
            read = _read(lines[:80].decode("latin-1"), lines[80:].decode("latin-1"))
            if read is not None:
                now, shown = read, True
        found[t], known[t] = now, shown
    found[:, :2] = _places(chars, cursor)
    return found, known


def _places(chars: np.ndarray, cursor: np.ndarray) -> np.ndarray:
    """The hero's (x, y) on the map, int32 `[T, 2]`: the cursor's where an @ is under it, which is then the
    hero, and else the last such place."""
    row, column = np.minimum(cursor, (23, 79)).astype(np.int64).T
    times = np.arange(len(chars))
    there = (chars[times, row, column] == ord("@")) & (row > 0) & (row < 22)
    last = np.maximum.accumulate(np.where(there, times, -1))
    at = np.where(last < 0, np.argmax(there), last)  # before the first, the first
    return np.stack([column[at], np.maximum(row[at] - 1, 0)], -1).astype(np.int32)


def _read(top: str, low: str) -> np.ndarray | None:
    above, below = _TOP.search(top), _LOW.search(low)
    if above is None or below is None:
        return None
    x = np.zeros(27, np.int32)
    strength = int(above["st"])
    if above["more"]:
        strength = 118 if above["more"] == "**" else 18 + int(above["more"])
    elif strength > 18:
        strength += 100
    x[2] = (  # NLE's STR25, which is what the game computes with; and its STR125
        strength if strength <= 18 else 19 + strength // 50 if strength <= 121 else strength - 100
    )
    x[3] = strength
    _, _, *rest = above.groups()
    x[4:9] = [int(n) for n in rest[:5]]
    x[9] = int(rest[5] or 0)
    depth, gold, hp, most_hp, power, most_power, armour, level, points, turn = (
        int(n or 0) for n in below.groups()
    )
    x[10:17] = hp, most_hp, depth, gold, power, most_power, armour
    x[18:21] = level, points, turn
    words = low[below.end() :].split()
    x[21] = next((i for i, word in enumerate(_HUNGER) if word in words), 1)
    x[22] = next((i for i, word in enumerate(_CAPACITY) if word in words), 0)
    x[24] = depth
    x[25] = sum(1 << i for i, word in enumerate(_CONDITIONS) if word in words)
    return x
