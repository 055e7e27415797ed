"""Evolution strategies make a model brief: the conciseness task of Qiu et al., arXiv 2509.24372.

The reward is minus the difference in characters between answer and target, on two prompts. Here the
completion alone is counted; the published script counts the prompt too. Each generation also says how far
the policy is from the base model: the exact KL(policy || base) over the vocabulary, mean over the tokens
of the policy's own greedy answers to all prompts, in nats. `algos/es.py` as it is, in one process.

  rlft fetch smollm2-135m, then: python benchmarks/es_conciseness.py --seeds 0 1 2

Departures: held-out prompts of our own, since the paper's are not published with its code; a larger sigma
and lr than there, for tens of generations in place of a thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from es_control import trajectory
from transformers import AutoModelForCausalLM

from algos.es import ES
from rlft.learning.noise import Drawing, Noise, NoiseStep, blend, take_step
from rlft.policy.text import Text
from rlft.sampling.low_rank import with_matrices
from rlft.sampling.transformers import TransformersEngine
from rlft.seeding import Key
from rlft.types import Completion, Group, Request, Sampling, Task, Ticket, WeightUpdate

TRAIN = (
    ("Solve: 3 + 5 =", "8"),
    ("If all birds can fly and penguins are birds, can penguins fly?", "No"),
)
HELD_OUT = (
    ("Solve: 7 - 4 =", "3"),
    ("Solve: 6 * 7 =", "42"),
    ("What is the capital of France?", "Paris"),
    ("Is the sun a star?", "Yes"),
    ("What colour is grass?", "Green"),
    ("How many legs has a spider?", "8"),
    ("Is ice warmer than steam?", "No"),
    ("What is the opposite of hot?", "Cold"),
)


class BriefRun:
    """The verbs that evolution strategies need, on one engine in this process."""

    def __init__(self, folder: Path, seed: int, tokens: int, dtype: str) -> None:
        self.key, self.step, self.version, self.numbers = Key(seed), 0, 0, {}
        self.cfg: Any = SimpleNamespace(
            model=SimpleNamespace(dtype=dtype), learner=SimpleNamespace(gpus=0)
        )
        self._folder, self._text = folder, Text(folder)
        self._engine = TransformersEngine(folder, dtype=dtype, max_length=512, max_batch=128)
        self._sampling = Sampling(
            max_tokens=tokens, greedy=True, stop_ids=tuple(self._text.stop_ids)
        )
        self._weights = self._engine.weights()
        self.master = {n: w.float().clone() for n, w in self._weights.items()}
        self._base = {n: w.clone() for n, w in self._weights.items()}
        self._judged = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype)
        ).eval()

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
        columns: list[list[Any]] = [[] for _ in tasks]
        named, drawing = list(members), with_matrices(drawing, self._folder)
        for start in range(0, len(named), together):
            part = named[start : start + together]
            requests = [Request(self._ids(t), 0, at) for at in range(len(part)) for t in tasks]
            noises = [members[i] for i in part]
            done = iter(self._engine.generate_members(requests, self._sampling, noises, drawing))
            for index in part:
                for place, task in enumerate(tasks):
                    said = next(done)
                    columns[place].append(
                        trajectory(task, index, self.reward(said, task), len(said.ids))
                    )
        return [Group(t, tuple(c)) for t, c in zip(tasks, columns, strict=True)]

    async def score(self, groups: Sequence[Group], *, again: bool = False) -> list[Group]:
        return list(groups)

    def note(self, numbers: dict[str, float]) -> None:
        self.numbers |= numbers

    @torch.inference_mode()
    def add_noise(self, step: NoiseStep) -> WeightUpdate:
        whole = NoiseStep(step.terms, with_matrices(step.drawing, self._folder))
        self.numbers["update_norm"] = take_step(self.master, whole, None)
        blend(self._weights, self.master, [], Drawing())
        return WeightUpdate(self.version + 1, self.version, "noise", ())

    def reward(self, said: Completion, task: Task) -> float:
        """Minus the difference in characters."""
        return -float(abs(len(self.text(said)) - len(str(task.target))))

    def text(self, said: Completion) -> str:
        return self._text.decode(said.ids)

    def answers(self, tasks: Sequence[Task]) -> list[Completion]:
        """Greedy, under the weights of now."""
        return self._engine.generate([Request(self._ids(t), 0) for t in tasks], self._sampling)

    @torch.inference_mode()
    def kl(self, tasks: Sequence[Task], answers: Sequence[Completion]) -> float:
        """See the top of the file."""
        logps = []
        for weights in (self._weights, self._base):
            blend(dict(self._judged.named_parameters()), weights, [], Drawing())
            logps.append([self._logp(t, a) for t, a in zip(tasks, answers, strict=True)])
        own, base = logps
        kls = [(p.exp() * (p - q)).sum(-1) for p, q in zip(own, base, strict=True)]
        return float(torch.cat(kls).mean())

    def _logp(self, task: Task, answer: Completion) -> torch.Tensor:
        """`[T, V]` before each token of the answer."""
        prompt = self._ids(task)
        row = torch.tensor([[*prompt, *answer.ids.tolist()]])
        logits = self._judged(input_ids=row).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.float(), -1)

    def _ids(self, task: Task) -> tuple[int, ...]:
        return tuple(self._text.prompt_ids(({"role": "user", "content": str(task.prompt)},)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--population", type=int, default=30)
    parser.add_argument("--sigma", type=float, default=3e-3)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    algo = ES(args.population, args.sigma, args.lr, rank=1, together=args.population)
    train, held = (
        [Task(f"{kind}{i}", p, target=t) for i, (p, t) in enumerate(pairs)]
        for kind, pairs in (("train", TRAIN), ("held", HELD_OUT))
    )
    print("seed  generation  reward of members  reward, train  reward, held out  KL, nats  seconds")
    for seed in args.seeds:
        run, began = BriefRun(args.model, seed, args.tokens, args.dtype), time.monotonic()
        for index in range(args.generations + 1):
            said = run.answers([*train, *held])
            rewards = [run.reward(a, t) for a, t in zip(said, [*train, *held], strict=True)]
            first, rest = rewards[: len(train)], rewards[len(train) :]
            print(
                f"{seed:4}  {index:10}  {run.numbers.get('es/fitness_mean', float('nan')):17.1f}"
                f"  {sum(first) / len(first):13.1f}  {sum(rest) / len(rest):16.1f}"
                f"  {run.kl([*train, *held], said):8.3f}  {time.monotonic() - began:7.0f}",
                flush=True,
            )
            if index in (0, args.generations):
                for task, answer in zip([*train, *held], said, strict=True):
                    print(f"      {task.prompt} -> {run.text(answer)!r}", flush=True)
            if index == args.generations:
                break
            run.step = index
            ticket = Ticket(index, tuple(train), run.key.child("ticket", index))
            algo.learn(run, asyncio.run(algo.collect(run, ticket)))


if __name__ == "__main__":
    main()
