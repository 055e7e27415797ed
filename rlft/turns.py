"""Episodes of several turns on the driver: the policy writes, the environment answers, and so on.

All episodes of a rollout go on together: one batch a turn and engine, then one question to the
environment for each; who is done leaves. The tokens stay in the object store, where each turn's sampler
finds the row of the turn before and lengthens it. An environment is asked in processes like those of
rewards (`rlft/rewards/dialogues.py`); what it raises ends the episode as an error, never as a return of 0.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlft.cluster.fleet import Fleet, Question, shares
from rlft.config import Config
from rlft.policy.text import Text
from rlft.rewards.item import ByValue, by_value, conversation
from rlft.rewards.scorer import Scored
from rlft.sampling.sampler import Ask, Head
from rlft.sampling.turns import Turn
from rlft.seeding import Key
from rlft.types import Attempt, Group, Outcome, RowRef, Sampling, Task, Trajectory


@dataclass(slots=True)
class _Episode:
    """An episode under way. key: of its randomness; longest: tokens that its row may have; turns: what
    was said after the prompt; steps, ret, parts, seconds: what the environment gave so far; outcome:
    None while it goes on."""

    id: str
    task: Task
    packed: ByValue
    key: Key
    sampler: int
    host: int
    role: str
    prompt: tuple[int, ...]
    longest: int
    row: RowRef = field(default_factory=lambda: RowRef(None, 0))
    turns: list[str] = field(default_factory=list)
    num_tokens: int = 0
    env_tokens: int = 0
    version: tuple[int, int] = (0, 0)
    steps: list[tuple[int, float]] = field(default_factory=list)
    ret: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    outcome: Outcome | None = None
    truncated: bool = False

    @property
    def text(self) -> str:
        """What the policy wrote: its turns, a line break apart."""
        return "\n".join(self.turns[::2])

    def wrote(self, row: RowRef, head: Head, env_tokens: int) -> None:
        """A turn of the policy. Without a token there was no room for one: the episode is cut off."""
        text, sampled, _, version = head
        self.row = row
        if not sampled:
            self._cut()
            return
        self.version = version
        if self.turns:
            self.version = min(self.version[0], version[0]), max(self.version[1], version[1])
        self.turns.append(text)
        self.num_tokens += sampled
        self.env_tokens += env_tokens

    def heard(self, said: Outcome, last: bool) -> None:
        """What the environment answered. last: the episode may have no more turns."""
        self.seconds += said.seconds
        if said.kind != "value" or said.reward is None:
            self.outcome = replace(said, seconds=self.seconds)
            return
        parts = dict(said.parts)
        over = parts.pop("over", 0.0)
        parts.pop("behind", None)
        self.parts |= parts
        self.ret += said.reward
        self.steps.append((max(1, len(self.text)), said.reward))
        if said.reply:
            self.turns.append(said.reply)
        else:  # turns alternate
            self.turns.append("")
        if over:
            self._end()
        elif last:
            self._cut()

    def asks(self, *, over: bool = False) -> bytes:
        """The question to the environment; over: that it gives the episode up."""
        attempt = Attempt(
            self.id,
            "policy",
            self.turns[-1] if self.turns else "",
            conversation(self.task.prompt, self.turns, self.role),
            truncated=over,
            seed=self.key.child("dialogue").seed(31),
        )
        return pickle.dumps((attempt, self.packed))

    def trajectory(self) -> Trajectory:
        turns = self.turns if self.turns[-1] or len(self.turns) % 2 else self.turns[:-1]
        return Trajectory(
            id=self.id,
            task_id=self.task.id,
            origin="policy",
            text=self.text,
            prompt_len=len(self.prompt),
            num_tokens=self.num_tokens,
            version=self.version,
            truncated=self.truncated,
            row=self.row,
            outcome=self.outcome,
            turns=tuple(turns),
            env_tokens=self.env_tokens,
        )

    def _cut(self) -> None:
        self.truncated = True
        self._end()

    def _end(self) -> None:
        if not math.isfinite(self.ret):
            reason = f"the sum of the episode's rewards is {self.ret}"
            self.outcome = Outcome("error", None, {}, reason, self.seconds, "raised")
            return
        steps = tuple(self.steps)
        self.outcome = Outcome("value", self.ret, self.parts, "", self.seconds, steps=steps)


class Table:
    """Where policy and environment meet: plays the episodes of a rollout."""

    def __init__(self, cfg: Config, fleet: Fleet, text: Text) -> None:
        self._cfg, self._fleet, self._text = cfg, fleet, text

    def play(
        self, tasks: Sequence[Task], n: int, key: Key, sampling: Sampling
    ) -> tuple[list[Group], list[Scored]]:
        """Group `i` holds `n` episodes of `tasks[i]`, each with its outcome; and what the environment's
        workers said.

        The seed of a turn depends on `key`, the task's place, the member and the turn alone.
        """
        episodes = self._begun(tasks, n, key, sampling)
        told: list[Scored] = []
        alive = [one for of_task in episodes for one in of_task]
        for turn in range(self._cfg.turns.max):
            self._write(alive, turn, sampling)
            alive = [one for one in alive if one.outcome is None]
            told += self._hear(alive, last=turn + 1 == self._cfg.turns.max)
            alive = [one for one in alive if one.outcome is None]
            if not alive:
                break
        self._give_up([one for of_task in episodes for one in of_task if one.truncated])
        groups = [
            Group(task, tuple(one.trajectory() for one in of_task))
            for task, of_task in zip(tasks, episodes, strict=True)
        ]
        return groups, told

    def _begun(
        self, tasks: Sequence[Task], n: int, key: Key, sampling: Sampling
    ) -> list[list[_Episode]]:
        cfg = self._cfg
        samplers = _which(shares(len(tasks), len(self._fleet.samplers)))
        hosts = _which(shares(len(tasks) * n, len(self._fleet.hosts)))
        found = []
        for place, task in enumerate(tasks):
            prompt = self._text.fitting_prompt(task, sampling.max_tokens, cfg.model.max_length)
            most = cfg.turns.max_tokens
            longest = cfg.model.max_length
            if most is not None:
                longest = min(longest, len(prompt) + most)
            packed = by_value(task)
            found.append(
                [
                    _Episode(
                        id=f"{key.path[-1]}.{place}.{j}",
                        task=task,
                        packed=packed,
                        key=key.child(place, j),
                        sampler=samplers[place],
                        host=hosts[place * n + j],
                        role=cfg.turns.role,
                        prompt=tuple(prompt),
                        longest=longest,
                    )
                    for j in range(n)
                ]
            )
        return found

    def _write(self, alive: Sequence[_Episode], turn: int, sampling: Sampling) -> None:
        """Every episode's next turn of the policy."""
        owners = self._fleet.samplers
        mine = [[e for e in alive if e.sampler == i] for i in range(len(owners))]
        questions = [
            (owner, _opening(own, sampling) if turn == 0 else _going_on(own, turn, sampling))
            for owner, own in zip(owners, mine, strict=True)
            if own
        ]
        answers = self._fleet.ask(questions, "rollout", self._fleet.limit_s("rollout"))
        for own, ((seconds, _, heads), rows) in zip(filter(None, mine), answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            for index, (one, head) in enumerate(zip(own, heads, strict=True)):
                told, env_tokens = (head, 0) if turn == 0 else head
                one.wrote(RowRef(rows, index), told, env_tokens)

    def _hear(self, alive: Sequence[_Episode], *, last: bool) -> list[Scored]:
        """What the environment says to each turn. A process that plays a lost episode again says how many
        turns it is behind, and is asked until it is not."""
        told: list[Scored] = []
        waiting = list(alive)
        while waiting:
            answers = self._ask([(one, one.asks()) for one in waiting])
            told += answers
            said = (outcome for answer in answers for outcome in answer.outcomes)
            behind = []
            for one, outcome in zip(_by_host(waiting), said, strict=True):
                if outcome.kind == "value" and outcome.parts.get("behind"):
                    behind.append(one)
                else:
                    one.heard(outcome, last)
            waiting = behind
        return told

    def _give_up(self, cut: Sequence[_Episode]) -> None:
        """Tells the environment of episodes that nobody will go on with."""
        if cut:
            self._ask([(one, one.asks(over=True)) for one in cut])

    def _ask(self, asked: Sequence[tuple[_Episode, bytes]]) -> list[Scored]:
        """Answers of the hosts that are asked, in their order; see `_by_host`."""
        questions = []
        for index, owner in enumerate(self._fleet.hosts):
            items = [item for one, item in asked if one.host == index]
            if items:
                questions.append((owner, _answering(items)))
        return self._fleet.ask(questions, "the environment", self._fleet.limit_s("reward"))


def _by_host(episodes: Sequence[_Episode]) -> list[_Episode]:
    return sorted(episodes, key=lambda one: one.host)  # stable, as `_ask` takes them


def _which(parts: Sequence[range]) -> list[int]:
    """For each thing, the number of the part that it is in."""
    return [number for number, part in enumerate(parts) for _ in part]


def _opening(episodes: Sequence[_Episode], sampling: Sampling) -> Question:
    asks = [Ask(one.prompt, (one.key.seed(31),)) for one in episodes]
    return lambda handle: handle.generate.options(num_returns=2).remote(asks, sampling)


def _going_on(episodes: Sequence[_Episode], turn: int, sampling: Sampling) -> Question:
    # All of them were in the one answer that this sampler gave to the turn before.
    [ref] = {one.row.ref for one in episodes}
    turns = [
        Turn(
            at=one.row.index,
            said=one.turns[-1],
            role=None if isinstance(one.task.prompt, str) else one.role,
            seed=one.key.child("turn", turn).seed(31),
            longest=one.longest,
        )
        for one in episodes
    ]
    return lambda handle: handle.go_on.options(num_returns=2).remote(turns, ref, sampling)


def _answering(items: list[bytes]) -> Question:
    return lambda handle: handle.score.remote(items)


def added(env: Outcome | None, own: Outcome) -> Outcome:
    """The outcome of an episode that rewards judged, too: they add up, and the first failure decides.
    Judged again, it has the same."""
    if env is None:
        return own
    if env.kind != "value" or env.reward is None:
        return env
    if own.kind != "value" or own.reward is None:
        return replace(own, parts={**env.parts, **own.parts})
    ret = env.parts.get("return", env.reward)
    parts: dict[str, Any] = {**env.parts, **own.parts, "return": ret}
    seconds = env.seconds + own.seconds
    return Outcome("value", ret + own.reward, parts, "", seconds, steps=env.steps)
