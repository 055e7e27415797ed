"""The runner actor: blocks of environments, and the policy that acts in them.

It holds nothing that a run could lose: what a block was left in travels with each answer, so that
another runner, or the same after a restart, goes on from there.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlft import registry
from rlft.cluster import stacks
from rlft.config import Config
from rlft.errors import WeightsMismatch
from rlft.policy.actor_critic import ActorCritic, as_tensors, load_policy
from rlft.policy.distributions import Categoricals
from rlft.policy.observed import as_arrays
from rlft.sampling.episodes import Block, Rest, Rolling, Start
from rlft.sampling.films import Cameras
from rlft.sampling.guarded import Alarm
from rlft.sampling.strips import Acted, Choice, Judged, Piece, Seen
from rlft.seeding import Key
from rlft.types import End, Episode, Strip, Task, WeightUpdate
from rlft.weights.fingerprint import check_manifest


@dataclass(frozen=True, slots=True)
class Told:
    """What the driver learns of a strip. slot: which environment of the block, or which start; steps: its
    length; root: for a vine, the start it branched off; point: after how many of its steps."""

    slot: int
    steps: int
    end: End
    episode: Episode | None
    root: int = -1
    point: int = 0


@dataclass(frozen=True, slots=True)
class Dealer:
    """Which configuration an environment's next episode has: a function of its place and the episode's
    number, so that it does not depend on who steps it. tasks: the environment's, which each actor has."""

    key: Key

    def __call__(self, tasks: Sequence[Task], slot: int, episode: int) -> Task:
        return tasks[self.key.child(slot, episode).seed(63) % len(tasks)]


@dataclass(frozen=True, slots=True)
class Branching:
    """Vines: how many rollout states of each seed trajectory, and episodes from each of those."""

    states: int
    vines: int


class Runner:
    """Steps environments and takes weights. Arrays per step go to the object store.

    All of it on Python's main thread: there a signal ends a step that takes too long.
    """

    def __init__(self, name: str, cfg: Config, folder: Path) -> None:
        self._where = stacks.register(name)
        self._name, self._cfg, self._folder = name, cfg, folder
        self._transport = registry.build("transport", cfg.publish.transport)
        self._version = -1
        self._blocks: dict[int, Block] = {}

    def start(self) -> None:
        """Makes the environment and the policy, and lets it act once."""
        cfg = self._cfg
        Alarm.install()
        self._device = torch.device("cuda" if cfg.sampler.gpus else "cpu")
        self._env = registry.build("env", cfg.env)
        self._tasks = self._env.train()
        one = self._env.make()
        self._policy = load_policy(self._folder, one).to(self._device).eval()
        self._choice = choice_of(self._policy, one.action_space, self._device)
        self._canary = canary_of(one.observation_space)
        one.close()
        # With two threads the policy of one block computes while another block's environments step.
        self._beside = ThreadPoolExecutor(1) if cfg.sampler.gpus else None

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def segments(
        self,
        blocks: Sequence[int],
        rests: Sequence[Rest] | None,
        steps: int,
        key: Key,
        dealer: Dealer,
    ) -> tuple[tuple[float, int, list[Told]], list[Strip], list[Rest]]:
        """`steps` steps of each environment of each block, from where `rests` left them. Returns ((seconds,
        version, what the driver learns), strips, where they were left), three objects of the store."""
        began = time.monotonic()
        envs = self._cfg.runner.envs

        def rolling(number: int, rest: Rest | None) -> Rolling:
            def task_of(slot: int, episode: int) -> Task:
                return dealer(self._tasks, number * envs + slot, episode)

            block = self._block(number)
            return block.segments(rest, steps, key.child("block", number), task_of)

        rolled = self._drive(
            [rolling(number, rests[i] if rests else None) for i, number in enumerate(blocks)]
        )
        told: list[Told] = []
        strips: list[Strip] = []
        for number, (pieces, _) in zip(blocks, rolled, strict=True):
            told += [replace(one, slot=number * envs + one.slot) for one in _told(pieces)]
            strips += [replace(s, slot=number * envs + s.slot) for s in _strips(pieces)]
        seconds = time.monotonic() - began
        return (seconds, self._version, told), strips, [left for _, left in rolled]

    def episodes(
        self, starts: Sequence[Start], greedy: bool, record: bool = True
    ) -> tuple[tuple[float, int, list[Told]], list[Strip]]:
        """One whole episode from each of `starts`. record: False gives empty strips."""
        began = time.monotonic()
        block = self._block(-1)
        [(pieces, _)] = self._drive([block.episodes(starts, greedy=greedy, record=record)])
        told = _told(pieces)
        if not record:
            told = [replace(one, steps=one.episode.length) for one in told if one.episode]
        return (time.monotonic() - began, self._version, told), _strips(pieces)

    def film(self, start: Start, greedy: bool) -> tuple[bytes, str]:
        """One episode as a GIF; or nothing, and why."""
        cameras = Cameras(self._env.make)
        block = Block(cameras, 1, self._choice, (), self._cfg.runner.step_timeout, "none")
        try:
            self._drive([block.episodes([start], greedy=greedy)])
            return cameras.film()
        finally:
            block.close()

    def vines(
        self, jobs: Sequence[tuple[Task, Key]], seeds: int, branching: Branching
    ) -> tuple[tuple[float, int, list[list[Told]]], list[Strip]]:
        """From each configuration seed trajectories, then vines from equally spaced states of each. What
        the driver learns is a list a configuration; strips are in the same order.

        Source: polychromic PPO (arXiv 2509.25424), appendix A.1.1: from a trajectory of T steps the
        states at `floor(k T / (p + 1))`, k = 1..p. Vines of one state follow each other.
        """
        began = time.monotonic()
        block = self._block(-1)
        starts = [  # as `episodes` has them
            Start(task, key.child(i).seed(63)) for task, key in jobs for i in range(seeds)
        ]
        [(roots, states)] = self._drive([block.episodes(starts, keep_states=True)])
        told: list[list[Told]] = []
        strips: list[list[Strip]] = []
        branches: list[tuple[int, int, int, Start]] = []
        for number, (task, key) in enumerate(jobs):
            mine = slice(number * seeds, (number + 1) * seeds)
            told.append([replace(one, slot=i) for i, one in enumerate(_told(roots[mine]))])
            strips.append(_strips(roots[mine]))
            for root, (piece, carried) in enumerate(zip(roots[mine], states[mine], strict=True)):
                steps = len(piece.strip.reward)
                points = rollout_states(steps, branching.states)
                if piece.end == "error" or not points or not steps:
                    continue
                found, failed = block.points_of(task, piece.strip.action, points, piece.strip.obs)
                if failed is not None:  # told as a vine of no step
                    told[number].append(
                        Told(len(told[number]), 0, "error", failed, root, points[0])
                    )
                    strips[number].append(replace(piece.strip.upto(0), bootstrap=0.0))
                    continue
                for after, point in zip(points, found, strict=True):
                    state = None if carried is None else carried[after]
                    for vine in range(branching.vines):
                        seed = key.child("vine", root, after, vine).seed(63)
                        branches.append((number, root, after, Start(task, seed, point, state)))
        if branches:
            [(vines, _)] = self._drive([block.episodes([b[-1] for b in branches])])
            for (number, root, after, _), one, piece in zip(
                branches, _told(vines), vines, strict=True
            ):
                slot = len(told[number])
                told[number].append(replace(one, slot=slot, root=root, point=after))
                strips[number].append(piece.strip)
        seconds = time.monotonic() - began
        return (seconds, self._version, told), [s for of_task in strips for s in of_task]

    def load(self, update: WeightUpdate, payload: Any) -> int:
        """Replaces the weights, proves what was handed, and returns the new version. Raises
        WeightsMismatch."""
        if update.version <= self._version:
            raise WeightsMismatch(
                f"{self._name} holds version {self._version} and was sent version {update.version}"
            )
        # First of all: where it fails halfway, nothing from here on passes for the version before.
        self._version = update.version
        handed = self._transport.deliver(_Held(self._policy), update, payload)
        check_manifest(update.manifest, handed, receiver=self._name)
        return update.version

    def adopt(self, update: WeightUpdate, payload: Any, canary: list[int]) -> np.ndarray | None:
        """`load`, then `score`: nothing comes between the two. A newcomer may have caught up with these
        weights already, or with later ones: then None."""
        if update.version < self._version:
            return None
        if update.version > self._version:
            self.load(update, payload)
        return self.score(canary)

    def score(self, ids: list[int]) -> np.ndarray:
        """Parameters and values of the canary observations, flat. ids: not read."""
        return canary_answer(self._policy, self._canary, self._device)

    def between(self, job: int, method: str, *args: Any) -> Any:
        """`method(*args)`: as of a sampler that decodes meanwhile. A runner does one thing after the other,
        so new weights reach it between two stretches of steps, each of which one version took."""
        return getattr(self, method)(*args)

    def serve(self, job: int) -> None: ...

    def take(self) -> None:
        """Of transports that stream to engines: none does to a runner."""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def _block(self, number: int) -> Block:
        if number not in self._blocks:
            runner = self._cfg.runner
            self._blocks[number] = block_of(
                self._env, runner.envs, self._choice, runner.step_timeout
            )
        return self._blocks[number]

    def _drive(self, rolling: Sequence[Rolling]) -> list[Any]:
        """Runs generators to their ends; returns what each returned. With several of them, one's policy
        computes on the accelerator while another's environments step."""
        results: list[Any] = [None] * len(rolling)
        waiting: deque[tuple[int, Rolling, Any]] = deque()
        together = self._beside if len(rolling) > 1 else None

        def advance(index: int, one: Rolling, acted: Any) -> None:
            try:
                seen = next(one) if acted is None else one.send(acted)
            except StopIteration as end:
                results[index] = end.value
                return
            asked = together.submit(self._answer, seen) if together else seen
            waiting.append((index, one, asked))

        for index, one in enumerate(rolling):
            advance(index, one, None)
        while waiting:
            index, one, asked = waiting.popleft()
            advance(index, one, asked.result() if together else self._answer(asked))
        return results

    def _answer(self, asked: Seen | Judged) -> Acted | np.ndarray:
        return answer(self._policy, asked, self._device)


_JUDGED_AT_ONCE = 1024


@torch.inference_mode()
def answer(policy: ActorCritic, asked: Seen | Judged, device: torch.device) -> Acted | np.ndarray:
    """What the policy says of what environments show, or its critic of many observations. Raises
    FloatingPointError: what the policy says is not finite."""
    if isinstance(asked, Judged):
        parts = []
        for at in range(0, len(next(iter(asked.obs.values()))), _JUDGED_AT_ONCE):
            some = {name: x[at : at + _JUDGED_AT_ONCE] for name, x in asked.obs.items()}
            parts.append(policy.value(as_tensors(some, device)).cpu())
        return torch.cat(parts).numpy()
    state = None if asked.state is None else torch.from_numpy(asked.state).to(device)
    params, value, after = policy.choose(as_tensors(asked.obs, device), state)
    said = params.cpu().numpy()
    if not np.isfinite(said).all():
        raise FloatingPointError("the policy's outputs are not finite")
    return Acted(
        said,
        None if value is None else value.cpu().numpy(),
        None if after is None else after.cpu().numpy(),
    )


def block_of(env: Any, envs: int, choice: Choice, timeout: float = 60.0) -> Block:
    """A block of environments of the plug-in `env`. timeout: seconds for a step."""
    return Block(
        env.make,
        envs,
        choice,
        tuple(getattr(env, "traces", ())),
        timeout,
        getattr(env, "snapshots", "copy"),
        getattr(env, "solved_above", None),
        getattr(env, "limit", "cuts"),
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What a transport sees of a runner: something that takes tensors."""

    policy: ActorCritic

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        held = dict(self.policy.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, tensor in tensors:
                if name in held:  # what is not is told by the manifest
                    held[name].copy_(tensor)


def rollout_states(steps: int, count: int) -> list[int]:
    """After how many of its steps a trajectory branches: `floor(k T / (p + 1))`, each once."""
    return sorted({k * steps // (count + 1) for k in range(1, count + 1)})


def _told(pieces: Sequence[Piece]) -> list[Told]:
    return [Told(p.slot, len(p.strip.reward), p.end, p.episode) for p in pieces]


def _strips(pieces: Sequence[Piece]) -> list[Strip]:
    return [p.strip for p in pieces]


def choice_of(policy: ActorCritic, space: spaces.Space, device: torch.device) -> Choice:
    """How this policy's parameters become actions of `space`."""
    distribution = policy.distribution
    one_choice = isinstance(distribution, Categoricals) and distribution.actions == 1

    @torch.inference_mode()
    def choose(params: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        if one_choice:  # the same by numpy, in a fifth of the calls
            scores = params if noise is None else params + noise
            return scores.argmax(-1)[:, None].astype(np.float32)
        p = torch.from_numpy(params)
        drawn = (
            distribution.mode(p)
            if noise is None
            else distribution.sample(p, torch.from_numpy(noise))
        )
        return drawn.numpy()

    @torch.inference_mode()
    def logp(params: np.ndarray, action: np.ndarray) -> np.ndarray:
        return distribution.logp(torch.from_numpy(params), torch.from_numpy(action)).numpy()

    return Choice(
        choose, distribution.noise, logp, policy.state_size, functools.partial(to_env, space)
    )


def to_env(space: spaces.Space, action: np.ndarray) -> np.ndarray:
    """Float32 `[M, A]` as the environments take it: whole numbers, or numbers within bounds."""
    if isinstance(space, spaces.Discrete):
        return action[:, 0].astype(np.int64) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return action.astype(space.dtype) + space.start
    assert isinstance(space, spaces.Box)
    return action.clip(space.low, space.high).astype(space.dtype)


def canary_of(space: spaces.Space, count: int = 8) -> dict[str, np.ndarray]:
    """A few observations `[count, ...]`, the same in every process, on which to compare policies."""
    space.seed(0)
    drawn = [as_arrays(space.sample()) for _ in range(count)]
    found = {name: np.stack([np.asarray(d[name]) for d in drawn]) for name in drawn[0]}
    return {
        name: x.clip(-10, 10) if np.issubdtype(x.dtype, np.floating) else x
        for name, x in found.items()
    }


@torch.inference_mode()
def canary_answer(
    policy: ActorCritic, obs: dict[str, np.ndarray], device: torch.device
) -> np.ndarray:
    """What the policy says of the canary: parameters and values, float32, flat."""
    count = len(next(iter(obs.values())))
    state = torch.zeros(count, policy.state_size, device=device) if policy.state_size else None
    params, value, _ = policy.act(as_tensors(obs, device), state)
    return torch.cat([params.flatten(), value]).float().cpu().numpy()
