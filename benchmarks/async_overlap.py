"""What running ahead gains when sampling and learning take equal time, and what the driver itself costs.

overlap: the real loop, actors and publishing on a small model; the engine sleeps for `--seconds` in its
requests and the loss for as long in a step, as a GPU elsewhere would keep them waiting. Prints
`overlap_speedup: X`, the synchronous step over the step with `max_staleness=1`. Bar: 1.7.

driver: 1,000 samplers and 100,000 trajectories a step. The driver's own work is done for real (prompts to
tokens, seeds, shares, trajectories, scoring, advantages, micro-batches, metrics); what samplers and reward
workers answer is made up before. Prints `driver_share: X` of a 60-second step. Bar: 0.05. What Ray needs
to carry a thousand calls is not in it.

    python benchmarks/async_overlap.py            about two minutes on two cores
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlft.sampling.transformers import TransformersEngine
from rlft.types import Batch, Completion, PolicyOut

HERE = str(Path(__file__).resolve())


class SleepingEngine(TransformersEngine):
    """Decodes a few tokens with the small model, and sleeps as long as a large one would take."""

    def __init__(self, model: Any, *, engine_args: dict[str, Any], **keys: Any) -> None:
        super().__init__(model, engine_args={}, **keys)
        self._seconds = engine_args["seconds"]

    def generate(self, requests: list, sampling: Any, desk: Any = None) -> list[Completion]:
        began = time.monotonic()
        completions = super().generate(requests, sampling, *([desk] if desk else []))
        while len(requests) > 1 and time.monotonic() - began < self._seconds:
            time.sleep(0.01)
            if desk is not None:
                desk.serve()
        return completions


class SleepingLoss:
    """REINFORCE that takes its time, once a step: the run has one micro-batch."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds

    def __call__(self, out: PolicyOut, batch: Batch) -> Any:
        time.sleep(self.seconds)
        return -batch.adv * out.logp


def reward(completion: str, task: Any) -> float:
    """Differs between completions."""
    return sum(map(ord, completion)) % 7 / 7


def overlap(seconds: float, steps: int, max_staleness: int) -> float:
    """Median step seconds of a run."""
    from rlft.config import parse_config
    from rlft.train import train

    tree = {
        "name": "overlap",
        "steps": steps,
        "tasks_per_step": 4,
        "max_staleness": max_staleness,
        "algo": {
            "name": "grpo",
            "group_size": 4,
            "drop_flat": False,
            "loss": {"name": f"{HERE}:SleepingLoss", "seconds": seconds},
        },
        "env": {"name": "addition", "train_size": 200, "held_out_size": 20},
        "model": {"build": "envs.addition:build_model", "dtype": "float32", "max_length": 64},
        "sampler": {
            "engine": f"{HERE}:SleepingEngine",
            "max_tokens": 4,
            "engine_args": {"seconds": seconds},
        },
        "learner": {"token_budget": 4096},
        "rewards": {"fns": [{"fn": f"{HERE}:reward"}]},
        "save": {"every": 0, "at_end": False},
        "record": {"report": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        train(parse_config(tree, "overlap"), Path(folder) / "run")
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    idle = statistics.median(row["time/idle_share_samplers"] for row in rows[2:])
    print(
        f"max_staleness={max_staleness}: {[round(r['time/step_s'], 2) for r in rows]} s, "
        f"samplers idle {idle:.0%}, staleness {max(r['staleness/max'] for r in rows)}"
    )
    return statistics.median(row["time/step_s"] for row in rows[2:])


class _StandIn:
    """A fleet whose actors answer at once with what was made up before the clock started."""

    def __init__(self, samplers: int, answers: dict[str, list[Any]]) -> None:
        self.samplers, self.rewards = list(range(samplers)), list(range(8))
        self._answers = answers

    def ask(self, questions: Any, what: str, deadline_s: float) -> list[Any]:
        return self._answers[what]

    hosts = ()

    def was_busy(self, role: str, seconds: float) -> None:
        pass


def driver(samplers: int, prompts: int, group: int) -> float:
    """Seconds of the driver's own work for one step."""
    from rlft import registry
    from rlft.batch import plan
    from rlft.cluster.fleet import shares
    from rlft.collect import Collector
    from rlft.config import parse_config
    from rlft.credit import group_relative
    from rlft.filters import drop_flat, members_of, rewards_of
    from rlft.policy.text import Text
    from rlft.record.summary import collected
    from rlft.rewards.scorer import Scored
    from rlft.seeding import Key
    from rlft.types import Outcome

    tree = {
        "name": "driver",
        "steps": 1,
        "tasks_per_step": prompts,
        "algo": "grpo",
        "env": "addition",
        "model": {"build": "envs.addition:build_model", "max_length": 64},
        "sampler": {"max_tokens": 16},
        "rewards": {"workers": 8, "fns": [{"fn": "addition"}]},
    }
    cfg = parse_config(tree, "driver")
    env = registry.build("env", "addition")
    train = env.train()
    tasks = [train[i] for i in range(prompts)]
    rng = np.random.default_rng(0)
    heads = [
        (0.0, 3, [("12+34=46", 9, False, (3, 3)) for _ in range(len(share) * group)])
        for share in shares(prompts, samplers)
    ]
    scored = [
        Scored([Outcome("value", float(r)) for r in rng.integers(0, 2, len(share))], 0, "")
        for share in shares(prompts * group, 8)
    ]
    fleet: Any = _StandIn(samplers, {"rollout": [(h, None) for h in heads], "reward": scored})
    with tempfile.TemporaryDirectory() as folder:
        _, tokenizer = registry.build("model", "envs.addition:build_model")(0)
        tokenizer.save_pretrained(folder)
        collector = Collector(cfg, fleet, Text(folder))
        gc.freeze()  # as the loop does
        clock = [("", time.perf_counter())]
        groups = collector.sample(tasks, group, Key(0).child("tasks", 0), False, None)
        clock.append(("ask for and take completions", time.perf_counter()))
        groups, _ = collector.outcomes(groups)
        clock.append(("ask for and take rewards", time.perf_counter()))
        collected(groups)
        clock.append(("metrics", time.perf_counter()))
        kept = drop_flat(groups)
        group_relative(*rewards_of(kept))
        clock.append(("advantages", time.perf_counter()))
        lengths = [m.length for m in members_of(kept)[0]]
        plan(lengths, world=64, budget=16384)
        clock.append(("micro-batches", time.perf_counter()))
        gc.unfreeze()
    for (_, began), (name, ended) in itertools.pairwise(clock):
        print(f"{name:>30}: {ended - began:6.2f} s")
    return clock[-1][1] - clock[0][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of sampling, and of learning")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samplers", type=int, default=1000)
    parser.add_argument("--trajectories", type=int, default=100_000)
    given = parser.parse_args()
    seconds = driver(given.samplers, given.trajectories // 8, 8)
    print(f"driver: {seconds:.2f} s for {given.trajectories} trajectories")
    print(f"driver_share: {seconds / 60:.3f}")
    in_turn = overlap(given.seconds, given.steps, 0)
    ahead = overlap(given.seconds, given.steps, 1)
    print(f"in turn {in_turn:.2f} s a step, ahead {ahead:.2f} s a step")
    print(f"overlap_speedup: {in_turn / ahead:.2f}")


if __name__ == "__main__":
    main()
