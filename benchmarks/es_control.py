"""Evolution strategies for control: `algos/es.py` as it is, on Gymnasium environments, in one process.

The algorithm asks its run for a population's answers, for their scores and for a step along noise. Here
an answer is an episode, a task is a seed of the environment, and its reward is the undiscounted
return. Policies are a linear map or a small MLP from observations to actions. Members are greedy, or with
`--sampled` draw their actions: where rewards are rare, a greedy member repeats one useless path and all
members earn nothing, while a policy that draws finds the goal now and then. Held-out episodes are greedy.

  python benchmarks/es_control.py --env CartPole-v1 --seeds 0 1 2
  python benchmarks/es_control.py --env MiniGrid-Empty-5x5-v0 --sampled --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from algos.es import ES
from rlft.learning.noise import Drawing, Noise, NoiseStep, blend, take_step
from rlft.seeding import Key
from rlft.types import Group, Outcome, RowRef, Task, Ticket, Trajectory, WeightUpdate


def observed(observation: Any) -> np.ndarray:
    """A flat float32 vector; of MiniGrid's dictionary the image, in tenths."""
    if isinstance(observation, dict):
        return observation["image"].astype(np.float32).ravel() / 10
    return np.asarray(observation, np.float32).ravel()


class ControlRun:
    """The verbs that evolution strategies need, on a policy in this process."""

    def __init__(self, env: str, hidden: int, seed: int) -> None:
        self.key, self.step, self.version, self.numbers = Key(seed), 0, 0, {}
        self.cfg: Any = SimpleNamespace(
            model=SimpleNamespace(dtype="float32"), learner=SimpleNamespace(gpus=0)
        )
        self._env_name, self._envs = env, []
        first = self._env(0)
        inputs = observed(first.reset(seed=0)[0]).size
        actions = int(first.action_space.n)
        layers = [nn.Linear(inputs, hidden), nn.Tanh()] if hidden else []
        self._policy = nn.Sequential(*layers, nn.Linear(hidden or inputs, actions))
        self._policy.requires_grad_(False)
        self._weights = dict(self._policy.named_parameters())
        for weight in self._weights.values():
            weight.zero_()
        self.master = {n: w.clone() for n, w in self._weights.items()}

    async def population(
        self,
        tasks: Sequence[Task],
        members: Mapping[int, Noise],
        drawing: Drawing,
        *,
        key: Key,
        greedy: bool = True,
        together: int = 1,
    ) -> list[Group]:
        columns: list[list[Trajectory]] = [[] for _ in tasks]
        for index, member in members.items():
            blend(self._weights, self.master, [member], drawing)
            draws = None if greedy else np.random.default_rng(key.child("actions", index).seed())
            played = self.episodes([t.target for t in tasks], draws)
            for place, (total, steps) in enumerate(played):
                columns[place].append(trajectory(tasks[place], index, total, steps))
        blend(self._weights, self.master, [], drawing)
        return [Group(t, tuple(c)) for t, c in zip(tasks, columns, strict=True)]

    async def score(self, groups: Sequence[Group], *, again: bool = False) -> list[Group]:
        return list(groups)  # an episode has its reward

    def note(self, numbers: dict[str, float]) -> None:
        self.numbers |= numbers

    def add_noise(self, step: NoiseStep) -> WeightUpdate:
        self.numbers["update_norm"] = take_step(self.master, step, None)
        blend(self._weights, self.master, [], Drawing())
        return WeightUpdate(self.version + 1, self.version, "noise", ())

    def episodes(
        self, seeds: Sequence[int], draws: np.random.Generator | None = None
    ) -> list[tuple[float, int]]:
        """(return, steps) of one episode a seed, all played at once; greedy without `draws`."""
        envs = [self._env(i) for i in range(len(seeds))]
        current = np.stack([observed(e.reset(seed=s)[0]) for e, s in zip(envs, seeds, strict=True)])
        total, length = np.zeros(len(seeds)), np.zeros(len(seeds), int)
        alive = list(range(len(seeds)))
        while alive:
            logits = self._policy(torch.from_numpy(current[alive])).numpy()
            if draws is not None:
                logits = logits + draws.gumbel(size=logits.shape)  # its argmax is a draw
            actions = logits.argmax(-1).tolist()
            for place, action in zip(list(alive), actions, strict=True):
                observation, reward, done, cut, _ = envs[place].step(action)
                current[place] = observed(observation)
                total[place] += float(reward)
                length[place] += 1
                if done or cut:
                    alive.remove(place)
        return list(zip(total.tolist(), length.tolist(), strict=True))

    def _env(self, index: int) -> gymnasium.Env:
        while len(self._envs) <= index:
            if self._env_name.startswith("MiniGrid"):
                import minigrid  # noqa: F401  (registers its environments)
            self._envs.append(gymnasium.make(self._env_name))
        return self._envs[index]


def trajectory(task: Task, member: int, total: float, steps: int) -> Trajectory:
    name = f"{task.id}.{member}"
    outcome = Outcome("value", total)
    made = Trajectory(name, task.id, "policy", "", 0, steps, (0, 0), False, RowRef(None, 0))
    return replace(made, outcome=outcome, member=member)


def train(env: str, algo: ES, *, hidden: int, generations: int, episodes: int, seed: int) -> dict:
    """Mean returns over 50 held-out seeds of the environment, before and after; and env steps."""
    run = ControlRun(env, hidden, seed)
    held_out = list(range(10_000, 10_050))
    before = float(np.mean([r for r, _ in run.episodes(held_out)]))
    steps = 0
    for index in range(generations):
        rng = run.key.child("episodes", index).rng()
        seeds = [rng.randrange(10_000) for _ in range(episodes)]
        tasks = tuple(Task(f"{index}.{i}", "", target=s) for i, s in enumerate(seeds))
        ticket = Ticket(index, tasks, run.key.child("ticket", index))
        groups = asyncio.run(algo.collect(run, ticket))
        steps += sum(m.num_tokens for g in groups for m in g.members)
        run.step = index
        algo.learn(run, groups)
    after = float(np.mean([r for r, _ in run.episodes(held_out)]))
    return {"before": before, "after": after, "env_steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--hidden", type=int, default=0, help="0: a linear policy")
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--sampled", action="store_true", help="members draw their actions")
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    algo = ES(args.population, args.sigma, args.lr, antithetic=True, greedy=not args.sampled)
    for seed in args.seeds:
        began = time.monotonic()
        found = train(
            args.env,
            algo,
            hidden=args.hidden,
            generations=args.generations,
            episodes=args.episodes,
            seed=seed,
        )
        print(
            f"{args.env} seed {seed}: return {found['before']:.2f} before, {found['after']:.2f} after "
            f"({found['env_steps']} steps, {time.monotonic() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
