"""What runners gain that do not wait for each other, where stretches of steps take unequal time.

Four runners, the real loop, actors and publishing; an environment sleeps, in each stretch for a time of its
own (log-normal, of mean `--seconds`). For each `max_staleness` it prints how long the steps took, how long
they would have taken had every runner waited for the slowest of each step (the sum of each step's longest
stretch, nothing else), and how long the stretches of the slowest runner took, which nothing can be below.

    python benchmarks/unequal_runners.py            about four minutes, nearly all of it asleep
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from many_runs import one_cluster

from rlft.config import parse_config
from rlft.train import train

HERE = str(Path(__file__).resolve())
STEPS = 8
"""Environment steps in a stretch."""


class Sleeping(gymnasium.Env[np.ndarray, int]):
    """Sleeps; writes down when its stretches began and ended."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    taken = 0

    def __init__(self, folder: str, seconds: float, spread: float) -> None:
        self.folder, self.seconds, self.spread = Path(folder), seconds, spread

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> Any:
        stretch, place = divmod(Sleeping.taken, STEPS)
        Sleeping.taken += 1
        rng = np.random.default_rng([os.getpid(), stretch])
        mean = -(self.spread**2) / 2  # of a log-normal of mean 1
        began = time.time()
        time.sleep(self.seconds * rng.lognormal(mean, self.spread) / STEPS)
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps([stretch, place, began, time.time()]) + "\n")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def stretches(folder: Path) -> np.ndarray:
    """Seconds `[runner, stretch]` of those that all runners have taken whole."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if len(rows) < 2 * STEPS:  # of the driver, which looks at the environment before the run
            continue
        ends = np.array([row[3] for row in rows])[: len(rows) // STEPS * STEPS]
        starts = np.array([row[2] for row in rows])[: len(ends)]
        found.append(ends.reshape(-1, STEPS)[:, -1] - starts.reshape(-1, STEPS)[:, 0])
    least = min(len(x) for x in found)
    return np.stack([x[:least] for x in found])


def measured(staleness: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """(seconds of the steps, had they waited, the slowest runner's own), without the first two steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "times").mkdir()
        keys = {"folder": str(folder / "times"), "seconds": args.seconds, "spread": args.spread}
        cfg = {
            "name": "unequal",
            "steps": args.steps,
            "tasks_per_step": 1,
            "max_staleness": staleness,
            "env": {"name": "gym", "id": f"{HERE}:Sleeping", "kwargs": keys},
            "algo": {"name": "control_ppo", "steps": STEPS, "minibatches": 1, "epochs": 1},
            "model": {"build": {"name": "mlp", "hidden": [4]}, "dtype": "float32"},
            "cluster": {"cpus": 1},
            "sampler": {"num": args.runners},
            "runner": {"blocks": args.runners, "envs": 1},
            "eval": {"at_start": False, "at_end": False},
            "save": {"every": 0, "at_end": False},
        }
        train(parse_config(cfg, "unequal"), folder / "run")
        lines = (folder / "run/metrics.jsonl").read_text().splitlines()
        took = sum(json.loads(line)["time/step_s"] for line in lines[2:])
        seconds = stretches(folder / "times")[:, 2 : args.steps]
        return took, float(seconds.max(0).sum()), float(seconds.sum(1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runners", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--spread", type=float, default=0.8, help="of the logarithm")
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    rows = []
    with one_cluster():
        for staleness in args.staleness:
            rows.append((staleness, *measured(staleness, args)))
    print("| max_staleness | took, s | had they waited, s | the slowest runner's own, s | gain |")
    print("|---|---|---|---|---|")
    for staleness, took, waited, own in rows:
        print(f"| {staleness} | {took:.1f} | {waited:.1f} | {own:.1f} | {waited / took:.2f} |")


if __name__ == "__main__":
    main()
