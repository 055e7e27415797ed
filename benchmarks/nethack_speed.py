"""How fast NetHack is played: the runner against the simulator alone, and a policy in the loop.

    python benchmarks/nethack_speed.py            # the runner with a random policy, against NLE stepped
    python benchmarks/nethack_speed.py --policy   # and a policy of half a million parameters that learns

All sides are one process on one core with the same task, options, observations and action set, and draw
uniformly from the 121 actions. `raw` steps as many games of NLE's own environment in turn and keeps
nothing; `one game` steps a single one. `runner` is what a run has: a block of environments guarded against
faults, a policy's answer for each step (here, zeros), actions drawn from it with their log-probs,
everything recorded in strips. Rounds alternate; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from rlft import registry
from rlft.config import Config, parse_config
from rlft.policy.actor_critic import ActorCritic, new_policy
from rlft.sampling.vector import Dealer, Runner
from rlft.seeding import Key

HALF_A_MILLION = {"name": "envs.nethack.network:NetHackNet"}


@dataclass(frozen=True)
class Uniform:
    """A policy to which all actions are equally likely, and which costs nothing."""

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        policy = ActorCritic(observations, actions, shared=True, encoder=_Nothing)
        nn.init.zeros_(policy.policy_head.weight)
        return policy


class _Nothing(nn.Module):
    width = 1

    def forward(self, obs: Any) -> torch.Tensor:
        return torch.zeros(len(obs["prev_action"]), 1)

    def take_in(self, obs: Any) -> None: ...


def config(build: dict[str, Any], envs: int, segment: int, **changes: Any) -> Config:
    base = {
        "name": "nethack_speed",
        "steps": 1,
        "tasks_per_step": 1,
        "algo": {
            "name": "control_ppo",
            "steps": segment,
            "vtrace": True,
            "epochs": 1,
            "minibatches": 1,
        },
        "env": {"name": "nethack"},
        "model": {"build": build, "dtype": "float32"},
        "runner": {"blocks": 1, "envs": envs},
        "learner": {"lr": 1e-4},
        "cluster": {"threads_per_sampler": 1, "threads_per_learner": 1},
        "save": {"every": 0},
    }
    return parse_config({**base, **changes}, "nethack_speed")


def raw_env() -> Any:
    """NLE's own environment, with the options of `env: nethack`."""
    from nle import nethack
    from nle.env import tasks

    from envs.nethack.game import _KEYS

    return tasks.NetHackScore(
        character="mon-hum-neu-mal",
        actions=nethack.ACTIONS,
        allow_all_yn_questions=True,
        allow_all_modes=True,
        penalty_step=0.0,
        fix_moon_phase=True,
        max_episode_steps=10**9,
        observation_keys=_KEYS,
    )


class Raw:
    """So many games of NLE, stepped in turn with random actions."""

    def __init__(self, games: int) -> None:
        self._envs, self._rng = [raw_env() for _ in range(games)], np.random.default_rng(0)
        self._seed = 0
        for env in self._envs:
            self._begin(env)

    def _begin(self, env: Any) -> None:
        self._seed += 1
        env.seed(self._seed, self._seed, reseed=False)
        env.reset()

    def steps(self, count: int) -> float:
        """Steps a second."""
        rounds = self._rng.integers(121, size=(count // len(self._envs), len(self._envs))).tolist()
        began = time.perf_counter()
        for actions in rounds:
            for env, action in zip(self._envs, actions, strict=True):
                _, _, done, _, _ = env.step(action)
                if done:
                    self._begin(env)
        return len(rounds) * len(self._envs) / (time.perf_counter() - began)


class Played:
    """A runner in this process that goes on with its block."""

    def __init__(self, build: dict[str, Any], envs: int, steps: int, folder: Path) -> None:
        cfg = config(build, envs, steps)
        env = registry.build("env", cfg.env).make()
        new_policy(build, env, 0, folder)
        env.close()
        self.runner = Runner("runner", cfg, folder)
        self.runner.start()
        self._envs, self._steps, self._rests, self._number = envs, steps, None, 0

    def steps(self, count: int) -> float:
        """Steps a second, in segments as a run asks for them."""
        segments = max(1, count // (self._envs * self._steps))
        began = time.perf_counter()
        for _ in range(segments):
            key = Key(0).child("ticket", self._number)
            _, _, self._rests = self.runner.segments(
                [0], self._rests, self._steps, key, Dealer(Key(0))
            )
            self._number += 1
        return segments * self._envs * self._steps / (time.perf_counter() - began)


def against_raw(rounds: int, count: int, envs: int, steps: int) -> float:
    """Prints the speeds and their ratio, which is returned."""
    uniform = {"name": f"{__file__}:Uniform"}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "raw": Raw(envs),
            "runner": Played(uniform, envs, steps, Path(folder) / "uniform"),
            "one game": Raw(1),
        }
        for side in sides.values():
            side.steps(count)
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for name, side in sides.items():
                found[name].append(side.steps(count))
    for name, values in found.items():
        print(
            f"{name:>8}: {statistics.median(values):,.0f} steps/s "
            f"(from {min(values):,.0f} to {max(values):,.0f} in {rounds} rounds of {count:,})"
        )
    pairs = [b / a for a, b in zip(found["raw"], found["runner"], strict=True)]
    ratio = statistics.median(pairs)
    alone = statistics.median(
        b / a for a, b in zip(found["one game"], found["runner"], strict=True)
    )
    print(f"ratio: {ratio:.2f}  (median of rounds; from {min(pairs):.2f} to {max(pairs):.2f})")
    print(f"against one game, whose data stay in the core's cache: {alone:.2f}")
    return ratio


def where_time_goes(envs: int, steps: int, segments: int) -> None:
    """Prints what a step of a runner with the policy spends its time on."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, owner: Any, attribute: str) -> None:
        inner = getattr(owner, attribute)

        def outer(*args: Any, **keys: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **keys)
            finally:
                spent[name] += time.perf_counter() - began

        setattr(owner, attribute, outer)

    with tempfile.TemporaryDirectory() as folder:
        played = Played(HALF_A_MILLION, envs, steps, Path(folder) / "policy")
        played.steps(2 * envs * steps)
        for guarded in played.runner._blocks[0]._envs:
            timed("simulator", guarded.unwrapped, "advance")
        timed("policy", played.runner, "_answer")
        began = time.perf_counter()
        played.steps(segments * envs * steps)
        whole = time.perf_counter() - began
    number = segments * envs * steps
    spent["the rest"] = whole - sum(spent.values())
    print(
        f"a runner with the policy: {number / whole:,.0f} steps/s, {1e6 * whole / number:.0f} us a step:"
    )
    for name, seconds in spent.items():
        print(f"  {name:>10}: {1e6 * seconds / number:5.0f} us  {seconds / whole:4.0%}")


def learning(envs: int, steps: int, updates: int, ahead: int, folder: Path) -> None:
    """Prints the speed of a whole run, learning included, and what its steps spend their time on."""
    from rlft.train import train

    cfg = config(HALF_A_MILLION, envs, steps, steps=updates, max_staleness=ahead)
    train(cfg, folder, resume=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][3:]
    seconds = sum(row["time/step_s"] for row in rows)
    speed = sum(row["env/steps"] for row in rows) / seconds
    print(f"learning included, max_staleness {ahead}: {speed:,.0f} steps/s")
    for name in ("rollout", "learn", "publish", "lag_wait"):
        part = sum(row.get(f"time/{name}_s", 0.0) for row in rows)
        print(
            f"  {name:>8}: {part / len(rows):6.2f} s a step of the run, {part / seconds:4.0%} of its time"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=20_000, help="steps of a round")
    parser.add_argument("--envs", type=int, default=32, help="environments of the block")
    parser.add_argument("--steps", type=int, default=32, help="of a segment")
    parser.add_argument("--policy", action="store_true")
    parser.add_argument("--updates", type=int, default=13)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    against_raw(asked.rounds, asked.count, asked.envs, asked.steps)
    if asked.policy:
        where_time_goes(asked.envs, asked.steps, 8)
        with tempfile.TemporaryDirectory() as folder:
            for ahead in (0, 1):
                learning(asked.envs, asked.steps, asked.updates, ahead, Path(folder) / str(ahead))


if __name__ == "__main__":
    main()
