"""Whether a run fits into its devices' memory, and what to change if not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rlft.check.hardware import Hardware
from rlft.check.memory import (
    GIB,
    GPU_OVERHEAD,
    SLEEPING,
    Parts,
    host_need,
    learner_need,
    sampler_weights,
    sequences,
    served_on_host,
    vllm_share,
)
from rlft.check.model_shape import ModelShape
from rlft.cluster.placement import make_plan
from rlft.config import Config, Lora
from rlft.errors import ResourceError

Say = Callable[[str], None]


def memory_lines(cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool) -> list[str]:
    """The estimate in words. Raises ResourceError, saying what to change, when it does not fit."""
    lines = [
        f"model: {shape.params / 1e6:,.1f} M parameters, {cfg.model.dtype}"
        + (f", {shape.trained / 1e6:,.1f} M of them trained" if cfg.model.lora else "")
    ]
    faults = _faults(cfg, shape, hardware, reference, lines.append)
    if faults:
        raise ResourceError(
            "\n".join(
                [
                    f"it does not fit into memory ({hardware.what}): {'; '.join(faults)}. "
                    f"{_advice(cfg, shape, hardware, reference)}",
                    *lines[1:],
                ]
            )
        )
    return lines


def _faults(cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool, say: Say) -> list:
    if not (cfg.learner.gpus or cfg.sampler.gpus):
        on_host = _on_host(cfg, shape, hardware, reference, say)
        return [*on_host, *_rewards_on_gpu(shape, hardware, say)]
    found = []
    if cfg.learner.gpus:
        found += list(_learner_on_gpu(cfg, shape, hardware, reference, say))
    if cfg.sampler.gpus and cfg.sampler.num:
        found += list(_sampler_on_gpu(cfg, shape, hardware, reference, say))
    for name, size in served_on_host(shape).items():
        say(f"memory of {name}, on the host, estimated: {size / GIB:.1f} GiB")
    return [*found, *_rewards_on_gpu(shape, hardware, say)]


def _rewards_on_gpu(shape: ModelShape, hardware: Hardware, say: Say) -> Iterator[str]:
    for served in shape.served:
        if served.gpus:
            parts = {**served.parts, "overhead": GPU_OVERHEAD}
            total, have = sum(parts.values()) / GIB, min(1.0, served.gpus) * hardware.gpu_gib
            say(f"memory of {served.name}, estimated: {total:.1f} of {have:.1f} GiB: {_sum(parts)}")
            if total > have:
                yield (
                    f"{served.name} needs {total:.1f} GiB, and its gpus: {served.gpus:g} are {have:.1f} "
                    f"GiB (raise gpus; or lower its batch_size, or take dtype: bfloat16)"
                )


def _on_host(
    cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool, say: Say
) -> Iterator[str]:
    need = host_need(cfg, shape, reference=reference)
    total = sum(need.values()) / GIB
    have = "" if hardware.host_gib is None else f" of {hardware.host_gib:.1f} GiB"
    say(f"memory, estimated: {total:.1f} GiB{have}: {_sum(need)}")
    if hardware.host_gib is not None and total > hardware.host_gib:
        yield f"{total:.1f} GiB are needed, the machine has {hardware.host_gib:.1f} GiB"


def _learner_on_gpu(
    cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool, say: Say
) -> Iterator[str]:
    need = learner_need(cfg, shape, reference=reference)
    parts = {**need.resident, **need.passing, "overhead": GPU_OVERHEAD}
    if _shared(cfg):
        parts["sleeping engine"] = SLEEPING
    total = sum(parts.values()) / GIB
    say(f"memory of a learner, estimated: {total:.1f} of {hardware.gpu_gib:.1f} GiB: {_sum(parts)}")
    if total > hardware.gpu_gib:
        yield f"a learner needs {total:.1f} GiB of a GPU with {hardware.gpu_gib:.1f} GiB"


def _sampler_on_gpu(
    cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool, say: Say
) -> Iterator[str]:
    claim = vllm_share(cfg) * hardware.gpu_gib
    weights = (sampler_weights(cfg, shape) + GPU_OVERHEAD) / GIB
    room = sequences(cfg, shape, (claim - weights) * GIB)
    say(
        f"memory of a sampler: claims {vllm_share(cfg):.0%} of {hardware.gpu_gib:.1f} GiB: weights and "
        f"overhead {weights:.1f}, cache for {room} sequences of {cfg.model.max_length} tokens "
        f"(sampler.max_batch {cfg.sampler.max_batch})"
    )
    if room < 1:
        yield f"a sampler's cache has no room for one sequence beside {weights:.1f} GiB of weights"
    if _shared(cfg):
        kept = learner_need(cfg, shape, reference=reference).idle / GIB + GPU_OVERHEAD / GIB
        if kept + claim > hardware.gpu_gib:
            yield (
                f"the engine claims {claim:.1f} GiB of a GPU on which the learner keeps {kept:.1f} GiB "
                f"while it samples (colocated), together more than {hardware.gpu_gib:.1f} GiB"
            )


def _shared(cfg: Config) -> bool:
    both = cfg.sampler.gpus > 0 and cfg.learner.gpus > 0 and cfg.sampler.num > 0
    return both and cfg.cluster.placement == "colocated"


def _sum(parts: Parts) -> str:
    """`weights 1.2 + optimizer 3.4`, in GiB, the largest first; what rounds to nothing is left out."""
    shown = sorted(parts.items(), key=lambda item: -item[1])
    return " + ".join(f"{name} {size / GIB:.1f}" for name, size in shown if size >= 0.05 * GIB)


# -- what to change -------------------------------------------------------------------------------


Change = dict[str, dict[str, Any]]
Named = tuple[str, Change]


def _advice(cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool) -> str:
    """Single changes after which it fits; if there are none, several of which none can be left out."""

    def after(changes: list[Named]) -> list[str] | None:
        return _names_that_fit(cfg, changes, shape, hardware, reference)

    # What moves by noise has one master and keeps nothing for a backward pass.
    changes = [] if shape.by_noise else list(_changes(cfg, hardware))
    alone = [names for change in ([], *([c] for c in changes)) if (names := after(change))]
    if alone:
        return f"It fits with {' or '.join(' and '.join(names) for names in alone)}"
    for count in range(2, len(changes) + 1):
        kept = changes[:count]
        if after(kept) is None:
            continue
        for change in list(kept):
            fewer = [c for c in kept if c is not change]
            kept = fewer if after(fewer) else kept
        return f"It fits with {' and '.join(after(kept) or ())}"
    return "Use a smaller model, more memory for each device, or more devices"


def _names_that_fit(
    cfg: Config, changes: list[Named], shape: ModelShape, hardware: Hardware, reference: bool
) -> list[str] | None:
    """What to write for `changes`, and if it takes that a smaller claim of the engine; None if it
    does not fit even so."""
    names = [name for name, _ in changes]
    for _, change in changes:
        cfg = _apply(cfg, change)
        if lora := change.get("model", {}).get("lora"):
            shape = replace(shape, trained=_adapters(shape, lora.rank))
    if _fits(cfg, shape, hardware, reference):
        return names
    if not _shared(cfg):
        return None
    kept = (learner_need(cfg, shape, reference=reference).idle + GPU_OVERHEAD) / GIB
    share = math.floor(100 * (1 - kept / hardware.gpu_gib)) / 100
    args = {**cfg.sampler.engine_args, "gpu_memory_utilization": share}
    if share <= 0 or not _fits(
        _apply(cfg, {"sampler": {"engine_args": args}}), shape, hardware, reference
    ):
        return None
    return [*names, f"sampler.engine_args.gpu_memory_utilization={share:g}"]


def _changes(cfg: Config, hardware: Hardware) -> Iterator[Named]:
    """Changes in the order in which they cost least, each with how it is written."""
    if cfg.learner.token_budget > cfg.model.max_length:
        least = cfg.model.max_length
        yield f"learner.token_budget={least}", {"learner": {"token_budget": least}}
    if not cfg.model.gradient_checkpointing:
        checkpointing = {"model": {"gradient_checkpointing": True}}
        yield "model.gradient_checkpointing=true", checkpointing
    for stage in (1, 2, 3):
        if cfg.learner.num > 1 and stage > cfg.learner.zero_stage:
            yield f"learner.zero_stage={stage}", {"learner": {"zero_stage": stage}}
    devices = hardware.nodes * hardware.gpus
    if cfg.learner.gpus and devices > cfg.learner.num:
        more = {"learner": {"num": devices, "zero_stage": 3}}
        yield f"learner.num={devices} learner.zero_stage=3", more
    if cfg.model.lora is None:
        yield "model.lora={rank: 16}", {"model": {"lora": Lora()}}
    if _shared(cfg):
        yield "cluster.placement=disaggregated", {"cluster": {"placement": "disaggregated"}}


def _apply(cfg: Config, change: Change) -> Config:
    sections = {
        name: getattr(cfg, name).model_copy(update=update) for name, update in change.items()
    }
    return cfg.model_copy(update=sections)


def _fits(cfg: Config, shape: ModelShape, hardware: Hardware, reference: bool) -> bool:
    try:
        make_plan(cfg, hardware.resources)
    except ResourceError:
        return False
    return not _faults(cfg, shape, hardware, reference, lambda line: None)


def _adapters(shape: ModelShape, rank: int) -> int:
    """Parameters of adapters on the seven linear maps of each layer."""
    attention = 4 * shape.hidden + 2 * (shape.hidden + shape.kv_width)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.inner))
