"""What can be known about a run before it starts: installation, batch arithmetic, placement."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlft import registry
from rlft.algo import Algo
from rlft.cluster.placement import make_plan
from rlft.cluster.session import private_resources
from rlft.config import Config
from rlft.errors import ConfigError, ResourceError
from rlft.record.writers import check_writers
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Task


def check_plugins(cfg: Config) -> tuple[Algo, Any]:
    """Resolves every plug-in of `cfg` and checks what they need of each other; returns (algo, env).

    Raises PluginError or ConfigError.
    """
    algo: Algo = registry.build("algo", cfg.algo)
    env = registry.build("env", cfg.env)
    for reward in cfg.rewards.fns:
        registry.build("reward", {"name": reward.fn, **reward.args})
    registry.resolve("engine", cfg.sampler.engine)
    registry.resolve("transport", cfg.publish.transport)  # made where the GPUs are
    if cfg.model.build is not None:
        spec = cfg.model.build if isinstance(cfg.model.build, dict) else {"name": cfg.model.build}
        registry.build("model", spec)
    evaluates = cfg.eval.every or cfg.eval.at_start or cfg.eval.at_end
    if (algo.samples or evaluates) and cfg.sampler.num == 0:
        what = f"algo {type(algo).__name__}" if algo.samples else "eval"
        raise ConfigError(f"{what} samples, but sampler.num is 0; set it to at least 1")
    if (algo.samples or evaluates) and not cfg.rewards.fns:
        raise ConfigError("rewards.fns is empty; name at least one reward, e.g. [{fn: gsm8k}]")
    _ship_by_value()
    return algo, env


def with_plugin_defaults(cfg: Config, algo: Algo, env: Any) -> Config:
    """`cfg` with every field of its algorithm and environment spelt out, for the run folder: a later
    change of a default must not change what an old run says that it did."""
    update = {}
    for section, plugin in (("algo", algo), ("env", env)):
        given = getattr(cfg, section)
        name = given if isinstance(given, str) else given["name"]
        if dataclasses.is_dataclass(plugin):
            fields = TypeAdapter(type(plugin)).dump_python(plugin, mode="json", by_alias=True)
            update[section] = {"name": name, **fields}
    return cfg.model_copy(update=update)


def check_installation(cfg: Config) -> None:
    """Raises ResourceError for an engine that is not installed or an installation known to break."""
    if cfg.sampler.engine == "vllm" and cfg.sampler.num and not importlib.util.find_spec("vllm"):
        raise ResourceError(
            "sampler.engine is vllm, but vLLM is not installed. Install locks/cpu.txt or "
            "locks/gpu.txt, or set sampler.engine=transformers."
        )
    check_writers(cfg)
    import torch

    if torch.version.cuda is None:
        broken = [n for n in ("torchvision", "torchaudio", "torchcodec") if _is_cuda_build(n)]
        if broken:
            raise ResourceError(
                f"{', '.join(broken)} beside torch {torch.__version__} (a CPU build) is a CUDA build and "
                f"breaks `import transformers`; remove it: pip uninstall {' '.join(broken)}"
            )
        if cfg.learner.gpus or cfg.sampler.gpus:
            raise ResourceError(
                f"GPUs are asked for, but this is torch {torch.__version__}, a CPU build. Install "
                f"locks/gpu.txt, or set sampler.gpus=0 learner.gpus=0."
            )


def check_tasks(cfg: Config, env: Any) -> tuple[TaskStream, Sequence[Task]]:
    """The training tasks, dealt into tickets, and the held-out ones. Raises DataError."""
    key = Key(cfg.seed).child("tasks")
    return TaskStream(env.train(), cfg.tasks_per_step, key), env.held_out()


def check_prompts(
    cfg: Config, algo: Algo, start: Path, tasks: TaskStream, held_out: Sequence[Task]
) -> None:
    """Raises DataError for a prompt that does not fit, of those that come first."""
    from rlft.policy.text import Text

    text = Text(start, cfg.sampler.stop)
    needed = cfg.sampler.max_tokens if algo.samples else 1
    first = [held_out[i] for i in range(min(cfg.eval.max_tasks, len(held_out)))]
    for index in range(min(cfg.steps, 64)):
        first += tasks.ticket(index).tasks[:64]
    for task in first:
        text.fitting_prompt(task, needed, cfg.model.max_length)


def describe(cfg: Config, algo: Algo, env: Any) -> Iterator[str]:
    """Lines about what the run would do."""
    yield f"run {cfg.name}: {type(algo).__name__} for {cfg.steps} steps, seed {cfg.seed}"
    train, held_out = len(env.train()), len(env.held_out())
    yield f"tasks: {train:,} to train on, {held_out:,} held out"
    members = getattr(algo, "group_size", 1)
    updates = getattr(algo, "epochs", 1) * getattr(algo, "minibatches", 1)
    rows = cfg.tasks_per_step * members
    yield (
        f"a step: {cfg.tasks_per_step} tasks x {members} answers = {rows} rows -> "
        f"{_count(updates, 'update')} over {_count(cfg.learner.num, 'rank')}, "
        f"micro-batches of at most {cfg.learner.token_budget} tokens"
    )
    if not cfg.save.every or cfg.save.every >= cfg.steps:
        yield "saves: at the end only; an interrupted run starts again (save.every)"
    if not (cfg.sampler.gpus or cfg.learner.gpus):
        here = private_resources(cfg)  # None: a cluster elsewhere, known only once it is joined
        cores = here["CPU"] if here else float(cfg.cluster.cpus or os.cpu_count() or 1)
        yield from make_plan(cfg, {"CPU": cores}).lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _is_cuda_build(package: str) -> bool:
    import importlib.metadata

    try:
        return "+cpu" not in importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False


def _ship_by_value() -> None:
    """Classes of plug-in files travel to actors with their code: no actor has to find the file."""
    import ray

    for name, module in list(sys.modules.items()):
        if name.startswith("rlft_plugin_"):
            ray.cloudpickle.register_pickle_by_value(module)
