"""Success from other starts than the run's own: far rooms, late stages, or saved states.

What is forgotten late in an episode does not show from its start while the policy learns the way there.
Source: arXiv 2402.02868, section 4 (restarts from saved games, success when spawned in a far room).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from rlft import registry
from rlft.config import Config, Positive
from rlft.errors import ConfigError, DataError
from rlft.probes.probe import ForgettingProbe, Subject
from rlft.types import Episode, Strip


@dataclass(frozen=True)
class Restart(ForgettingProbe):
    """env: keys of the environment that differ, such as `{start: far}`; saved: demonstrations with seeds,
    of which episodes go on after the share `after` of their steps (the state is found by taking the actions
    again); tasks: starts, or saved states; episodes: from each; greedy: the likeliest action, or one
    drawn. If the environment traces `stage`, a whole number, `stage_k` is the share that reached k."""

    writing: ClassVar[bool] = False

    env: Mapping[str, Any] | None = None
    saved: str | None = None
    after: Annotated[float, Field(gt=0, lt=1)] = 0.5
    tasks: Positive = 20
    episodes: Positive = 2
    greedy: bool = False
    called: str = "restart"

    def check(self, cfg: Config, env: Any) -> None:
        if self.env is None and self.saved is None:
            raise ConfigError(
                "probes.fns: restart: give `env`, keys that differ from the run's, or `saved`"
            )
        one = self._env(cfg)
        spaces = []
        for recipe in (env, one):
            made = recipe.make()
            spaces.append((made.observation_space, made.action_space))
            made.close()
        if spaces[0] != spaces[1]:
            raise ConfigError(
                f"probes.fns: restart: env {dict(self.env or {})} has other observations or actions than "
                f"the run's: {spaces[1]}, expected {spaces[0]}"
            )
        if self.saved is not None:
            self._demonstrations(one)

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        from rlft.sampling.rollouts import played, rollouts

        env = self._env(subject.cfg)
        how: Any = {
            "greedy": self.greedy,
            "timeout": subject.cfg.runner.step_timeout,
            "device": subject.device,
        }
        if self.saved is None:
            held_out = env.held_out()
            tasks = [held_out[i] for i in range(min(self.tasks, len(held_out)))]
            rows = rollouts(env, subject.model, tasks, self.episodes, subject.key, **how)
            return numbers([e for row in rows for e in row])
        strips, seeds = self._demonstrations(env)
        inside = hasattr(env, "conditioned")  # and shows more than what was recorded

        def starts(block: Any, policy: Any) -> list[Any]:
            found = []
            for place, (strip, seed) in enumerate(zip(strips, seeds, strict=True)):
                seen = None if inside else strip.obs
                point, state = _saved_state(block, policy, strip, seed, self.after, seen)
                for j in range(self.episodes):
                    noise = subject.key.child(place, j).seed(63)
                    found.append(replace(point, seed=noise, state=state))
            return found

        return numbers(played(env, subject.model, starts, **how))

    def _env(self, cfg: Config) -> Any:
        given = {"name": cfg.env} if isinstance(cfg.env, str) else dict(cfg.env)
        return registry.build("env", {**given, **(self.env or {})})

    def _demonstrations(self, env: Any) -> tuple[list[Strip], list[int]]:
        """The first `tasks` demonstrations that can be taken again, and their seeds."""
        from rlft.cloning import demonstrations_of, library_of, strips_of

        if library_of(str(self.saved), env) is not None:
            raise DataError(
                f"probes.fns: restart: {self.saved} holds recorded games, which no seed begins again; "
                f"record episodes of a policy with `rlft record`"
            )
        raw, _ = demonstrations_of(str(self.saved), env)
        kept = [i for i, d in enumerate(raw) if d.seed is not None and len(d) > 1][: self.tasks]
        if not kept:
            raise DataError(
                f"probes.fns: restart: {self.saved} has no episode of two steps with a seed; a state is "
                f"found by its seed and actions"
            )
        strips = strips_of(str(self.saved), env)
        return [strips[i] for i in kept], [int(raw[i].seed or 0) for i in kept]


def numbers(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over episodes that did not fail, and the share that did, if any."""
    whole = [e for e in episodes if e.end != "error"]
    found = {"failed": 1 - len(whole) / len(episodes)} if len(whole) < len(episodes) else {}
    if not whole:
        return found
    found |= {
        "return": float(np.mean([e.ret_after for e in whole])),
        "length": float(np.mean([e.length - e.start for e in whole])),
    }
    if any(e.success is not None for e in whole):
        found["success"] = float(np.mean([bool(e.success) for e in whole]))
    reached = [int(e.traces["stage"].max()) for e in whole if "stage" in e.traces]
    for stage in range(1, max(reached, default=0) + 1):
        found[f"stage_{stage}"] = float(np.mean([r >= stage for r in reached]))
    return found


def _saved_state(
    block: Any,
    policy: Any,
    strip: Strip,
    seed: int,
    after: float,
    seen: Mapping[str, np.ndarray] | None,
) -> tuple[Any, np.ndarray | None]:
    """(a start at the point, what a policy's memory holds there)."""
    import torch

    from rlft.policy.actor_critic import as_tensors
    from rlft.sampling.episodes import Start
    from rlft.types import Task

    steps = max(1, int(after * len(strip.reward)))
    task = Task(str(seed), "", info={"seed": seed, "options": {}})
    points, failed = block.points_of(task, strip.action[: steps + 1], [steps], seen)
    if failed is not None:
        raise ConfigError(
            f"probes.fns: restart: the episode with seed {seed} failed when it was taken again:\n"
            f"{failed.error}"
        )
    [point] = points
    state = None
    if policy.state_size:
        device = next(policy.parameters()).device
        carried = torch.zeros(1, policy.state_size, device=device)
        with torch.inference_mode():
            for t in range(steps):
                obs = as_tensors({n: x[t : t + 1] for n, x in strip.obs.items()}, device)
                carried = policy.act(obs, carried)[2]
        state = carried[0].cpu().numpy()
    return Start(task, 0, point), state
