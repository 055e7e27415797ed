"""Who runs where, with how many threads: decided before anything starts, and printed.

On CPU, threads are the first performance bug: engines and learners that together run more threads than
there are cores spin against each other and slow down tenfold. While collecting and learning take
turns (`max_staleness: 0`) each phase has the machine to itself, so each may use every core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlft.config import Config
from rlft.errors import ResourceError
from rlft.rewards.places import places


@dataclass(frozen=True, slots=True)
class Plan:
    """Threads and Ray resources of every actor."""

    cores: float
    gpus: float
    sampler_threads: int
    learner_threads: int
    bundles: tuple[dict[str, float], ...]
    sampler_bundle: tuple[int, ...]
    learner_bundle: tuple[int, ...]
    reward_bundle: int
    own_reward_bundle: tuple[int, ...]
    lines: tuple[str, ...]


_SHARE = 0.01
"""CPUs that an actor asks Ray for. Ray's count is bookkeeping; threads are what we plan ourselves, and
asking for whole cores would leave actors unplaced on a small machine."""


def make_plan(cfg: Config, cluster: dict[str, float]) -> Plan:
    """Plans for a cluster with `{"CPU": ..., "GPU": ...}`.

    Raises ResourceError when more cores or GPUs are asked for than there are.
    """
    have_cpus, have_gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    cores = float(cfg.cluster.cpus or have_cpus)
    if cores > have_cpus:
        raise ResourceError(
            f"cluster.cpus asks for {cores:g} cores, the cluster has {have_cpus:g}; lower it or "
            f"leave it out to use what is there."
        )
    samplers, learners = cfg.sampler.num, cfg.learner.num
    need_gpus = _gpus_needed(cfg)
    if need_gpus > have_gpus:
        raise ResourceError(
            f"the configuration asks for {need_gpus:g} GPUs ({samplers} samplers x "
            f"{cfg.sampler.gpus:g}, {learners} learners x {cfg.learner.gpus:g}, "
            f"{cfg.cluster.placement}; rewards: the rest), the cluster has {have_gpus:g}; lower "
            f"sampler.gpus, learner.gpus, their numbers or the gpus of rewards, or use a larger cluster."
        )
    if cfg.learner.gpus not in (0, 1):
        raise ResourceError(f"learner.gpus is {cfg.learner.gpus:g}; a rank takes 0 or 1 GPU")
    # In turn, each phase has every core; when they overlap, they share them.
    both = cores / 2 if cfg.max_staleness and samplers else cores
    sampler_threads = cfg.cluster.threads_per_sampler or max(1, int(both // max(1, samplers)))
    learner_threads = cfg.cluster.threads_per_learner or max(1, int(both // learners))
    for role, count, threads in (
        ("sampler", samplers, sampler_threads),
        ("learner", learners, learner_threads),
    ):
        given = getattr(cfg.cluster, f"threads_per_{role}")
        if given and count * threads > cores:
            raise ResourceError(
                f"{count} {role}s x {threads} threads are more than the {cores:g} cores; lower "
                f"cluster.threads_per_{role}."
            )
    bundles, sampler_bundle, learner_bundle = _bundles(cfg)
    bundles[0]["CPU"] = round(_SHARE * (2 + cfg.rewards.workers), 4)
    # A reward with a model in it has a bundle of its own: it needs no neighbour, and may need a GPU.
    alone = [place for place in places(cfg.rewards) if place.own]
    own_bundle = tuple(range(len(bundles), len(bundles) + len(alone)))
    bundles += [_bundle(place.gpus) for place in alone]
    phases = [f"{samplers} sampler x {sampler_threads} to collect"] if samplers else []
    if cfg.rewards.fns:
        shared = f"{cfg.rewards.workers} reward worker x 1"
        own = [f"{place.name} x {sampler_threads}" for place in alone]
        some = len(alone) < len(cfg.rewards.fns)
        phases.append(f"{' and '.join([shared] * some + own)} to score")
    phases.append(f"{learners} learner x {learner_threads} to learn")
    lines = (
        f"cluster: {have_cpus:g} cores, {have_gpus:g} GPUs; planned for {cores:g} cores, "
        f"{need_gpus:g} GPUs, {cfg.cluster.placement}",
        f"threads: {', '.join(phases)} (at the same time)"
        if cfg.max_staleness
        else f"threads: {', then '.join(phases)} (the phases take turns)",
    )
    return Plan(
        cores=cores,
        gpus=need_gpus,
        sampler_threads=sampler_threads,
        learner_threads=learner_threads,
        bundles=tuple(bundles),
        sampler_bundle=tuple(sampler_bundle),
        learner_bundle=tuple(learner_bundle),
        reward_bundle=0,
        own_reward_bundle=own_bundle,
        lines=lines,
    )


def _gpus_needed(cfg: Config) -> float:
    sampling = cfg.sampler.num * cfg.sampler.gpus
    learning = cfg.learner.num * cfg.learner.gpus
    scoring = sum(place.gpus for place in places(cfg.rewards))
    both = (sampling, learning)
    return (max(both) if cfg.cluster.placement == "colocated" else sum(both)) + scoring


def _bundles(cfg: Config) -> tuple[list[dict[str, float]], list[int], list[int]]:
    """Bundles of the placement group, and which one each sampler and learner lives in.

    Colocated: sampler i and learner i share bundle i, and its GPUs. Disaggregated: bundles of their own.
    """
    samplers, learners = cfg.sampler.num, cfg.learner.num
    if cfg.cluster.placement == "colocated":
        bundles = []
        for index in range(max(samplers, learners)):
            gpus = max(
                cfg.sampler.gpus if index < samplers else 0,
                cfg.learner.gpus if index < learners else 0,
            )
            bundles.append(_bundle(gpus))
        return bundles, list(range(samplers)), list(range(learners))
    bundles = [_bundle(cfg.sampler.gpus) for _ in range(samplers)]
    bundles += [_bundle(cfg.learner.gpus) for _ in range(learners)]
    return bundles, list(range(samplers)), list(range(samplers, samplers + learners))


def _bundle(gpus: float) -> dict[str, float]:
    # Room for a sampler and a learner; no more, or many actors would not fit on few cores.
    bundle: dict[str, float] = {"CPU": 2 * _SHARE}
    if gpus:
        bundle["GPU"] = float(gpus)
    return bundle


KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""glibc gives large tensors back to the system when they are freed, and each new one is faulted in page
by page: half of the learner's time on a CPU. With this an actor keeps the memory of its peak."""


def actor_options(
    group: Any, *, bundle: int, threads: int, gpus: float, shared: bool
) -> dict[str, Any]:
    """Ray options of one actor: placement, its thread count in the environment, no silent restart.

    shared: it lives on GPUs that another actor of its bundle also uses, so each claims half.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    env = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads wait for the next parallel region by spinning a little (some 50 us) and then sleep.
        # Sleeping at once cost vLLM a third of its speed on two cores; spinning for long starves
        # whoever else needs the core, twentyfold.
        "GOMP_SPINCOUNT": "30000",
        "KMP_BLOCKTIME": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
        env |= KEEP_MEMORY
    return {
        "num_cpus": _SHARE,
        "num_gpus": gpus / 2 if shared else gpus,
        "max_restarts": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle
        ),
        "runtime_env": {"env_vars": env},
    }
