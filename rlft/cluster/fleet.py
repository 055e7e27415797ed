"""The actors of a run: started together, called together, ended together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rlft.cluster.placement import Plan, actor_options
from rlft.cluster.waits import Owner, Waits
from rlft.config import Config, Deadlines


@dataclass(slots=True)
class Fleet:
    """Owners (named handles) of every actor, by role."""

    waits: Waits
    samplers: list[Owner]
    learners: list[Owner]
    rewards: list[Owner]
    shares_gpus: bool
    deadlines: Deadlines
    _group: Any

    def census(self) -> str:
        """How many there are of each role, in words."""
        counts = {"sampler": self.samplers, "learner": self.learners, "reward worker": self.rewards}
        return ", ".join(f"{len(owners)} {role}" for role, owners in counts.items() if owners)

    def all(
        self, owners: list[Owner], method: str, *args: Any, what: str, deadline_s: float
    ) -> list:
        """Calls `method(*args)` on each of `owners` at once and waits for all."""
        calls = [(owner, getattr(owner.handle, method).remote(*args)) for owner in owners]
        return self.waits.get(calls, what, deadline_s)

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
        for owner in [*self.samplers, *self.learners, *self.rewards]:
            ray.kill(owner.handle, no_restart=True)
        remove_placement_group(self._group)


def start_fleet(
    cfg: Config,
    plan: Plan,
    waits: Waits,
    folder: Path,
    needs: frozenset[str],
    say: Callable[[str], None],
) -> Fleet:
    """Starts samplers, learner ranks and reward workers in parallel; returns when all answer.

    folder: the Hugging Face folder to start from; needs: batch fields that the algorithm's terms read.
    """
    group = placement_group(list(plan.bundles), strategy="PACK")
    shared = cfg.cluster.placement == "colocated" and cfg.sampler.gpus > 0 and cfg.learner.gpus > 0
    fleet = Fleet(waits, [], [], [], shared, cfg.deadlines, group)
    deadline = cfg.deadlines.start
    try:
        placed = Owner("the placement of actors (does the cluster have free resources?)")
        waits.get([(placed, group.ready())], "placement", min(deadline, 120))
        _start_actors(fleet, cfg, plan, folder, needs, say)
    except BaseException:
        fleet.close()
        raise
    return fleet


def _start_actors(
    fleet: Fleet, cfg: Config, plan: Plan, folder: Path, needs: frozenset[str], say: Any
) -> None:
    # Imported here, in the driver, for their class only; what they import heavily stays in the actors.
    from rlft.learning.rank import LearnerRank
    from rlft.rewards.worker import RewardWorker
    from rlft.sampling.sampler import Sampler

    def start(cls: type, name: str, unit: str, options: dict[str, Any], *args: Any) -> Owner:
        actor: Any = ray.remote(concurrency_groups={"control": 1})(cls)  # type: ignore[call-overload]
        return Owner(name, actor.options(**options).remote(name, *args), unit)

    for index in range(cfg.sampler.num):
        options = actor_options(
            plan,
            fleet._group,
            bundle=plan.sampler_bundle[index],
            threads=plan.sampler_threads,
            gpus=cfg.sampler.gpus,
            shared=fleet.shares_gpus,
            name=f"sampler {index}",
        )
        fleet.samplers.append(
            start(Sampler, f"sampler {index}", "completions", options, cfg, folder)
        )
    for rank in range(cfg.learner.num):
        options = actor_options(
            plan,
            fleet._group,
            bundle=plan.learner_bundle[rank],
            threads=plan.learner_threads,
            gpus=cfg.learner.gpus,
            shared=fleet.shares_gpus,
            name=f"learner {rank}",
        )
        fleet.learners.append(
            start(
                LearnerRank, f"learner {rank}", "micro-batches", options, cfg, rank, folder, needs
            )
        )
    if cfg.rewards.fns:
        for index in range(cfg.rewards.workers):
            options = actor_options(
                plan, fleet._group, bundle=0, threads=1, gpus=0, shared=False, name="reward"
            )
            fleet.rewards.append(
                start(RewardWorker, f"reward worker {index}", "completions", options, cfg.rewards)
            )
    _connect(fleet, cfg, say)


def _connect(fleet: Fleet, cfg: Config, say: Callable[[str], None]) -> None:
    deadline = cfg.deadlines.start
    first = fleet.learners[:1]
    [address] = fleet.all(first, "address", what="its address", deadline_s=deadline)
    joined = [(o, o.handle.connect.remote(address)) for o in fleet.learners]
    joined += [(o, o.handle.start.remote()) for o in fleet.samplers]
    owners = [*fleet.samplers, *fleet.learners, *fleet.rewards]
    # Whereabouts queue behind `connect` and `start`, so their answer means "ready".
    ready = [(o, o.handle.whereabouts.remote()) for o in owners]
    notes = fleet.waits.get(joined, "loading the model", deadline)
    places = dict(
        zip((o.name for o in owners), fleet.waits.get(ready, "starting", deadline), strict=True)
    )
    for role in ("samplers", "learners", "rewards"):
        setattr(fleet, role, [replace(o, where=places[o.name]) for o in getattr(fleet, role)])
    for note in notes[0]:
        say(note)
