"""Collecting on the driver: what to ask of samplers and reward workers, and groups from their answers.

Only numbers and text pass through here. Per-token arrays stay in the object store, where the sampler
put them; a trajectory knows where.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import ray

from rlft.cluster.fleet import Fleet, Question, shares
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.learning.noise import Drawing, Noise
from rlft.policy.text import Text
from rlft.reference import Demo, Wanted, demo_member, demo_row, sampled_member, wanted
from rlft.rewards.item import items
from rlft.rewards.places import joined, places
from rlft.rewards.scorer import Scored
from rlft.sampling.sampler import Ask
from rlft.seeding import Key
from rlft.turns import Table, added
from rlft.types import Group, Guide, Outcome, RowRef, Sampling, Task, Trajectory


class Collector:
    """Groups of completions, of demonstrations, and with outcomes."""

    def __init__(self, cfg: Config, fleet: Fleet, text: Text) -> None:
        self._cfg, self._fleet, self._text = cfg, fleet, text
        self._places = places(cfg.rewards)
        self._table = Table(cfg, fleet, text)
        self._heard = threading.local()  # what hosts said to episodes of this thread, not yet told

    def sample(
        self,
        tasks: Sequence[Task],
        n: int,
        key: Key,
        greedy: bool,
        max_tokens: int | None,
        guide: Guide | None = None,
    ) -> list[Group]:
        """Group `i` holds `n` completions of `tasks[i]`; see `Collecting.rollout`.

        Of an environment that answers back they are episodes, which have their outcome already.
        """
        if not self._fleet.samplers:
            raise ConfigError("this samples, but sampler.num is 0; set it to at least 1")
        sampling = self._sampling(greedy, max_tokens)
        if self._fleet.hosts:
            if guide is not None:
                raise ConfigError(
                    "the algorithm begins answers with demonstrations, which is not built for an "
                    "environment that answers back; use one without, such as grpo, ppo or sft"
                )
            groups, told = self._table.play(tasks, n, key, sampling)
            self._heard.told = [*getattr(self._heard, "told", ()), *told]
            return groups
        asked = [
            self._wanted(
                task, [key.child(place, j).seed(31) for j in range(n)], sampling, guide, place
            )
            for place, task in enumerate(tasks)
        ]
        split = shares(len(tasks), len(self._fleet.samplers))
        questions = [
            (sampler, _generating([a for i in share for a in asked[i].asks], sampling))
            for sampler, share in zip(self._fleet.samplers, split, strict=True)
        ]
        answers = self._fleet.ask(questions, "rollout", self._fleet.limit_s("rollout"))
        demos = _stored([demo for wish in asked for demo in wish.demos])
        groups = []
        for share, ((seconds, version, heads), rows) in zip(split, answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            found = ((head, RowRef(rows, i)) for i, head in enumerate(heads))
            for place in share:
                task, name = tasks[place], f"{key.path[-1]}.{place}"
                members = [
                    sampled_member(name, task, ask, *next(found))
                    for ask in asked[place].asks
                    for _ in ask.seeds
                ]
                members += [
                    demo_member(name, task, demo, version, next(demos))
                    for demo in asked[place].demos
                ]
                named = (replace(m, id=f"{name}.{j}") for j, m in enumerate(members))
                groups.append(Group(task, tuple(named)))
        return groups

    def population(
        self,
        tasks: Sequence[Task],
        members: Mapping[int, Noise],
        drawing: Drawing,
        key: Key,
        greedy: bool,
        together: int,
    ) -> tuple[list[Group], float]:
        """Groups with one completion a member, and the seconds spent perturbing, by all samplers; see
        `Collecting.population`."""
        sampling = self._sampling(greedy, None)
        asks = [
            self._wanted(task, [key.child(place).seed(31)], sampling, None, place).asks[0]
            for place, task in enumerate(tasks)
        ]
        numbers = list(members)
        units = [numbers[i : i + together] for i in range(0, len(numbers), together)]
        answers = self._fleet.share_out(
            [_evaluating([members[i] for i in unit], drawing, asks, sampling) for unit in units],
            "rollout",
            self._fleet.limit_s("rollout"),
        )
        columns: list[list[Trajectory]] = [[] for _ in tasks]
        spent = 0.0
        for unit, ((seconds, perturbing, _, heads), rows) in zip(units, answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            spent += perturbing
            found = ((head, RowRef(rows, i)) for i, head in enumerate(heads))
            for member in unit:
                for place, (task, ask) in enumerate(zip(tasks, asks, strict=True)):
                    one = sampled_member(
                        f"{key.path[-1]}.{place}.{member}", task, ask, *next(found)
                    )
                    columns[place].append(replace(one, member=member))
        return [Group(t, tuple(c)) for t, c in zip(tasks, columns, strict=True)], spent

    def demos(self, tasks: Sequence[Task], version: int) -> list[Group]:
        """Each task that has reference responses, with them as members of origin `demo`.

        A response that does not fit into `model.max_length` is cut there.
        """
        found: list[tuple[Task, list[Demo]]] = []
        for task in tasks:
            prompt = self._text.fitting_prompt(task, 1, self._cfg.model.max_length)
            here = []
            for demo in task.demos:
                whole = self._text.response_ids(demo)
                fits = whole[: self._cfg.model.max_length - len(prompt)]
                here.append(Demo(demo, demo_row(prompt, fits), cut=len(fits) < len(whole)))
            role = None if isinstance(task.prompt, str) else self._cfg.turns.role
            room = self._cfg.model.max_length - len(prompt)
            for turns in task.dialogues:
                ids, own = self._text.dialogue_ids(turns, role)
                row = demo_row(prompt, ids[:room], own[:room])
                text = "\n".join(turns[::2])
                here.append(Demo(text, row, cut=len(ids) > room, turns=tuple(turns)))
            found.append((task, here))
        refs = _stored([demo for _, here in found for demo in here])
        return [
            Group(
                task,
                tuple(
                    demo_member(f"demo.{task.id}.{order}", task, demo, version, next(refs))
                    for order, demo in enumerate(here)
                ),
            )
            for task, here in found
            if here
        ]

    def outcomes(self, groups: Sequence[Group]) -> tuple[list[Group], list[Scored]]:
        """The same groups with an outcome on every member, and what each reward worker said."""
        heard: list[Scored] = getattr(self._heard, "told", [])
        self._heard.told = []
        if self._fleet.hosts and not self._fleet.rewards:
            return list(groups), heard
        if not self._fleet.rewards:
            raise ConfigError("this needs rewards, but rewards.fns is empty; name at least one")
        asked = [item for group in groups for item in items(group, self._cfg.turns.role)]
        owners = iter(self._fleet.rewards)
        questions = [
            (next(owners), _scoring([asked[i] for i in share]))
            for place in self._places
            for share in shares(len(asked), place.num)
        ]
        answers = self._fleet.ask(questions, "reward", self._fleet.limit_s("reward"))
        told = iter(answers)
        said = [
            [o for _ in range(place.num) for o in next(told).outcomes] for place in self._places
        ]
        outcome: Iterator[Outcome] = (
            joined(self._cfg.rewards, self._places, one) for one in zip(*said, strict=True)
        )
        scored = [
            replace(
                g,
                members=tuple(
                    replace(m, outcome=added(m.outcome if m.turns else None, next(outcome)))
                    for m in g.members
                ),
            )
            for g in groups
        ]
        return scored, [*answers, *heard]

    def _wanted(
        self, task: Task, seeds: list[int], sampling: Sampling, guide: Guide | None, place: int
    ) -> Wanted:
        prompt = self._text.fitting_prompt(task, sampling.max_tokens, self._cfg.model.max_length)
        return wanted(
            self._text,
            task,
            prompt,
            seeds,
            share=guide.shares[place] if guide else 0.0,
            guide=guide,
            max_tokens=sampling.max_tokens,
            max_length=self._cfg.model.max_length,
        )

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


def _generating(asks: Sequence[Ask], sampling: Sampling) -> Question:
    return lambda handle: handle.generate.options(num_returns=2).remote(asks, sampling)


def _evaluating(
    members: Sequence[Noise], drawing: Drawing, asks: Sequence[Ask], sampling: Sampling
) -> Question:
    return lambda handle: handle.population.options(num_returns=2).remote(
        members, drawing, asks, sampling
    )


def _scoring(items: list[bytes]) -> Question:
    return lambda handle: handle.score.remote(items)


def _stored(demos: Sequence[Demo]) -> Iterator[RowRef]:
    """Puts the demonstrations' rows into the object store; where each lies, in order."""
    ref = ray.put([demo.row for demo in demos]) if demos else None
    return (RowRef(ref, index) for index in range(len(demos)))
