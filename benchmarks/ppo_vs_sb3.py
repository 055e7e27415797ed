"""PPO on MiniGrid Four Rooms: environment steps a second, learning included, against Stable-Baselines3.

    pip install --no-deps -r locks/benchmark.txt
    python benchmarks/ppo_vs_sb3.py [--rounds 2] [--updates 12]

The same environment, network (two MLPs of 64, 64) and hyper-parameters on both sides: 8 environments x 256
steps, minibatches of 256, 4 epochs. Once with the environment as MiniGrid makes it, and once with our view
by tables (envs/minigrid/view.py) on both sides, which is some four times as fast. Stable-Baselines3 runs in
each of its settings (DummyVecEnv or SubprocVecEnv, one thread or two); its best counts. Rounds alternate;
medians of the rates of single updates. Also: rlft collecting one step ahead (`max_staleness: 1`), which
learns from data of the weights before and has no counterpart there; how fast a runner steps with a
random policy, against the bare environment; and what the machine's second core is worth: how much more two
processes that step the bare environment do at once than one: no way to use both cores gains more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ENVS, STEPS, BATCH, EPOCHS, LR = 8, 256, 256, 4, 2.5e-4
SETTINGS = [("dummy", 1), ("dummy", 2), ("subproc", 1), ("subproc", 2)]
VIEWS = {"as MiniGrid makes it": False, "with the view by tables": True}
CONFIG: dict[str, Any] = {
    "name": "ppo_vs_sb3",
    "tasks_per_step": 1,
    "algo": {
        **{"name": "control_ppo", "steps": STEPS, "epochs": EPOCHS},
        **{"minibatches": ENVS * STEPS // BATCH, "value_clip": None, "entropy_coef": 0.0},
    },
    "env": {"name": "minigrid", "time_penalty": None, "limit": "cuts"},
    "model": {"build": {"name": "mlp", "hidden": [64, 64]}, "dtype": "float32"},
    "sampler": {"num": 2},
    "runner": {"blocks": 2, "envs": ENVS // 2},
    "learner": {"lr": LR, "eps": 1e-5, "max_grad_norm": 0.5},
    "cluster": {"threads_per_sampler": 1, "threads_per_learner": 1},
    "save": {"every": 0, "at_end": False},
}

IN_TURN, AHEAD = "rlft, in turn", "rlft, one step ahead"
OURS: dict[str, dict[str, Any]] = {
    IN_TURN: {},
    AHEAD: {"max_staleness": 1, "sampler": {"num": 1}, "runner": {"blocks": 1, "envs": ENVS}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument(
        "--sb3", nargs=3, metavar=("VEC", "THREADS", "VIEW"), help=argparse.SUPPRESS
    )
    parser.add_argument("--bare", metavar="VIEW", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        print(bare(args.bare))
        return
    if args.sb3:
        print(json.dumps(sb3(args.sb3[0], int(args.sb3[1]), args.sb3[2], args.updates)))
        return
    for view in args.views:
        print(f"-- {view}", flush=True)
        compare(view, args.rounds, args.updates)
        print(f"two_cores_do: {second_core(view):.2f}", flush=True)


def compare(view: str, rounds: int, updates: int) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, changes in OURS.items():
            found.setdefault(name, []).extend(ours(name, changes, view, updates))
        for vec, threads in SETTINGS:
            command = [sys.executable, __file__, "--sb3", vec, str(threads), view]
            command += ["--updates", str(updates)]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip
            rates = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(f"sb3 {vec}, threads {threads}", []).extend(rates)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, rate in medians.items():
        print(f"{name}: {rate:,.0f} environment steps/s")
    best = max(rate for name, rate in medians.items() if name.startswith("sb3"))
    print(f"ratio_to_sb3: {medians[IN_TURN] / best:.2f}")
    print(f"ratio_to_sb3, one step ahead: {medians[AHEAD] / best:.2f}")
    alone, runner = stepping(view)
    print(f"bare environment: {alone:,.0f} steps/s on a core; runner, random policy: {runner:,.0f}")
    print(f"share_of_bare: {runner / alone:.2f}")


def ours(name: str, changes: dict[str, Any], view: str, updates: int) -> list[float]:
    """Rates of the updates of a run, but for the first two."""
    env = {**CONFIG["env"], "fast_view": VIEWS[view]}
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "run.yaml"
        config.write_text(yaml.safe_dump({**CONFIG, **changes, "env": env, "steps": updates + 2}))
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "rlft", "run", str(config), "--dir", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[-1:]:
        parts = {k: round(row[f"time/{k}_s"], 3) for k in ("step", "rollout", "learn", "publish")}
        print(f"{name}, the last update: {parts}", flush=True)
    return [row["env/steps"] / row["time/step_s"] for row in rows[2:]]


def sb3(vec: str, threads: int, view: str, updates: int) -> list[float]:
    """The same of Stable-Baselines3, in this process."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from envs.minigrid import MiniGrid

    torch.set_num_threads(threads)
    make = [MiniGrid(time_penalty=None, fast_view=VIEWS[view]).make] * ENVS
    envs = DummyVecEnv(make) if vec == "dummy" else SubprocVecEnv(make)
    marks: list[float] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            marks.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    net = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh}
    model = PPO(
        "MlpPolicy", envs, n_steps=STEPS, batch_size=BATCH, n_epochs=EPOCHS, learning_rate=LR,
        gamma=0.99, gae_lambda=0.95, clip_range=0.2, ent_coef=0.0, vf_coef=0.25, max_grad_norm=0.5,
        policy_kwargs=net, device="cpu", seed=0,
    )  # fmt: skip
    model.learn((updates + 3) * ENVS * STEPS, callback=Clock())
    envs.close()
    return [ENVS * STEPS / (b - a) for a, b in itertools.pairwise(marks[2:])]


def bare(view: str, seconds: float = 3.0) -> float:
    """Steps a second of one environment with random actions."""
    from envs.minigrid import MiniGrid

    env = MiniGrid(time_penalty=None, fast_view=VIEWS[view]).make()
    rng, num = np.random.default_rng(0), int(env.action_space.n)
    env.reset(seed=0)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        _, _, terminated, truncated, _ = env.step(int(rng.integers(num)))
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - began)


def second_core(view: str) -> float:
    """What two processes of `bare` do at once, in units of what one does alone; the median of three."""
    command = [sys.executable, __file__, "--bare", view]

    def at_once(num: int) -> float:
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num)]
        return sum(float(one.communicate()[0]) for one in running)

    return statistics.median(at_once(2) / at_once(1) for _ in range(3))


def stepping(view: str, seconds: float = 6.0) -> tuple[float, float]:
    """Steps a second on one core: the bare environment, and a runner's block, with random actions."""
    from envs.minigrid import MiniGrid
    from rlft.policy.distributions import distribution_of
    from rlft.sampling.episodes import Block
    from rlft.sampling.strips import Acted, Choice
    from rlft.sampling.vector import to_env
    from rlft.seeding import Key

    plugin = MiniGrid(time_penalty=None, fast_view=VIEWS[view])
    env = plugin.make()
    distribution, space = distribution_of(env.action_space), env.action_space

    def to_space(action: np.ndarray) -> np.ndarray:
        return to_env(space, action)

    choice = Choice(
        choose=lambda params, noise: noise.argmax(-1)[:, None].astype(np.float32),
        noise=distribution.noise,
        logp=lambda params, action: np.zeros(action.shape[:-1], np.float32),
        state_size=0,
        to_env=to_space,
    )
    block = Block(plugin.make, ENVS, choice, plugin.traces)
    tasks = plugin.train()
    answer = Acted(np.zeros((ENVS, space.n), np.float32), np.zeros(ENVS, np.float32), None)

    def runner() -> float:
        rest, began, steps = None, time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 2:
            rolling = block.segments(rest, STEPS, Key(steps), lambda s, e: tasks[1000 * s + e])
            try:
                rolling.send(None)
                while True:
                    rolling.send(answer)
            except StopIteration as end:
                _, rest = end.value
            steps += ENVS * STEPS
        return steps / (time.perf_counter() - began)

    pairs = [(bare(view, seconds / 2), runner()) for _ in range(3)]
    return tuple(statistics.median(x) for x in zip(*pairs, strict=True))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
