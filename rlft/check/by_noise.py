"""What methods that move weights by noise need of the rest of a configuration."""

from __future__ import annotations

from rlft import registry
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.schedule import Scheduled, value_at

_ENDS = (0, 10**9)
"""Steps at which a schedule has its largest and its least value."""


def check_differ(key: str, scale: Scheduled) -> None:
    """Raises ConfigError unless the noise of `key` is always above 0."""
    least = min(value_at(scale, step) for step in _ENDS)
    if least <= 0:
        raise ConfigError(f"{key} must be above 0, got {least:g}: members have to differ")


def check_decay(lr: Scheduled, decay: float) -> None:
    """Raises ConfigError for an l2 decay that goes all the way back, or beyond."""
    most = decay * max(value_at(lr, step) for step in _ENDS)
    if most >= 1:
        raise ConfigError(
            f"algo.lr x algo.decay is the share of the way back to the start weights that a step takes; "
            f"it must be below 1, got {most:g}"
        )


def check_by_noise(
    cfg: Config, rank: int, *, perturbs_engines: bool = True, compares: bool = False
) -> list[str]:
    """Raises ConfigError where `cfg` does not suit; returns what a person should know.

    rank: of the noise, 0 for full; perturbs_engines: answers are drawn under perturbed weights; compares:
    evaluations decide which weights are kept.
    """
    learner, faults = cfg.learner, []
    if compares and not cfg.eval.every:
        faults.append("algo.ratchet compares evaluations, and eval.every is 0: set it")
    if learner.num != 1 or learner.zero_stage:
        faults.append(
            f"the weights have one master: set learner.num=1 and learner.zero_stage=0 "
            f"(got {learner.num} and {learner.zero_stage})"
        )
    if cfg.publish.transport != "object_store":
        faults.append(f"publish.transport is {cfg.publish.transport}; set object_store")
    if cfg.record.bundles or cfg.record.bundle_every:
        faults.append("a step without a gradient cannot be replayed: leave record.bundle* out")
    if perturbs_engines:
        if cfg.model.lora is not None and rank:
            faults.append(
                f"noise of algo.rank={rank} is for whole weights: set algo.rank=0 to perturb the adapter, "
                f"or leave model.lora out"
            )
        if bool(learner.gpus) != bool(cfg.sampler.gpus):
            faults.append(
                f"noise depends on the type of device, so learner and samplers need the same: "
                f"learner.gpus is {learner.gpus:g}, sampler.gpus {cfg.sampler.gpus:g}"
            )
        if cfg.rewards.on_error == "refill":
            faults.append("a member's answers cannot be replaced: set rewards.on_error=shrink")
    if faults:
        raise ConfigError("; ".join(faults))
    if rank and perturbs_engines and not _row_noise(cfg):
        return [
            f"engine {cfg.sampler.engine} cannot add low-rank noise row by row here: members are evaluated "
            f"one at a time, under whole perturbed weights (the same noise, slower)"
        ]
    return []


def _row_noise(cfg: Config) -> bool:
    engine = registry.resolve("engine", cfg.sampler.engine)
    if hasattr(engine, "member_args"):  # built with adapters on GPUs, and where it is asked for
        return bool(cfg.sampler.gpus) or bool(cfg.sampler.engine_args.get("enable_lora"))
    return bool(getattr(engine, "row_noise", False))
