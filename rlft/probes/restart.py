"""Success from other starts than the run's own: far rooms, late stages, or saved states.

What is forgotten late in an episode does not show from its start while the policy learns the way there.
Source: arXiv 2402.02868, section 4 (restarts from saved games, success when spawned in a far room).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from rlft import registry
from rlft.config import Config, Positive
from rlft.demonstrations import Demonstration
from rlft.errors import ConfigError, DataError
from rlft.policy.observed import is_row
from rlft.probes.probe import ForgettingProbe, Subject
from rlft.recordings import Recordings, Window
from rlft.sampling.snapshot import TookAnotherCourse
from rlft.types import Episode, Strip

_AT_ONCE = 1024
"""Steps that are looked at, or read by a policy's memory, in one go."""


@dataclass(frozen=True)
class Restart(ForgettingProbe):
    """env: keys of the environment that differ, such as `{start: far}`; saved: demonstrations or recorded
    games with seeds, of which episodes go on after the share `after` of their steps, or from the first step
    with these milestones, `at: {depth: 4}` (names of the environment's `milestones`; the state is found by
    taking the actions again); tasks: starts, or saved states; episodes: from each; greedy: the likeliest
    action, or one drawn. If the environment traces `stage`, a whole number, `stage_k` is the share that
    reached k. `unreachable` is the share of recorded games that took another course than recorded."""

    writing: ClassVar[bool] = False

    env: Mapping[str, Any] | None = None
    saved: str | None = None
    after: Annotated[float, Field(gt=0, lt=1)] = 0.5
    at: Mapping[str, int] | None = None
    tasks: Positive = 20
    episodes: Positive = 2
    greedy: bool = False
    called: str = "restart"

    def check(self, cfg: Config, env: Any) -> None:
        if self.env is None and self.saved is None:
            raise ConfigError(
                "probes.fns: restart: give `env`, keys that differ from the run's, or `saved`"
            )
        if self.at is not None and not self.at:
            raise ConfigError("probes.fns: restart: `at` is empty; name a place, or leave it out")
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
            self._refuse_beyond(one)
            if getattr(one, "snapshots", "copy") == "none":
                raise ConfigError(
                    "probes.fns: restart: env.snapshots is none, so it cannot be put back into a saved "
                    "state; set copy or replay, or give `env`"
                )
        elif self.at is not None:
            raise ConfigError(
                "probes.fns: restart: `at` is a place in `saved` episodes; give those"
            )

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
        library, places = self._places(env)
        recorded = library is not None
        inside = hasattr(env, "conditioned")  # and shows more than what was recorded
        lost: list[ConfigError] = []

        def starts(block: Any, policy: Any) -> list[Any]:
            found = []
            for place, (number, steps, seed) in enumerate(places):
                strip = self._strip(env, library, number, steps)
                # A game depends on the clock by a little: in NetHack, names in shops. So of a recorded game
                # it counts where it comes to, and one that comes to elsewhere is not the end of a probe.
                seen = None if inside or recorded else strip.obs
                try:
                    point, state = _saved_state(block, policy, strip, seed, seen)
                    if recorded and not is_row(
                        point.point.snapshot.course.observation, strip.obs, steps
                    ):
                        raise TookAnotherCourse(f"game {seed} is elsewhere after {steps} steps")
                except ConfigError as error:
                    if not recorded:
                        raise
                    lost.append(error)
                    continue
                for j in range(self.episodes):
                    noise = subject.key.child(place, j).seed(63)
                    found.append(replace(point, seed=noise, state=state, or_fail=recorded))
            if not found:
                raise DataError(
                    f"probes.fns: restart: none of {len(places)} recorded games took the course that was "
                    f"recorded when it was taken again; were they recorded with this environment's keys "
                    f"(character, menus)? The first: {lost[0]}"
                ) from lost[0]
            return found

        told = numbers(played(env, subject.model, starts, **how))
        return {**told, "unreachable": len(lost) / len(places)} if recorded else told

    def _refuse_beyond(self, env: Any) -> None:
        """Raises ConfigError: recorded games come to the place after an episode of `env` has ended."""
        library, places = self._places(env)
        limit = getattr(getattr(env, "inner", env), "max_steps", None)
        beyond = [steps for _, steps, _ in places if limit and steps >= limit]
        if library is not None and beyond:
            raise ConfigError(
                f"probes.fns: restart: {len(beyond)} of {len(places)} recorded games are to go on after "
                f"{min(beyond)} to {max(beyond)} steps, but env.max_steps={limit} ends an episode before. "
                f"Raise it, in the run or in the probe's `env`, or name a place that comes earlier"
            )

    def _env(self, cfg: Config) -> Any:
        given = {"name": cfg.env} if isinstance(cfg.env, str) else dict(cfg.env)
        return registry.build("env", {**given, **(self.env or {})})

    def _places(self, env: Any) -> tuple[Any, list[tuple[int, int, int]]]:
        at = None if self.at is None else tuple(sorted(self.at.items()))
        return _found(str(self.saved), env, self.after, at, self.tasks)

    def _strip(self, env: Any, library: Any, number: int, steps: int) -> Strip:
        """An episode up to the step to go on from, which is its last."""
        from rlft.cloning import strips_of

        if library is None:
            return strips_of(str(self.saved), env)[number].upto(steps + 1)
        return library.strip(Window(number, 0, steps + 1, fresh=True))


@functools.lru_cache(maxsize=8)
def _found(
    path: str, env: Any, after: float, at: tuple[tuple[str, int], ...] | None, most: int
) -> tuple[Any, list[tuple[int, int, int]]]:
    """(the library, if `path` is recorded games; number, step to go on from and seed of the first `most`
    episodes that have such a step). Raises DataError or ConfigError."""
    from rlft.cloning import demonstrations_of, library_of

    milestones = getattr(getattr(env, "inner", env), "milestones", None)
    if at is not None and milestones is None:
        raise ConfigError(
            f"probes.fns: restart: at={dict(at)}, but {type(env).__name__} has no milestones; use "
            f"`after`, a share of an episode's steps"
        )
    place = _Place(after, None if at is None else dict(at), milestones)
    library = library_of(path, env)
    raw: Sequence[Demonstration] = ()
    if library is not None:
        games = library.recordings
        seeds = getattr(games, "seeds", None) or [None] * len(games.names)
    else:
        raw, _ = demonstrations_of(path, env)
        seeds = [demo.seed for demo in raw]
    if all(seed is None for seed in seeds):
        raise DataError(
            f"probes.fns: restart: {path} holds episodes that no seed begins again, and a state is found "
            f"by seed and actions; record episodes of a policy with `rlft record`"
        )
    found: list[tuple[int, int, int]] = []
    for number, seed in enumerate(seeds):
        if seed is None:
            continue
        if len(found) == most:
            break
        if library is None:
            steps = place.of(len(raw[number]), [(0, raw[number])])
        else:
            steps = place.of(games.steps(number), _pieces(games, number))
        if steps is not None:
            found.append((number, steps, int(seed)))
    if not found:
        where = f" that comes to {dict(at)}" if at else " of two steps"
        raise DataError(
            f"probes.fns: restart: {path} has no episode with a seed{where}{place.told()}"
        )
    return library, found


def _pieces(games: Recordings, number: int) -> Iterator[tuple[int, Demonstration]]:
    """(its first step, a stretch) of a recorded game, one after the other."""
    length = games.steps(number)
    for first in range(0, length, _AT_ONCE):
        yield first, games.read(number, first, min(length, first + _AT_ONCE))


class _Place:
    """Which step of an episode to go on from. Remembers how far milestones went, for who asked too much."""

    def __init__(self, after: float, at: Mapping[str, int] | None, milestones: Any) -> None:
        self._after, self._at, self._milestones = after, at, milestones
        self._most: dict[str, int] = {}

    def of(self, length: int, pieces: Iterable[tuple[int, Demonstration]]) -> int | None:
        """How many steps of an episode come before it; at least 1. pieces: the episode, each piece with the
        number of its first step; read as far as is needed."""
        if self._at is None:
            return max(1, int(self._after * length)) if length > 1 else None
        for first, piece in pieces:
            passed = self._milestones(piece.observations)
            unknown = sorted(set(self._at) - set(passed))
            if unknown:
                raise ConfigError(
                    f"probes.fns: restart: at: no milestone {unknown[0]!r}; there are {', '.join(passed)}"
                )
            there = np.logical_and.reduce([passed[k] == v for k, v in self._at.items()])
            for name in self._at:
                self._most[name] = max(self._most.get(name, 0), int(passed[name].max()))
            hits = np.flatnonzero(there)
            hits = hits[hits + first > 0]
            if len(hits):
                return int(hits[0]) + first
        return None

    def told(self) -> str:
        if not self._most:
            return ""
        return ". The most that is reached: " + ", ".join(f"{k} {v}" for k, v in self._most.items())


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
    block: Any, policy: Any, strip: Strip, seed: int, seen: Mapping[str, np.ndarray] | None
) -> tuple[Any, np.ndarray | None]:
    """(a start before the last step of `strip`, what a policy's memory holds there)."""
    import torch

    from rlft.policy.actor_critic import as_tensors
    from rlft.sampling.episodes import Start
    from rlft.types import Task

    steps = len(strip.reward) - 1
    task = Task(str(seed), "", info={"seed": seed, "options": {}})
    points, failed = block.points_of(task, strip.action, [steps], seen)
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
            for first in range(0, steps, _AT_ONCE):
                cut = slice(first, min(steps, first + _AT_ONCE))
                obs = as_tensors({n: x[None, cut] for n, x in strip.obs.items()}, device)
                carried = policy(obs, carried, carry=True)[2]
        state = carried[0].cpu().numpy()
    return Start(task, 0, point), state
