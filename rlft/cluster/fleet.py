"""The actors of a run, once started (`start_fleet`): called together, replaced alone, ended together."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.util.placement_group import remove_placement_group

from rlft.cluster.budget import Budget
from rlft.cluster.waits import Owner, Waits, end
from rlft.config import Config
from rlft.errors import ActorDied, DeadlineExceeded, RecoveryFailed, RlftError

Question = Callable[[Any], Any]
"""Puts a question to an actor's handle; returns the reference to its answer, or a list of those. A
question can be put again, to a replacement."""


@dataclass(frozen=True, slots=True)
class Post:
    """What an actor is made of, so that it can be made again. unit: of its progress, empty: it has one
    thread, Python's main one, on which signals are handled, and says nothing while it works."""

    name: str
    unit: str
    cls: type
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that were put, to whom, and the references of their answers; the last two change where
    somebody is replaced."""

    questions: list[Question]
    owners: list[Owner]
    answers: list[Any]


class Fleet:
    """Owners (named handles) of every actor, by role.

    A sampler or reward worker that died, froze or passed a deadline is replaced, and asked again what
    it was asked; a learner rank is not: its state is in the checkpoint. catch_up: brings a new
    sampler to the published weights; without it samplers are not replaced either.
    """

    def __init__(self, cfg: Config, posts: dict[str, list[Post]], group: Any, waits: Waits) -> None:
        self.waits, self.deadlines = waits, cfg.deadlines
        self._ahead = cfg.max_staleness > 0
        self.shares_gpus = shares_gpus(cfg)
        self.catch_up: Callable[[Owner], None] | None = None
        self._restarts = 0
        self._busy_s: dict[str, float] = {}
        self._busy_since = time.monotonic()
        self._counting = threading.Lock()
        self._group, self._budget = group, Budget(cfg.recovery)
        self._posts = {post.name: post for post in itertools.chain(*posts.values())}
        self._replacing = threading.Lock()
        self.samplers: list[Owner] = []
        self.learners: list[Owner] = []
        self.rewards: list[Owner] = []
        self.hosts: list[Owner] = []  # of the environment of a policy that writes
        for role in ("samplers", "learners", "rewards", "hosts"):
            getattr(self, role).extend(_started(post) for post in posts[role])

    @property
    def owners(self) -> list[Owner]:
        return [*self.samplers, *self.learners, *self.rewards, *self.hosts]

    def census(self) -> str:
        """How many there are of each role, in words."""
        counts = {
            **{"sampler": self.samplers, "learner": self.learners},
            **{"reward worker": self.rewards, "environment worker": self.hosts},
        }
        return ", ".join(f"{len(owners)} {role}" for role, owners in counts.items() if owners)

    def all(
        self, owners: Sequence[Owner], method: str, *args: Any, what: str, deadline_s: float
    ) -> list:
        """Calls `method(*args)` on each of `owners` at once and waits for all."""

        def ask(handle: Any) -> Any:
            return getattr(handle, method).remote(*args)

        return self.ask([(owner, ask) for owner in owners], what, deadline_s)

    def ask(
        self, questions: Sequence[tuple[Owner, Question]], what: str, deadline_s: float
    ) -> list:
        """Puts every question at once; returns the answers in order. Who is lost meanwhile is
        replaced and asked again.

        Of a question with several answers only the first is fetched: (value, reference, ...).
        """
        return self.gather(self.put(questions), what, deadline_s)

    def put(
        self,
        questions: Sequence[tuple[Owner, Question]],
        then: Callable[[], None] = lambda: None,
    ) -> Asked:
        """Puts every question at once, for `gather`. then: called when all are put, while no sampler is
        being replaced. A newcomer is asked when it is whole, and samplers meanwhile nothing; others do not
        wait for that."""
        with self._replacing if self._of_samplers(questions) else nullcontext():
            now = {owner.name: owner for owner in self.owners}
            owners = [now.get(owner.name, owner) for owner, _ in questions]
            answers = [ask(owner.handle) for owner, (_, ask) in zip(owners, questions, strict=True)]
            then()
        return Asked([ask for _, ask in questions], owners, answers)

    def gather(self, asked: Asked, what: str, deadline_s: float) -> list:
        """Waits for the answers to what was put, as `ask`; the deadline counts from now."""
        questions, owners, answers = asked.questions, asked.owners, asked.answers
        slow: set[int] = set()

        def revive(place: int, error: RlftError) -> tuple[Owner, Any]:
            if isinstance(error, DeadlineExceeded):
                if place in slow:
                    raise RecoveryFailed(f"a second time, with a new actor: {error}") from error
                slow.add(place)
            owners[place] = self._replacement(owners[place], error)
            answers[place] = questions[place](owners[place].handle)
            return owners[place], _first(answers[place])

        pending = [(o, _first(a)) for o, a in zip(owners, answers, strict=True)]
        values = self.waits.get(pending, what, deadline_s, revive)
        return [
            (value, *answer[1:]) if isinstance(answer, list) else value
            for value, answer in zip(values, answers, strict=True)
        ]

    def gather_left(self, asked: Asked, what: str, deadline_s: float) -> list:
        """As `gather`, where who is lost need not be started again: None in the place of its answer."""
        found = []
        for owner, answer in zip(asked.owners, asked.answers, strict=True):
            try:
                found += self.waits.get([(owner, _first(answer))], what, deadline_s)
            except (ActorDied, DeadlineExceeded) as error:
                self.waits.say(f"{_headline(error)}; it is not needed any more")
                found.append(None)
        return found

    def share_out(self, questions: Sequence[Question], what: str, deadline_s: float) -> list:
        """Puts each question to whichever sampler is free; returns the answers in the questions' order.

        A sampler that is lost is replaced and asked again the question it had. See `ask` for
        questions with several answers; each question has a deadline of its own.
        """
        with self._replacing:
            lanes: list[Owner] = list(self.samplers[: len(questions)])
            asked: list[Any] = [q(lane.handle) for q, lane in zip(questions, lanes, strict=False)]
        waiting = iter(range(len(lanes), len(questions)))
        at = list(range(len(lanes)))
        answers: list[Any] = [None] * len(questions)
        slow: set[int] = set()

        def put(lane: int) -> tuple[Owner, Any]:
            asked[lane] = questions[at[lane]](lanes[lane].handle)
            return lanes[lane], _first(asked[lane])

        def revive(lane: int, error: RlftError) -> tuple[Owner, Any]:
            if isinstance(error, DeadlineExceeded):
                if at[lane] in slow:
                    raise RecoveryFailed(f"a second time, with a new actor: {error}") from error
                slow.add(at[lane])
            lanes[lane] = self._replacement(lanes[lane], error)
            return put(lane)

        def then(lane: int, value: Any) -> tuple[Owner, Any] | None:
            answer = asked[lane]
            answers[at[lane]] = (value, *answer[1:]) if isinstance(answer, list) else value
            following = next(waiting, None)
            if following is None:
                return None
            at[lane] = following
            return put(lane)

        pending = [(o, _first(a)) for o, a in zip(lanes, asked, strict=True)]
        self.waits.get(pending, what, deadline_s, revive, then)
        return answers

    def limit_s(self, work: Literal["rollout", "reward"]) -> float:
        """How long an answer may take. Ahead, work of the other thread may lie before it on the same actor,
        which does one thing after the other."""
        limit: float = getattr(self.deadlines, work)
        return 2 * limit if self._ahead else limit

    def _of_samplers(self, questions: Sequence[tuple[Owner, Question]]) -> bool:
        names = set(_names(self.samplers))
        return any(owner.name in names for owner, _ in questions)

    def undisturbed(self) -> AbstractContextManager[Any]:
        """While in it nobody is replaced, and no question is put."""
        return self._replacing

    def restarted(self, count: int) -> None:
        """Notes that actors were started again."""
        with self._counting:
            self._restarts += count

    def restarts(self) -> int:
        """Actors started again since this was last asked."""
        with self._counting:
            count, self._restarts = self._restarts, 0
        return count

    def was_busy(self, role: str, seconds: float) -> None:
        """Notes that an actor of `role` worked for so long."""
        with self._counting:
            self._busy_s[role] = self._busy_s.get(role, 0.0) + seconds

    def idle_shares(self) -> dict[str, float]:
        """The share of the time since this was last asked that actors of each role did nothing."""
        with self._counting:
            busy, self._busy_s = self._busy_s, {}
            began, self._busy_since = self._busy_since, time.monotonic()
            span = max(1e-9, self._busy_since - began)
        counts = {"samplers": self.samplers, "learners": self.learners}
        return {
            role: max(0.0, 1 - busy.get(role, 0.0) / (len(owners) * span))
            for role, owners in counts.items()
            if owners
        }

    @contextmanager
    def samplers_asleep(self) -> Iterator[None]:
        """Colocated engines give their GPU memory to the learner meanwhile; on CPU nothing happens."""
        if not self.shares_gpus:
            yield
            return
        limit = self.deadlines.publish
        self.all(self.samplers, "sleep", what="falling asleep", deadline_s=limit)
        yield
        self.all(self.samplers, "wake", what="waking up", deadline_s=limit)

    def close(self) -> None:
        """Ends every actor and gives their place back."""
        for owner in self.owners:
            end(owner)
        remove_placement_group(self._group)

    def _replacement(self, lost: Owner, error: RlftError) -> Owner:
        """A new actor in the place of `lost`, caught up; or the one that another thread put there.

        Raises `error` if such an actor is not replaced, RecoveryFailed if it was too often.
        """
        with self._replacing:
            role = next(
                r
                for r in (self.samplers, self.learners, self.rewards, self.hosts)
                if lost.name in _names(r)
            )
            place = _names(role).index(lost.name)
            if role[place].handle is not lost.handle:
                return role[place]
            if role is self.learners or (role is self.samplers and self.catch_up is None):
                raise error
            while True:
                which = self._budget.spend(lost.name, error)
                self.restarted(1)
                self.waits.say(f"{_headline(error)}; {lost.name} is started again ({which})")
                try:
                    return self._restart(role, place)
                except ActorDied as again:
                    error = again

    def _restart(self, role: list[Owner], place: int) -> Owner:
        end(role[place])
        began = time.monotonic()
        new = _started(self._posts[role[place].name])
        try:
            asked = [(new, new.handle.whereabouts.remote())]
            if role is self.samplers:
                asked.append((new, new.handle.start.remote()))
            where = self.waits.get(asked, "starting", self.deadlines.start)[0]
            new = replace(new, where=where)
            if role is self.samplers and self.catch_up is not None:
                self.catch_up(new)
        except BaseException:
            end(new)
            raise
        role[place] = new  # whole: others ask it from now on
        self.waits.say(f"{new.name} is back after {time.monotonic() - began:.1f} s")
        return new


def _started(post: Post) -> Owner:
    groups = {"concurrency_groups": {"control": 1, "between": 1}} if post.unit else {"num_cpus": 0}
    actor: Any = ray.remote(**groups)(post.cls)
    return Owner(post.name, actor.options(**post.options).remote(post.name, *post.args), post.unit)


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, list) else answer


def _names(owners: Sequence[Owner]) -> list[str]:
    return [owner.name for owner in owners]


def _headline(error: RlftError) -> str:
    return str(error).splitlines()[0].rstrip(" .:")


def shares(count: int, workers: int) -> list[range]:
    """Contiguous shares of `count` things, as equal as can be: fixed by the two numbers alone."""
    edges = [count * i // workers for i in range(workers + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def shares_gpus(cfg: Config) -> bool:
    """Whether samplers and learner ranks take turns on the same GPUs."""
    return cfg.cluster.placement == "colocated" and cfg.sampler.gpus > 0 and cfg.learner.gpus > 0
