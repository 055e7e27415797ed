"""Expert demonstrations of a level: `python -m envs.minigrid.demonstrations OUT.npz [key=value ...]`.

    python -m envs.minigrid.demonstrations demos/four_rooms.npz --episodes 590 --noise 0.2
    python -m envs.minigrid.demonstrations demos/goto.npz id=BabyAI-GoTo-v0 view=dict --episodes 1000

Keys are those of `env: minigrid`; give the same to the run that learns from the file. Starts are the
first of `train()`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from envs.minigrid import MiniGrid
from envs.minigrid.experts import MOVES, expert_of
from rlft import registry
from rlft.demonstrations import Demonstration, check_name, write
from rlft.errors import ConfigError, UserError
from rlft.seeding import Key


def demonstrate(
    env: Any, seed: int, noise: float, rng: np.random.Generator
) -> Demonstration | None:
    """One episode by the level's expert; with chance `noise` a random turn or step is made instead, and
    recorded as what was done. None if the expert could not go on."""
    observation, _ = env.reset(seed=seed)
    expert = expert_of(env.unwrapped)
    seen, actions, rewards, action = [], [], [], None
    while True:
        action = expert.action(action)
        if action is None:
            return None
        if rng.random() < noise:
            action = int(rng.choice(MOVES))
        if action >= env.action_space.n:
            raise ConfigError(
                f"the expert chose action {action}, the environment has {env.action_space.n}; raise "
                f"actions"
            )
        seen.append(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        actions.append(action)
        rewards.append(reward)
        if terminated or truncated:
            return Demonstration(
                _stacked(seen), np.array(actions), np.array(rewards, np.float32), seed, terminated
            )


def demonstrations(
    recipe: MiniGrid, episodes: int, noise: float = 0.0, seed: int = 0, failed: bool = False
) -> tuple[list[Demonstration], int]:
    """`episodes` demonstrations from the first starts of `recipe.train()`, again from the first where
    they run out; and how many attempts were left out. failed: keep episodes without success too.

    Raises ConfigError if nine of ten attempts fail.
    """
    env, starts = recipe.make(), recipe.train()
    kept: list[Demonstration] = []
    attempt = 0
    while len(kept) < episodes:
        if attempt >= 100 and len(kept) < attempt / 10:
            raise ConfigError(
                f"{recipe.id}: {len(kept)} of {attempt} attempts of the expert succeeded within "
                f"{env.unwrapped.max_steps} actions; raise max_steps, lower the noise or keep failures"
            )
        start = starts[attempt % len(starts)]
        rng = np.random.default_rng(Key(seed, ("demonstrations", attempt)).seed())
        found = demonstrate(env, start.info["seed"], noise, rng)
        attempt += 1
        if found is not None and (failed or (found.terminated and found.rewards[-1] > 0)):
            kept.append(found)
    return kept, attempt - len(kept)


def _stacked(seen: list[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {name: np.stack([o[name] for o in seen]) for name in seen[0]}
    return np.stack(seen)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m envs.minigrid.demonstrations")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="keys of env: minigrid")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--noise", type=float, default=0.0, help="chance of a random move, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--keep-failures", action="store_true")
    args = parser.parse_intermixed_args(argv)
    try:
        check_name(args.out)
        if args.episodes < 1 or not 0 <= args.noise <= 1:
            raise ConfigError(
                f"--episodes must be at least 1 and --noise from 0 to 1, got {args.episodes}, {args.noise}"
            )
        wrong = [k for k in args.keys if "=" not in k]
        if wrong:
            raise ConfigError(f"expected key=value, got {wrong[0]!r}")
        keys = {k.partition("=")[0]: yaml.safe_load(k.partition("=")[2]) for k in args.keys}
        recipe = registry.build("env", {"name": "minigrid", **keys})
        began = time.perf_counter()
        made, left_out = demonstrations(
            recipe, args.episodes, args.noise, args.seed, args.keep_failures
        )
        write(args.out, made)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    steps = sum(map(len, made))
    won = np.mean([d.terminated and d.rewards[-1] > 0 for d in made])
    print(
        f"{args.out}: {len(made)} episodes, {steps} actions ({steps / len(made):.1f} each), success "
        f"{won:.3f}, mean return {np.mean([d.rewards.sum() for d in made]):.3f}, {left_out} attempts "
        f"left out, {args.out.stat().st_size / 1024:.0f} KiB, {time.perf_counter() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
