"""What the `collect` of an algorithm for environments is given: verbs for one ticket, with a row of its
own.

Between steps environments are somewhere in their episodes. Where, lies in the object store, one entry a
block; which entries belong to which step is kept here, so that a checkpoint has those of its own step. Each
runner has its own blocks, and goes from one ticket to the next as soon as that one is collected at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlft.cluster.fleet import Fleet, Question
from rlft.cluster.waits import fetch
from rlft.config import Config
from rlft.errors import ActorFailed, CheckpointError, EpisodesFailed, PluginError
from rlft.lanes import Lanes
from rlft.record.acted import acted, episodes_of, error_share, samples
from rlft.record.metrics import StepRow
from rlft.record.records import Records
from rlft.sampling.episodes import Start
from rlft.sampling.vector import Branching, Dealer, Told
from rlft.seeding import Key
from rlft.types import Group, Outcome, RowRef, Task, Trajectory

_EPISODES = 64
"""Episodes that a runner is asked for at once, at least: the unit of work, whoever does it. A block of
environments is then full for most of the time, and what is asked does not depend on how many runners there
are."""


class Stage:
    """The runners of a run, and where their environments are."""

    def __init__(self, cfg: Config, fleet: Fleet, key: Key) -> None:
        self._cfg, self._fleet = cfg, fleet
        self._dealer = Dealer(key.child("deal"))
        self._left: dict[int, list[Any]] = {}
        blocks, together = cfg.runner.blocks, 2 if cfg.sampler.gpus else 1
        self._shares = [range(i, min(i + together, blocks)) for i in range(0, blocks, together)]
        self._lanes = Lanes(min(cfg.sampler.num, len(self._shares)), fleet.waits.abandon)

    async def segments(
        self, ticket: int, steps: int, key: Key, task: Task
    ) -> tuple[list[Group], float]:
        """`steps` steps of every environment, from where the ticket before left them; and for how long a
        runner had nothing to do before, on average."""
        if ticket + 1 in self._left:
            raise PluginError(
                f"step {ticket + 1}: an algorithm collects segments once a step, and before it awaits "
                f"anything else: they go on where those of the step before ended"
            )
        first = ticket not in self._left
        rests = self._left.setdefault(ticket, [None] * len(self._shares))
        after = self._left[ticket + 1] = [None] * len(self._shares)
        answers: list[Any] = [None] * len(self._shares)

        def ask(lane: int) -> None:
            mine = range(lane, len(self._shares), self._lanes.count)
            if not first and any(rests[i] is None for i in mine):
                raise ActorFailed(f"step {ticket + 1}: what comes before it was not collected")
            runner = self._fleet.samplers[lane]
            questions = [
                (
                    runner,
                    _calling("segments", 3, self._shares[i], rests[i], steps, key, self._dealer),
                )
                for i in mine
            ]
            found = self._fleet.ask(questions, "rollout", self._fleet.limit_s("rollout"))
            for index, (told, rows, left) in zip(mine, found, strict=True):
                self._fleet.was_busy("samplers", told[0])
                answers[index], after[index] = (told, rows), left

        _, idle = await self._lanes.each(ask)
        members = [
            _member(f"{ticket}.{index}.{i}", task.id, one, version, RowRef(rows, i))
            for index, ((_, version, told), rows) in enumerate(answers)
            for i, one in enumerate(told)
        ]
        return [Group(task, tuple(members))], idle

    def episodes(
        self,
        tasks: Sequence[Task],
        n: int,
        key: Key,
        greedy: bool,
        record: bool = True,
    ) -> list[Group]:
        """`n` whole episodes from each configuration. record: False leaves the strips empty."""
        starts = [
            Start(task, key.child(place, j).seed(63))
            for place, task in enumerate(tasks)
            for j in range(n)
        ]
        share = n * self._together(n)
        units = [starts[i : i + share] for i in range(0, len(starts), share)]
        answers = self._fleet.share_out(
            [_calling("episodes", 2, unit, greedy, record) for unit in units],
            "rollout",
            self._fleet.limit_s("rollout"),
        )
        found: list[Trajectory] = []
        for unit, ((seconds, version, told), rows) in zip(units, answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            found += [
                _member(
                    f"{key.path[-1]}.{len(found) + i}",
                    unit[i].task.id,
                    one,
                    version,
                    RowRef(rows, i),
                )
                for i, one in enumerate(told)
            ]
        return [
            Group(task, tuple(found[place * n : (place + 1) * n]))
            for place, task in enumerate(tasks)
        ]

    def films(
        self, tasks: Sequence[Task], n: int, key: Key, greedy: bool
    ) -> list[tuple[bytes, str]]:
        """The first episode of `episodes` from each configuration as a GIF; or nothing, and why."""
        starts = [Start(task, key.child(place, 0).seed(63)) for place, task in enumerate(tasks[:n])]
        return self._fleet.share_out(
            [_calling("film", 1, start, greedy) for start in starts],
            "filming",
            self._fleet.limit_s("rollout"),
        )

    def vines(
        self, tasks: Sequence[Task], seeds: int, branching: Branching, key: Key
    ) -> list[Vines]:
        """Of each configuration: seed trajectories, and vines from states on their way."""
        jobs = [(task, key.child(place)) for place, task in enumerate(tasks)]
        share = self._together(seeds * (1 + branching.states * branching.vines))
        units = [jobs[i : i + share] for i in range(0, len(jobs), share)]
        answers = self._fleet.share_out(
            [_calling("vines", 2, unit, seeds, branching) for unit in units],
            "rollout",
            self._fleet.limit_s("rollout"),
        )
        found: list[Vines] = []
        for unit, ((seconds, version, told), rows) in zip(units, answers, strict=True):
            self._fleet.was_busy("samplers", seconds)
            row = 0
            for (task, _), of_task in zip(unit, told, strict=True):
                name = f"{key.path[-1]}.{len(found)}"
                members = [
                    _member(f"{name}.{i}", task.id, one, version, RowRef(rows, row + i))
                    for i, one in enumerate(of_task)
                ]
                row += len(of_task)
                found.append(_vines(task, members, of_task))
        return found

    def _together(self, episodes: int) -> int:
        """How many configurations of so many episodes make a unit of work."""
        return max(1, max(_EPISODES, 2 * self._cfg.runner.envs) // episodes)

    def close(self) -> None:
        """Ends what it waits for, and its threads."""
        self._lanes.close()

    def forget_before(self, ticket: int) -> None:
        """Gives up where environments were before `ticket`."""
        for past in [t for t in list(self._left) if t < ticket]:  # it grows beside this
            del self._left[past]

    def left(self, ticket: int) -> list[Any] | None:
        """Where environments are before `ticket`, fetched; None if nothing was collected in segments."""
        held = self._left.get(ticket)
        return None if held is None else fetch(held, self._cfg.deadlines.save, "environments")

    def put_back(self, ticket: int, left: list[Any]) -> None:
        """Says where environments are before `ticket`. Raises CheckpointError: they are not as here."""
        if len(left) != len(self._shares):
            raise CheckpointError(
                f"the checkpoint has environments in {len(left)} parts, this run has {len(self._shares)}: "
                f"with sampler.gpus a part is two blocks, else one. Resume with sampler.gpus as it was"
            )
        self._left = {ticket: left}


@dataclass(frozen=True, slots=True)
class Vines:
    """The seed trajectories from one configuration, and the vines of each rollout state as a group."""

    roots: Group
    families: tuple[Group, ...]


def _vines(task: Task, members: Sequence[Trajectory], told: Sequence[Told]) -> Vines:
    families: dict[tuple[int, int], list[Trajectory]] = {}
    for member, one in zip(members, told, strict=True):
        families.setdefault((one.root, one.point), []).append(member)
    roots = families.pop((-1, 0), [])
    branched = tuple(
        Group(task, tuple(_branched(m, number) for m in family))
        for number, family in enumerate(families.values())
    )
    return Vines(Group(task, tuple(roots)), branched)


@dataclass(frozen=True, slots=True)
class Acting:
    """Verbs: `segments`, `episodes`, `vines`, `note`; else as `Collecting`."""

    cfg: Config
    step: int
    version: int
    key: Key
    state: Any
    _stage: Stage
    _records: Records
    row: StepRow = field(default_factory=StepRow)

    async def segments(self, steps: int, *, key: Key) -> list[Group]:
        """`steps` steps of each of the `runner.blocks x runner.envs` environments, episode after episode,
        cut where they are then. One group of strips of single episodes, the shorter the more episodes
        ended."""
        with self.row.timed("rollout"):
            groups, idle = await self._stage.segments(self.step, steps, key, Task("all", ""))
        if self.cfg.max_staleness:
            self.row["time/lag_wait_s"] = idle
        return self._told(groups)

    async def episodes(self, tasks: Sequence[Task], *, n: int, key: Key) -> list[Group]:
        """`n` whole episodes from each configuration; group `i` belongs to `tasks[i]`."""
        with self.row.timed("rollout"):
            groups = self._stage.episodes(tasks, n, key, greedy=False)
        return self._told(groups)

    async def vines(
        self, tasks: Sequence[Task], *, seeds: int, states: int, vines: int, key: Key
    ) -> list[Vines]:
        """`seeds` trajectories from each configuration, and `vines` more from each of `states` equally
        spaced states of each of them (arXiv 2509.25424, appendix A.1.1)."""
        with self.row.timed("rollout"):
            found = self._stage.vines(tasks, seeds, Branching(states, vines), key)
        whole = [g for v in found for g in (v.roots, *v.families)]
        families = [f for v in found for f in v.families]
        self._told([v.roots for v in found], families)
        self.row["env/steps"] = float(sum(m.num_tokens for g in whole for m in g.members))
        self.row["env/strips"] = float(sum(len(g.members) for g in whole))
        self.row["tokens/sampled"] = self.row["tokens/completion"] = self.row["env/steps"]
        return found

    def _told(self, groups: list[Group], vines: Sequence[Group] = ()) -> list[Group]:
        """Notes how episodes went. vines: of which only the failures are told, since the return of what
        began on the way of another episode says little of the policy."""
        self.row.update(acted(groups))
        for row in samples(groups, self.step + 1, "train"):
            self._records.sample(row)
        failed = [
            replace(
                g, members=tuple(m for m in g.members if m.episode and m.episode.end == "error")
            )
            for g in vines
        ]
        for row in samples(failed, self.step + 1, "train"):
            self._records.sample(row)
        whole = [*groups, *vines]
        if vines:
            self.row["vines/errors"] = error_share(vines)
            self.row["reward/errors"] = error_share(whole)
        self._stop_if_too_many_failed(whole)
        return groups

    def _stop_if_too_many_failed(self, groups: list[Group]) -> None:
        share, limit = self.row["reward/errors"], self.cfg.rewards.max_error_share
        if share <= limit:
            return
        failed = [e for e in episodes_of(groups) if e.end == "error"]
        raise EpisodesFailed(
            f"step {self.step + 1}: {share:.0%} of the episodes failed, more than "
            f"rewards.max_error_share={limit:g}. The first, with seed {failed[0].seed}:\n{failed[0].error}"
        )

    def note(self, numbers: Mapping[str, float]) -> None:
        """Adds an algorithm's own numbers to the metrics of the step."""
        self.row.update(numbers)


def _branched(member: Trajectory, number: int) -> Trajectory:
    assert member.episode is not None
    return replace(member, episode=replace(member.episode, branch=number))


def _calling(method: str, returns: int, *args: Any) -> Question:
    """Asks a runner for `method(*args)`, of which each part of the answer is an object of its own."""

    def ask(handle: Any) -> Any:
        return getattr(handle, method).options(num_returns=returns).remote(*args)

    return ask


def _member(name: str, task: str, told: Told, version: int, row: RowRef) -> Trajectory:
    episode = told.episode
    outcome = None
    if episode is not None and episode.end == "error":
        outcome = Outcome("error", None, reason=episode.error, fault="raised")
    elif episode is not None:
        parts = {} if episode.success is None else {"success": float(episode.success)}
        outcome = Outcome("value", episode.ret, parts)
    return Trajectory(
        id=name,
        task_id=task,
        origin="policy",
        text="",
        prompt_len=0,
        num_tokens=told.steps,
        version=(version, version),
        truncated=told.end == "truncated",
        row=row,
        outcome=outcome,
        episode=episode,
    )
