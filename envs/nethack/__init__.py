"""NetHack by the NetHack Learning Environment (NLE, arXiv 2006.13760): every task of NLE, by name.

The interface is the one in which AutoAscend's games were recorded and the NetHack policies of "Fine-tuning
Reinforcement Learning Models is Secretly a Forgetting Mitigation Problem" (arXiv 2402.02868) play: a Human
Monk, all 121 actions, menus and questions left to the policy, no penalty for idle steps. See
docs/nethack.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlft.errors import ConfigError
from rlft.starts import MOST_HELD_OUT, Starts, held_out_starts, training_starts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import gymnasium
    import numpy as np

TASKS = {
    "score": "NetHackScore",
    "staircase": "NetHackStaircase",
    "staircase_pet": "NetHackStaircasePet",
    "pet": "NetHackStaircasePet",
    "oracle": "NetHackOracle",
    "gold": "NetHackGold",
    "eat": "NetHackEat",
    "scout": "NetHackScout",
    "challenge": "NetHackScore",
}
"""NLE's class of each task. NLE's own NetHackChallenge refuses seeds, so `challenge` is `score` with its
rules: a random character, every question asked, an end after 10,000 steps without a turn."""

TRACES = ("dungeon", "position")


@dataclass(frozen=True)
class NetHack:
    """task: `score` (points gained), `staircase` (reach stairs down), `staircase_pet` or `pet` (with the
    pet beside), `oracle`, `gold`, `eat`, `scout` (squares seen), `challenge` (NetHackChallenge, seeded).

    character: role-race-gender-alignment in three letters each, `@` a random one; null: a Human Monk, in
    `challenge` a random one. actions: `full`, the 121 of nle.nethack.ACTIONS, or `task`, NLE's 23 for
    its tasks. menus: whether the policy answers questions, menus and --More-- itself; false: NLE
    declines most of them. penalty_step: added to the reward of a step that takes no turn; null: 0 in
    `score` and `challenge`, elsewhere NLE's -0.01. max_steps: actions after which an episode is
    truncated; no_progress: steps without a turn after which it is, null: never (10,000 in `challenge`).
    traces: of `dungeon` (number, level) and `position` (x, y), recorded at every step.
    snapshots: `replay` plays an episode again from its seed; NetHack's state cannot be copied.
    train_size, held_out_size: how many seeds each part has; seed: picks them, not the run's seed.
    """

    task: Literal[tuple(TASKS)] = "score"  # type: ignore[valid-type]
    character: str | None = None
    actions: Literal["full", "task"] = "full"
    menus: bool = True
    penalty_step: float | None = None
    max_steps: int = 100_000
    no_progress: int | None = None
    traces: tuple[str, ...] = ()
    snapshots: Literal["replay", "none"] = "replay"
    train_size: int = 1_000_000
    held_out_size: int = 100
    seed: int = 0

    solved_above = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_steps", 1, 10**9),
            ("no_progress", 1, 10**9),
            ("train_size", 1, 10**8),
            ("held_out_size", 1, MOST_HELD_OUT),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value} must be from {low} to {high}")
        unknown = [name for name in self.traces if name not in TRACES]
        if unknown:
            raise ConfigError(f"traces: no trace {unknown[0]!r}; NetHack has {', '.join(TRACES)}")
        if self.character is not None and self.character != "@":
            parts = self.character.split("-")
            if not 1 <= len(parts) <= 4 or any(len(part) != 3 for part in parts):
                raise ConfigError(
                    f"character={self.character!r}; expected role-race-gender-alignment in three letters "
                    f"each, such as mon-hum-neu-mal, or @ for a random one"
                )

    def train(self) -> Starts:
        """Seeds to train on."""
        return training_starts(self.train_size, self.seed)

    def held_out(self) -> Starts:
        """Seeds to evaluate on; none of them is a training seed."""
        return held_out_starts(self.held_out_size, self.seed)

    def make(self) -> gymnasium.Env:
        """One game. Raises ConfigError: the package nle is not installed, or a character that NetHack
        does not have."""
        try:
            from envs.nethack.game import Game
        except ImportError as error:
            if (error.name or "").split(".")[0] not in ("nle", "gymnasium"):
                raise
            raise ConfigError(
                "env nethack needs the package nle: pip install 'rlft[nethack]'"
            ) from error
        return Game(self)

    def milestones(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of what was seen `[T, ...]`: depth, dungeon (0 the main one, 2 the Gnomish Mines, 4 Sokoban),
        level within it and experience, `[T]` each."""
        from envs.nethack.game import DEPTH, DUNGEON, DUNGEON_LEVEL, LEVEL

        stats = observations["blstats"]
        places = {
            **{"depth": DEPTH, "dungeon": DUNGEON},
            **{"dungeon_level": DUNGEON_LEVEL, "experience": LEVEL},
        }
        return {name: stats[:, at] for name, at in places.items()}

    def recordings(self, path: str) -> Any:
        """Recorded games at `path`, read piece by piece: see envs/nethack/demonstrations.py."""
        from envs.nethack.demonstrations import open_recordings

        return open_recordings(path, self)
