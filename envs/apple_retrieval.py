"""AppleRetrieval: walk right to an apple, then back; a toy in which fine-tuning forgets.

From arXiv 2402.02868, appendix A.2. The observation is one number, `-c` on the way out and `+c` on the way
back, so that both phases share every weight; the reward is +1 for a step in the right direction and -1
for one in the wrong. `start: back` begins at the apple: what a start policy is trained on, or what a probe
asks of one that is fine-tuned. The place is clamped: at 0 on the way out, at `distance` on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlft.errors import ConfigError
from rlft.starts import Starts, held_out_starts, training_starts

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class AppleRetrieval:
    """distance: steps to the apple; c: size of the observation; max_steps: of an episode; start: `home`, or
    `back` at the apple; train_size, held_out_size: starts, which are all alike."""

    distance: Annotated[int, Field(ge=1)] = 30
    c: Annotated[float, Field(gt=0)] = 0.3
    max_steps: Annotated[int, Field(ge=1)] = 100
    start: Literal["home", "back"] = "home"
    train_size: int = 100_000
    held_out_size: int = 20
    seed: int = 0

    traces = ("stage",)
    snapshots = "copy"
    solved_above = None

    def __post_init__(self) -> None:
        least = self.distance * (1 if self.start == "back" else 2)
        if self.max_steps < least:
            raise ConfigError(
                f"env apple_retrieval: max_steps={self.max_steps} is too few for a way of {least} steps"
            )

    def train(self) -> Starts:
        """Starts to train on."""
        return training_starts(self.train_size, self.seed)

    def held_out(self) -> Starts:
        """Starts to evaluate on."""
        return held_out_starts(self.held_out_size, self.seed)

    def make(self) -> gymnasium.Env:
        """One environment. `info`: stage, int `[1]`: 0 on the way out, 1 back, 2 home; success at the
        end."""
        return _walk(self)


def _walk(recipe: AppleRetrieval) -> gymnasium.Env:
    import gymnasium
    import numpy as np

    class Walk(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-recipe.c, recipe.c, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.back = recipe.start == "back"
            self.place, self.steps = recipe.distance if self.back else 0, 0
            return self._seen(), self._info(False)

        def step(self, action: Any) -> Any:
            right = bool(action)
            reward = 1.0 if right != self.back else -1.0
            self.place = min(self.place + (1 if right else -1), recipe.distance)
            if not self.back:
                self.place = max(self.place, 0)
                self.back = self.place == recipe.distance
            self.steps += 1
            won = self.back and self.place <= 0
            over = not won and self.steps >= recipe.max_steps
            info = self._info(won)
            if won or over:
                info["success"] = won
            return self._seen(), reward, won, over, info

        def _seen(self) -> Any:
            return np.array([recipe.c if self.back else -recipe.c], np.float32)

        def _info(self, won: bool) -> dict[str, Any]:
            return {"stage": np.array([2 if won else int(self.back)], np.int32)}

    return Walk()
