"""Collecting on the driver: what to ask of samplers and reward workers, and groups from their answers.

Only numbers and text pass through here. Per-token arrays stay in the object store, where the sampler
put them; a trajectory knows where.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import ray
from ray import cloudpickle

from rlft.cluster.fleet import Ask, Fleet
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.policy.text import Text
from rlft.rewards.scorer import Scored
from rlft.sampling.sampler import Head
from rlft.seeding import Key
from rlft.types import Attempt, Group, Outcome, Row, RowRef, Sampling, Task, Trajectory


class Collector:
    """Groups of completions, of demonstrations, and with outcomes."""

    def __init__(self, cfg: Config, fleet: Fleet, text: Text) -> None:
        self._cfg, self._fleet, self._text = cfg, fleet, text

    def sample(
        self, tasks: Sequence[Task], n: int, key: Key, greedy: bool, max_tokens: int | None
    ) -> list[Group]:
        """Group `i` holds `n` completions of `tasks[i]`; see `Run.rollout`."""
        if not self._fleet.samplers:
            raise ConfigError("this samples, but sampler.num is 0; set it to at least 1")
        sampling = self._sampling(greedy, max_tokens)
        prompts = []
        for place, task in enumerate(tasks):
            ids = self._text.fitting_prompt(task, sampling.max_tokens, self._cfg.model.max_length)
            prompts.append((ids, [key.child(place, j).seed(31) for j in range(n)]))
        shares = _shares(len(tasks), len(self._fleet.samplers))
        questions = [
            (sampler, _generating([prompts[i] for i in share], sampling))
            for sampler, share in zip(self._fleet.samplers, shares, strict=True)
        ]
        answers = self._fleet.ask(questions, "rollout", self._cfg.deadlines.rollout)
        groups = []
        for share, ((seconds, heads), rows) in zip(shares, answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            for order, place in enumerate(share):
                mine = range(order * n, (order + 1) * n)
                name, length = f"{key.path[-1]}.{place}", len(prompts[place][0])
                members = [
                    _sampled(f"{name}.{j}", tasks[place], length, heads[i], RowRef(rows, i))
                    for j, i in enumerate(mine)
                ]
                groups.append(Group(tasks[place], tuple(members)))
        return groups

    def demos(self, tasks: Sequence[Task], version: int) -> list[Group]:
        """Each task that has reference responses, with them as members of origin `demo`.

        A response that does not fit into `model.max_length` is cut there.
        """
        rows: list[Row] = []
        found: list[tuple[Task, list[tuple[str, int, bool]]]] = []
        for task in tasks:
            prompt = self._text.fitting_prompt(task, 1, self._cfg.model.max_length)
            here = []
            for demo in task.demos:
                whole = self._text.response_ids(demo)
                response = whole[: self._cfg.model.max_length - len(prompt)]
                unknown = np.full(len(response), np.nan, np.float32)
                here.append((demo, len(rows), len(response) < len(whole)))
                rows.append(Row(np.array([*prompt, *response], np.int32), len(prompt), unknown))
            found.append((task, here))
        stored = ray.put(rows)
        groups = []
        for task, here in found:
            members = tuple(
                Trajectory(
                    id=f"demo.{task.id}.{order}",
                    task_id=task.id,
                    origin="demo",
                    text=demo,
                    prompt_len=rows[at].prompt_len,
                    num_tokens=len(rows[at].ids) - rows[at].prompt_len,
                    version=(version, version),
                    truncated=cut,
                    row=RowRef(stored, at),
                )
                for order, (demo, at, cut) in enumerate(here)
            )
            if members:
                groups.append(Group(task, members))
        return groups

    def outcomes(self, groups: Sequence[Group]) -> tuple[list[Group], list[Scored]]:
        """The same groups with an outcome on every member, and what each reward worker said."""
        if not self._fleet.rewards:
            raise ConfigError("this needs rewards, but rewards.fns is empty; name at least one")
        # By value, so that a task's own class needs no import in the reward process.
        items = [
            cloudpickle.dumps((_attempt(m, g.task), g.task)) for g in groups for m in g.members
        ]
        shares = _shares(len(items), len(self._fleet.rewards))
        questions = [
            (worker, _scoring([items[i] for i in share]))
            for worker, share in zip(self._fleet.rewards, shares, strict=True)
        ]
        answers = self._fleet.ask(questions, "reward", self._cfg.deadlines.reward)
        outcome: Iterator[Outcome] = itertools.chain.from_iterable(a.outcomes for a in answers)
        scored = [
            dataclasses.replace(
                g, members=tuple(dataclasses.replace(m, outcome=next(outcome)) for m in g.members)
            )
            for g in groups
        ]
        return scored, answers

    def _sampling(self, greedy: bool, max_tokens: int | None) -> Sampling:
        cfg = self._cfg.sampler
        limit = max_tokens or cfg.max_tokens
        return Sampling(
            max_tokens=limit,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            top_k=cfg.top_k,
            greedy=greedy,
            min_tokens=min(cfg.min_tokens, limit),
            stop_ids=self._text.stop_ids,
        )


def _generating(prompts: list[tuple[list[int], list[int]]], sampling: Sampling) -> Ask:
    return lambda handle: handle.generate.options(num_returns=2).remote(prompts, sampling)


def _scoring(items: list[bytes]) -> Ask:
    return lambda handle: handle.score.remote(items)


def _sampled(name: str, task: Task, prompt_len: int, head: Head, row: RowRef) -> Trajectory:
    text, num_tokens, truncated, version = head
    return Trajectory(
        id=name,
        task_id=task.id,
        origin="policy",
        text=text,
        prompt_len=prompt_len,
        num_tokens=num_tokens,
        version=version,
        truncated=truncated,
        row=row,
    )


def _attempt(member: Trajectory, task: Task) -> Attempt:
    """What a reward may see of a trajectory."""
    said = {"role": "assistant", "content": member.text}
    asked = task.prompt
    before = ({"role": "user", "content": asked},) if isinstance(asked, str) else asked
    return Attempt(
        id=member.id,
        origin=member.origin,
        text=member.text,
        messages=(*before, said),
        num_tokens=member.num_tokens,
        truncated=member.truncated,
        version=member.version,
    )


def _shares(count: int, workers: int) -> list[range]:
    """Contiguous shares of `count` things, as equal as can be: fixed by the two numbers alone."""
    edges = [count * i // workers for i in range(workers + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]
