"""One game of NetHack as a Gymnasium environment. Imports nle.

What differs from NLE's own environment: `reset(seed=)` seeds NetHack; an episode that reaches a limit is
truncated and its last observation is what was there (NLE reports a death, and quits the game first); a step
copies only what a reward needs; and the last step says how the game went (`info["facts"]`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from nle import nethack
from nle.env import tasks

from envs.nethack import TASKS
from envs.nethack.screen import picture, text
from rlft.errors import ConfigError

if TYPE_CHECKING:
    from envs.nethack import NetHack

_KEYS = ("tty_chars", "tty_colors", "tty_cursor", "blstats")
DEPTH, LEVEL, DUNGEON, DUNGEON_LEVEL = 12, 18, 23, 24
_SCORE, _TURN = 9, 20
"""Places in NLE's bottom-line statistics."""
SOKOBAN = 4
"""The number of that dungeon."""


def spaces_of(num_actions: int) -> spaces.Dict:
    """What a policy sees: the terminal `[24, 80]` as characters and colours, the cursor, NLE's 27
    bottom-line statistics, and the action before (`num_actions`: none)."""
    whole = np.iinfo(np.int32)
    return spaces.Dict(
        {
            "tty_chars": spaces.Box(0, 255, (24, 80), np.uint8),
            "tty_colors": spaces.Box(0, 31, (24, 80), np.int8),
            "tty_cursor": spaces.Box(0, 255, (2,), np.uint8),
            "blstats": spaces.Box(whole.min, whole.max, (27,), np.int32),
            "prev_action": spaces.Discrete(num_actions + 1),
        }
    )


class Game(gymnasium.Wrapper):
    """A task of NLE as `recipe` (envs/nethack/__init__.py) says."""

    def __init__(self, recipe: NetHack) -> None:
        super().__init__(_task_of(recipe))
        self.metadata = {**self.metadata, "film_pixels": 480}  # smaller, no letter can be read
        self._game: Any = self.env
        challenge = recipe.task == "challenge"
        self.max_steps = recipe.max_steps
        self.no_progress = recipe.no_progress or (10_000 if challenge else None)
        self.num_actions = len(self._game.actions)
        self.observation_space = spaces_of(self.num_actions)
        self._traces = recipe.traces
        self._rewarded = recipe.task in ("staircase", "staircase_pet", "pet", "oracle")
        self._blstats = self._game.last_blstats

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins a game. seed: NetHack's `core` seed, None: a random one; options: `{"disp": ...}`, its
        second seed (which changes nothing of a game here), else the first again."""
        core = seed if seed is None else int(seed)
        disp = (options or {}).get("disp", core)
        # It holds for one reset, and only without `reseed`.
        self._game.seed(core, disp, reseed=False)
        self._seen, _ = self._game.reset()
        self._steps = self._idle = 0
        self._prev = self.num_actions
        self._score = self._depth = self._level = self._turn = 0
        self._sokoban = False
        self._keep_facts()
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Takes one of the actions; see NLE."""
        action = int(action)
        turn = self._turn
        reward, done, won = self._game.advance(action)
        self._prev = action
        self._steps += 1
        if not done:  # after the end every number is 0
            self._keep_facts()
        self._idle = self._idle + 1 if self._turn == turn else 0
        truncated = not done and (
            self._steps >= self.max_steps
            or (self.no_progress is not None and self._idle >= self.no_progress)
        )
        info = self._info()
        if done or truncated:
            info["facts"] = self._facts(done, won)
            if self._rewarded:
                info["success"] = won
        return self._observation(), reward, done, truncated, info

    def render(self) -> np.ndarray:
        """The screen as it is now as uint8 `[264, 480, 3]`, for films."""
        return picture(self._seen["tty_chars"], self._seen["tty_colors"])

    def text(self) -> str:
        """The screen as it is now, 24 lines."""
        return text(self._seen["tty_chars"])

    def _observation(self) -> dict[str, Any]:
        seen = self._seen
        return {
            "tty_chars": seen["tty_chars"],
            "tty_colors": seen["tty_colors"],
            "tty_cursor": seen["tty_cursor"],
            "blstats": self._blstats.astype(np.int32),
            "prev_action": np.int64(self._prev),
        }

    def _info(self) -> dict[str, Any]:
        if not self._traces:
            return {}
        b = self._blstats
        known = {"dungeon": (b[DUNGEON], b[DUNGEON_LEVEL]), "position": (b[0], b[1])}
        return {name: np.array(known[name], np.int32) for name in self._traces}

    def _keep_facts(self) -> None:
        b = self._blstats.tolist()  # one call, where reading numbers of an array is one each
        self._turn, self._score = b[_TURN], b[_SCORE]
        if b[DEPTH] > self._depth:
            self._depth = b[DEPTH]
        if b[LEVEL] > self._level:
            self._level = b[LEVEL]
        if b[DUNGEON] == SOKOBAN:
            self._sokoban = True

    def _facts(self, done: bool, won: bool) -> dict[str, float | str]:
        """How the game went: score as the bottom line had it (before the points that NetHack adds at the
        end), turns, deepest level, highest experience level, whether Sokoban was entered, how it ended."""
        how = "won" if won else "alive"
        if done and not won:
            how = self._game.death()
        return {
            "score": float(self._score),
            "turns": float(self._turn),
            "depth": float(self._depth),
            "level": float(self._level),
            "sokoban": float(self._sokoban),
            "death": how,
        }


def _task_of(recipe: NetHack) -> Any:
    challenge = recipe.task == "challenge"
    settings: dict[str, Any] = {
        "character": recipe.character or ("@" if challenge else "mon-hum-neu-mal"),
        "actions": nethack.ACTIONS if recipe.actions == "full" else tasks.TASK_ACTIONS,
        "observation_keys": _KEYS,
        "allow_all_yn_questions": recipe.menus,
        "allow_all_modes": recipe.menus,
        "max_episode_steps": 2**62,  # `Game` has the limit
        "fix_moon_phase": True,  # else the calendar is part of a game
    }
    if recipe.penalty_step is not None:
        settings["penalty_step"] = recipe.penalty_step
    elif recipe.task in ("score", "challenge"):
        settings["penalty_step"] = 0.0
    cls = getattr(tasks, TASKS[recipe.task])
    try:
        return type(cls.__name__, (_Lean, cls), {})(**settings)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"env nethack cannot be made with {settings}: {error}") from error


class _Lean:
    """A task of NLE whose step copies two small arrays in place of all observations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        game: Any = self
        self._keycodes = [int(key) for key in game.actions]
        buffers = game.nethack._obs
        self.last_blstats = buffers[game._blstats_index]
        self._internal_now = buffers[game._internal_index]
        self._state_now = buffers[game._program_state_index]
        self._press = game.nethack._pynethack.step
        self._over = game.nethack._pynethack.done
        self._free = game.penalty_step == 0 and game.penalty_time == 0
        # Points gained are all that is paid, and only death ends a game.
        self._plain = self._free and type(self).__bases__[1] is tasks.NetHackScore
        self._in_game = game.nethack._pynethack.in_normal_game
        self._buffers = game.nethack._obs
        before = list(buffers)
        self._blstats_before = self.last_blstats.copy()
        self._internal_before = self._internal_now.copy()
        before[game._blstats_index] = self._blstats_before
        before[game._internal_index] = self._internal_before
        self._before = tuple(before)

    def advance(self, action: int) -> tuple[float, bool, bool]:
        """(reward, whether the episode is over, whether the task was fulfilled), as NLE.step says it."""
        game: Any = self
        if self._plain:
            return self._advance_plain(action)
        np.copyto(self._blstats_before, self.last_blstats)
        np.copyto(self._internal_before, self._internal_now)
        self._press(self._keycodes[action])
        seen, done = self._buffers, self._over()
        if not game._allow_all_modes or self._state_now[0] == 1:
            seen, done = game._perform_known_steps(seen, done, exceptions=True)
        game.last_observation = seen
        status = int(done or game._is_episode_end(seen))
        reward = float(game._reward_fn(self._before, action, seen, status))
        won = status > 1
        if won and not done:
            game._quit_game(seen, done)
        return reward, status != 0, won

    def _advance_plain(self, action: int) -> tuple[float, bool, bool]:
        game: Any = self
        before = self.last_blstats[_SCORE]
        self._press(self._keycodes[action])
        done = self._over()
        if not game._allow_all_modes or self._state_now[0] == 1:
            _, done = game._perform_known_steps(self._buffers, done, exceptions=True)
        gained = self.last_blstats[_SCORE] - before
        # After the end every number is 0, which is no loss.
        return float(gained) if gained and self._in_game() else 0.0, bool(done), False

    def _get_time_penalty(self, last_observation: Any, observation: Any) -> float:
        if self._free:
            return 0.0
        return super()._get_time_penalty(last_observation, observation)  # type: ignore[misc]

    def death(self) -> str:
        """What NetHack wrote of the last game's end into its log: `killed by a jackal`, `quit`."""
        game: Any = self
        log = Path(game.nethack._vardir) / "xlogfile"
        lines = log.read_text(encoding="latin-1").splitlines() if log.is_file() else []
        for entry in lines[-1].split("\t") if lines else []:
            name, _, value = entry.partition("=")
            if name == "death":
                return value
        return str(game.nethack.how_done()).rpartition(".")[2].lower()
