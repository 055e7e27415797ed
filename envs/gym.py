"""Any Gymnasium environment: one of its registry, or a class of your own (`file.py:Class`).

See docs/write-a-gym-environment.md. The wrappers are Gymnasium's; nothing here imports it before an
environment is made.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlft import registry
from rlft.errors import ConfigError, UserError, did_you_mean
from rlft.starts import MOST_HELD_OUT, Starts, held_out_starts, training_starts

if TYPE_CHECKING:
    import gymnasium

_OWN_ID = re.compile(r"(\.py|^[\w.]+):[A-Za-z_][\w.]*$")
"""`file.py:Class` or `module:Class`; Gymnasium's own `module:Name-v0` ends in a version."""


@dataclass(frozen=True)
class Gym:
    """id: of Gymnasium's registry (`CartPole-v1`, `module:Name-v0`), or a class or function of your own
    as `file.py:attr` or `module:attr`; kwargs: what it is made with; max_steps: actions after which an
    episode is truncated, null for what the registry says; wrappers: each a name in
    gymnasium.wrappers or `file.py:attr`, alone or with arguments (`{name: FrameStackObservation,
    stack_size: 4}`), innermost first.

    observation: `as_is`, or `flat`: one vector, whatever it was; clip_actions: a Box action outside its
    bounds is moved to them, and the policy sees a space without bounds (false: it sees the bounds).
    traces: names in `info` that diversity functions and evaluation read, each a whole number or a few;
    `cell` is made here: an observation of whole numbers as it is, any other in steps of cell_size.
    snapshots: how vines return to a state (rlft/sampling/snapshot.py); solved_above: the return above
    which an episode is a success, where `info` has no `success`; limit: `ends`, where running out of steps
    is part of the task and worth nothing more; `cuts`: the critic says what would have come.
    train_size, held_out_size: how many seeds each part has; seed: picks them, not the run's seed.
    """

    id: str
    kwargs: Mapping[str, Any] | None = None
    max_steps: int | None = None
    wrappers: tuple[str | Mapping[str, Any], ...] = ()
    observation: Literal["as_is", "flat"] = "as_is"
    clip_actions: bool = True
    traces: tuple[str, ...] = ()
    cell_size: float | None = None
    snapshots: Literal["copy", "replay", "none"] = "copy"
    solved_above: float | None = None
    limit: Literal["cuts", "ends"] = "cuts"
    train_size: int = 1_000_000
    held_out_size: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps} must be at least 1, or null")
        if self.cell_size is not None and ("cell" not in self.traces or not self.cell_size > 0):
            raise ConfigError(
                f"cell_size={self.cell_size} must be above 0 and needs `traces: [cell]`, got traces "
                f"{list(self.traces)}"
            )
        if not 1 <= self.held_out_size <= MOST_HELD_OUT:
            raise ConfigError(
                f"held_out_size={self.held_out_size} must be from 1 to {MOST_HELD_OUT}"
            )
        if not 1 <= self.train_size <= 100_000_000:
            raise ConfigError(f"train_size={self.train_size} must be from 1 to 100000000")

    def train(self) -> Starts:
        """Seeds to train on."""
        return training_starts(self.train_size, self.seed)

    def held_out(self) -> Starts:
        """Seeds to evaluate on; none of them is a training seed."""
        return held_out_starts(self.held_out_size, self.seed)

    def make(self) -> gymnasium.Env:
        """One environment. Raises ConfigError: the environment cannot be had, a wrapper
        does not exist or does not fit, a space that no policy is made for."""
        import gymnasium as gym

        env = self._bare(gym)
        for spec in self.wrappers:
            env = self._wrapped(env, spec)
        _refuse_running_numbers(env, gym, self.id)
        if self.observation == "flat":
            if not env.observation_space.is_np_flattenable:
                raise ConfigError(
                    f"env {self.id}: observation: flat cannot make a vector of "
                    f"{env.observation_space!r:.120}; make an array of it with a wrapper of your own "
                    f"(`wrappers: [my_wrapper.py:Class]`)"
                )
            env = gym.wrappers.FlattenObservation(env)
        from rlft.sampling.spaces import check_spaces

        check_spaces(env.observation_space, env.action_space, f"env {self.id}")
        if self.clip_actions and isinstance(env.action_space, gym.spaces.Box):
            env = gym.wrappers.ClipAction(env)
        if "cell" not in self.traces:
            return env
        from rlft.sampling.cells import Cells

        return Cells(env, self.cell_size)

    def _bare(self, gym: Any) -> gymnasium.Env:
        kwargs = dict(self.kwargs or {})
        try:
            if not _OWN_ID.search(self.id):
                # The registry's limit is replaced; `disable`: rlft checks observations itself.
                return gym.make(
                    self.id, max_episode_steps=self.max_steps, disable_env_checker=True, **kwargs
                )
            made = registry.resolve("environment", self.id)(**kwargs)
        except UserError:
            raise
        except Exception as error:  # whatever its code raises
            own = ", expected file.py:Class" if self.id.endswith(".py") else ""
            raise ConfigError(
                f"env {self.id}{own} cannot be made with {kwargs}: {_told(error)}"
            ) from error
        if not isinstance(made, gym.Env):
            raise ConfigError(
                f"env {self.id} made a {type(made).__name__}, expected a gymnasium.Env (for an "
                f"environment of the old gym, use the package shimmy)"
            )
        return gym.wrappers.TimeLimit(made, self.max_steps) if self.max_steps else made

    def _wrapped(self, env: gymnasium.Env, spec: str | Mapping[str, Any]) -> gymnasium.Env:
        import gymnasium as gym

        keys = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = str(keys.pop("name", ""))
        if ":" in name:
            wrapper = registry.resolve("wrapper", name)
        else:
            known = [n for n, w in vars(gym.wrappers).items() if inspect.isclass(w)]
            if name not in known:
                raise ConfigError(
                    f"env {self.id}: no wrapper {name!r} in gymnasium.wrappers."
                    f"{did_you_mean(name, known)} Name one of it, or your own as file.py:Class; with "
                    f"arguments as {{name: ..., key: value}}"
                )
            wrapper = getattr(gym.wrappers, name)
        try:
            return wrapper(env, **keys)
        except Exception as error:
            raise ConfigError(
                f"env {self.id}: wrapper {name} with {keys} cannot be put around "
                f"{env.observation_space!r:.80}: {_told(error)}"
            ) from error


def _refuse_running_numbers(env: gymnasium.Env, gym: Any, name: str) -> None:
    """Raises ConfigError for wrappers that learn from one episode how to show the next: what an episode is
    like would depend on who played what before, and not even an evaluation could be repeated."""
    instead = {
        gym.wrappers.NormalizeObservation: "set `normalise: true` of the network (model.build)",
        gym.wrappers.NormalizeReward: "set `normalise_returns: true` there, or algo.reward_clip",
    }
    layer = env
    while isinstance(layer, gym.Wrapper):
        for wrapper, advice in instead.items():
            if isinstance(layer, wrapper):
                raise ConfigError(
                    f"env {name}: the wrapper {wrapper.__name__} keeps running numbers in each copy of the "
                    f"environment, so that an episode depends on those played before it; {advice}, which "
                    f"travels with the weights"
                )
        layer = layer.env


def _told(error: Exception) -> str:
    """What was raised, and where."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
