"""One game, watched: `python -m envs.nethack.play [key=value ...]`, keys of `env: nethack`.

A policy (`--policy`, the folder `model` of a checkpoint), nobody (random actions), or a recorded game
(`--recording`) plays; `--cast` writes an animated recording, the last screen goes to standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from envs.nethack.screen import text, write_cast
from rlft import registry
from rlft.errors import ConfigError, UserError

Seen = dict[str, np.ndarray]


def chooser(env: Any, policy: str | None, seed: int, greedy: bool) -> Callable[[Seen], int]:
    """What picks an action for an observation: a saved policy with its memory, or chance."""
    rng = np.random.default_rng(seed)
    if policy is None:
        return lambda seen: int(rng.integers(env.action_space.n))
    import torch

    from rlft.policy.actor_critic import load_policy

    loaded = load_policy(policy, env).eval()
    state = torch.zeros(1, loaded.state_size) if loaded.state_size else None

    @torch.inference_mode()
    def choose(seen: Seen) -> int:
        nonlocal state
        obs = {name: torch.from_numpy(np.asarray(x)[None]) for name, x in seen.items()}
        params, _, state = loaded.act(obs, state)
        if greedy:
            return int(loaded.distribution.mode(params))
        noise = torch.from_numpy(loaded.distribution.noise(rng, 1))
        return int(loaded.distribution.sample(params, noise))

    return choose


def screens(
    env: Any, choose: Callable[[Seen], int], seed: int, steps: int, told: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The screens of a game from `seed`; how it went is written into `told`."""
    seen, _ = env.reset(seed=seed)
    told.update(steps=0, score=0.0)
    for _ in range(steps):
        yield seen["tty_chars"].copy(), seen["tty_colors"].copy()
        seen, reward, terminated, truncated, info = env.step(choose(seen))
        told["steps"] += 1
        told["score"] += reward
        told.update(info.get("facts", {}))
        if terminated or truncated:
            break
    yield seen["tty_chars"].copy(), seen["tty_colors"].copy()


def recorded(
    recipe: Any, path: str, game: str | None, steps: int, told: dict[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of a recorded game, by its name; None: the first."""
    recordings = recipe.recordings(path)
    if recordings is None:
        raise ConfigError(
            f"{path} holds no recorded games; expected a folder of shards, or nld:FILE:NAME"
        )
    names = list(recordings.names)
    if game is not None and game not in names:
        raise ConfigError(f"{path} has no game {game!r}; it has {', '.join(names[:8])}, ...")
    number = names.index(game) if game else 0
    demo = recordings.read(number, 0, min(steps, recordings.steps(number)))
    told.update(game=names[number], steps=len(demo), score=float(demo.rewards.sum()))
    yield from zip(demo.observations["tty_chars"], demo.observations["tty_colors"], strict=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.nethack.play")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="keys of env: nethack")
    parser.add_argument("--seed", type=int, default=0, help="of the game")
    parser.add_argument("--steps", type=int, default=1000, help="at most")
    parser.add_argument(
        "--policy", metavar="MODEL", help="folder of a saved policy; else at random"
    )
    parser.add_argument("--greedy", action="store_true", help="the policy's likeliest actions")
    parser.add_argument("--recording", metavar="PATH", help="show a recorded game instead")
    parser.add_argument("--game", help="its name, such as early/1025; else the first")
    parser.add_argument("--cast", type=Path, metavar="FILE", help="write an asciicast")
    args = parser.parse_intermixed_args(argv)
    told: dict[str, Any] = {}
    try:
        wrong = [k for k in args.keys if "=" not in k]
        if wrong or args.steps < 1:
            raise ConfigError(
                f"expected key=value and --steps of at least 1, got {wrong or args.steps}"
            )
        keys = {k.partition("=")[0]: yaml.safe_load(k.partition("=")[2]) for k in args.keys}
        recipe = registry.build("env", {"name": "nethack", **keys})
        if args.recording:
            shown = list(recorded(recipe, args.recording, args.game, args.steps, told))
        else:
            env = recipe.make()
            choose = chooser(env, args.policy, args.seed, args.greedy)
            shown = list(screens(env, choose, args.seed, args.steps, told))
            env.close()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(shown[-1][0]))
    print("  ".join(f"{name} {value}" for name, value in told.items()))
    if args.cast:
        count = write_cast(args.cast, shown, title="NetHack")
        print(f"{args.cast}: {count} screens, {args.cast.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
