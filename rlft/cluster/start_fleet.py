"""Starting the actors of a run: what each is made of, where it goes, and when all are ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.util.placement_group import placement_group, remove_placement_group

from rlft.cluster.fleet import Fleet, Post, shares_gpus
from rlft.cluster.placement import Plan, actor_options
from rlft.cluster.waits import Owner, Waits
from rlft.config import Config
from rlft.rewards.places import host, places


def start_fleet(
    cfg: Config,
    plan: Plan,
    waits: Waits,
    folder: Path,
    needs: frozenset[str],
    say: Callable[[str], None],
    critic: str | None = None,
    *,
    by_noise: bool = False,
    acts: bool = False,
) -> Fleet:
    """Starts samplers, learner ranks and reward workers in parallel; returns when all answer.

    folder: the Hugging Face folder to start from; needs: batch fields that the algorithm's terms read;
    critic: where a critic starts, if they read its values; None: at `folder`.
    by_noise: the learner is a master that moves by noise (`NoiseRank`), without a gradient; acts: the
    policy acts in an environment (`Runner`, `ControlRank`).
    """
    waits.stage = "start"
    group = placement_group(list(plan.bundles), strategy="PACK")
    fleet = None
    try:
        placed = Owner("the placement of actors (does the cluster have free resources?)")
        waits.get([(placed, group.ready())], "placement", min(cfg.deadlines.start, 120))
        posts = _posts(cfg, plan, group, folder, needs, critic, by_noise, acts)
        fleet = Fleet(cfg, posts, group, waits)
        _connect(fleet, cfg, say)
    except BaseException:
        if fleet is None:
            remove_placement_group(group)
        else:
            fleet.close()
        raise
    return fleet


def _posts(
    cfg: Config,
    plan: Plan,
    group: Any,
    folder: Path,
    needs: frozenset[str],
    critic: str | None,
    by_noise: bool,
    acts: bool,
) -> dict[str, list[Post]]:
    # Imported here, in the driver, for their class only; what they import heavily stays in the actors.
    from rlft.learning.control_rank import ControlRank
    from rlft.learning.noise_rank import NoiseRank
    from rlft.learning.rank import LearnerRank
    from rlft.rewards.worker import RewardWorker
    from rlft.sampling.population import PopulationSampler
    from rlft.sampling.sampler import Sampler
    from rlft.sampling.vector import Runner

    learner: Any = ControlRank if acts else NoiseRank if by_noise else LearnerRank
    of_learner: tuple[Any, ...] = () if acts or by_noise else (needs, critic)

    def options(bundle: int, threads: int, gpus: float, shared: bool) -> dict[str, Any]:
        return actor_options(group, bundle=bundle, threads=threads, gpus=gpus, shared=shared)

    shared = shares_gpus(cfg)
    samplers = [
        Post(
            f"runner {index}" if acts else f"sampler {index}",
            "" if acts else "completions",
            Runner if acts else PopulationSampler if by_noise else Sampler,
            (cfg, folder),
            options(plan.sampler_bundle[index], plan.sampler_threads, cfg.sampler.gpus, shared),
        )
        for index in range(cfg.sampler.num)
    ]
    learners = [
        Post(
            f"learner {rank}",
            "micro-batches",
            learner,
            (cfg, folder) if by_noise else (cfg, rank, folder, *of_learner),
            options(plan.learner_bundle[rank], plan.learner_threads, cfg.learner.gpus, shared),
        )
        for rank in range(cfg.learner.num)
    ]
    alone = iter(plan.own_reward_bundle)
    rewards = [
        Post(
            place.name if place.own else f"{place.name} {index}",
            "completions",
            RewardWorker,
            (place.rewards, os.getcwd(), cfg.deadlines.start),
            options(next(alone), plan.sampler_threads, place.gpus, False)
            if place.own
            else options(plan.reward_bundle, 1, 0, False),
        )
        for place in places(cfg.rewards)
        for index in range(place.num)
    ]
    asked = host(cfg)
    hosts = [
        Post(
            f"environment worker {index}",
            "turns",
            RewardWorker,
            (asked, os.getcwd(), cfg.deadlines.start),
            {**options(plan.reward_bundle, 1, 0, False), "num_cpus": 0},
        )
        for index in range(asked.workers if asked else 0)
    ]
    return {"samplers": samplers, "learners": learners, "rewards": rewards, "hosts": hosts}


def _connect(fleet: Fleet, cfg: Config, say: Callable[[str], None]) -> None:
    deadline = cfg.deadlines.start
    first = fleet.learners[:1]
    # Without learners (`rlft eval`) there is nobody to ask, and nobody to meet.
    address = fleet.all(first, "address", what="its address", deadline_s=deadline)
    joined = [(o, o.handle.connect.remote(*address)) for o in fleet.learners]
    joined += [(o, o.handle.start.remote()) for o in fleet.samplers]
    # Whereabouts queue behind `connect` and `start`, so their answer means "ready".
    ready = [(o, o.handle.whereabouts.remote()) for o in fleet.owners]
    notes = fleet.waits.get(joined, "loading the model", deadline)
    places = dict(
        zip((o.name for o, _ in ready), fleet.waits.get(ready, "starting", deadline), strict=True)
    )
    for role in (fleet.samplers, fleet.learners, fleet.rewards, fleet.hosts):
        role[:] = [replace(o, where=places[o.name]) for o in role]
    for note in notes[0] if fleet.learners else ():
        say(note)
