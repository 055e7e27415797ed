"""`rlft check`: everything that can be known about a run before it starts, and all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlft.algo import Algo
from rlft.check.as_worker import in_worker
from rlft.check.fit import memory_lines
from rlft.check.hardware import Hardware, assumed, present
from rlft.check.installation import check_installation, check_versions
from rlft.check.model_shape import model_shape, served_models
from rlft.check.plugins import check_plugins, plugin_warnings
from rlft.check.shipping import UPLOAD_LIMIT, amount, shipment, too_large
from rlft.check.tasks import check_prompts, check_tasks
from rlft.cluster.placement import make_plan
from rlft.config import Config, load_config
from rlft.errors import ConfigError, ResourceError, UserError
from rlft.policy.start import start_folder
from rlft.retention.term import needs_of
from rlft.types import Task

FIRST = 4
"""Tasks of each set on which rewards are tried."""


def report(cfg: Config, *, assume: str | None = None, elsewhere: bool = False) -> Iterator[str]:
    """Yields lines about the run, and at the end raises UserError with every problem there is.

    assume: hardware in place of this machine's (`8xH100`); elsewhere: the run is for a cluster, so
    what this machine has or lacks is no problem.
    """
    problems: list[str] = []

    def tried(check: Callable[..., Any], *args: Any, **keys: Any) -> Any:
        try:
            return check(*args, **keys)
        except UserError as error:
            problems.append(str(error))
            return None

    hardware = assumed(assume, cfg) if assume else None
    algo, env = check_plugins(cfg)  # without these nothing else can be said
    yield f"run {cfg.name}: {type(algo).__name__} for {cfg.steps} steps, seed {cfg.seed}"
    yield from plugin_warnings(cfg)
    if cfg.warm_start:
        warm = tried(load_config, cfg.warm_start)
        tried(check_plugins, warm) if warm else None
    if not (elsewhere or hardware):
        tried(check_versions)
        tried(check_installation, cfg)
    tasks = tried(check_tasks, cfg, env)
    if tasks:
        yield f"tasks: {len(env.train()):,} to train on, {len(tasks[1]):,} held out"
    yield from acting(cfg, algo, env) if algo.acts else arithmetic(cfg, algo)
    if not (elsewhere or hardware):
        hardware = present(cfg)
    yield from tried(_placed, cfg, hardware) or ()
    if hardware and not algo.acts:  # a policy that acts is small
        yield from tried(_memory, cfg, algo, hardware) or ()
    if tasks and not algo.acts:
        tried(_prompts, cfg, algo, *tasks)
        yield from tried(in_worker, cfg, algo, first_of(*tasks)) or ()
    yield from tried(_shipped, Path.cwd()) or ()
    if problems:
        raise _all(problems)


def arithmetic(cfg: Config, algo: Algo) -> list[str]:
    """The numbers of a step as one equation, and what is kept of it."""
    saves = "saves: at the end only; an interrupted run starts again (save.every)"
    kept = [saves] if not cfg.save.every or cfg.save.every >= cfg.steps else []
    if algo.by_noise:
        members = getattr(getattr(algo, "pairs", algo), "population", 1)
        answers = cfg.tasks_per_step * members
        return [
            f"a step: {cfg.tasks_per_step} tasks x {members} members = {answers:,} rows = 1 update, "
            f"{cfg.steps:,} in all",
            *kept,
        ]
    members = getattr(algo, "group_size", 1)
    epochs, minibatches = getattr(algo, "epochs", 1), getattr(algo, "minibatches", 1)
    rows, ranks = cfg.tasks_per_step * members, cfg.learner.num
    each = rows / minibatches / ranks
    share = f"{each:g}" if each == int(each) else f"about {each:.1f}"
    updates = epochs * minibatches
    return [
        f"a step: {cfg.tasks_per_step} tasks x {members} answers = {rows} rows = "
        f"{_count(minibatches, 'minibatch', 'es')} x {_count(ranks, 'rank')} x {share} rows; x "
        f"{_count(epochs, 'epoch')} = {_count(updates, 'update')}, {updates * cfg.steps:,} in all; "
        f"micro-batches of at most {cfg.learner.token_budget} tokens",
        *kept,
    ]


def acting(cfg: Config, algo: Algo, env: Any) -> list[str]:
    """What a policy that acts sees and does, and what its algorithm says."""
    one = env.make()
    lines = [
        f"observations: {one.observation_space}",
        f"actions: {one.action_space}",
        f"environments: {cfg.runner.blocks} x {cfg.runner.envs}, in {_count(cfg.sampler.num, 'runner')}",
        *algo.suits(cfg),
    ]
    one.close()
    return lines


def first_of(stream: Any, held_out: Sequence[Task]) -> list[Task]:
    """The tasks that rewards are tried on: the first of training and of evaluation."""
    evaluated = [held_out[i] for i in range(min(FIRST, len(held_out)))]
    return [*stream.ticket(0).tasks[:FIRST], *evaluated]


def _placed(cfg: Config, hardware: Hardware | None) -> list[str]:
    if hardware is None:
        return ["placement: known once the cluster is joined; --assume 8xH100 to say what it has"]
    if cfg.learner.gpus or cfg.sampler.gpus:
        most = max(cfg.learner.gpus, cfg.sampler.gpus if cfg.sampler.num else 0)
        if hardware.gpus and most > hardware.gpus:
            raise ResourceError(
                f"an actor asks for {most:g} GPUs, and a node has {hardware.gpus} ({hardware.what}); an "
                f"actor lives on one node: lower sampler.gpus, and use more samplers"
            )
        if not hardware.gpus:
            raise ResourceError(
                f"GPUs are asked for, and there are none {hardware.what}. For a cluster that has: "
                f"rlft check ... --assume 8xH100"
            )
    elif hardware.what.startswith("assumed"):
        return [
            f"{hardware.what}; the configuration uses none of it: sampler.gpus and learner.gpus are 0",
            *make_plan(cfg, hardware.resources).lines,
        ]
    return [hardware.what, *make_plan(cfg, hardware.resources).lines]


def _memory(cfg: Config, algo: Algo, hardware: Hardware) -> list[str]:
    shape = model_shape(cfg)
    if isinstance(shape, str):
        return [f"memory: not estimated, the model is not known here ({shape})"]
    shape = replace(
        shape, critic="value" in algo.needs, by_noise=algo.by_noise, served=served_models(cfg)
    )
    frozen = {"ref_logp", "teacher"} & (algo.needs | needs_of(cfg))  # a second copy of the model
    return memory_lines(cfg, shape, hardware, bool(frozen))


def _prompts(cfg: Config, algo: Algo, stream: Any, held_out: Sequence[Task]) -> None:
    """Prompts against the context, where the tokenizer is a folder here."""
    if cfg.model.path and Path(cfg.model.path).expanduser().is_dir():
        check_prompts(cfg, algo, start_folder(cfg, Path.cwd()), stream, held_out)


def _shipped(root: Path) -> list[str]:
    shipped = shipment(root)
    if shipped.size > 5 * UPLOAD_LIMIT:  # packing makes some of it smaller, not that much
        raise ResourceError(too_large(shipped, shipped.size, "before packing"))
    unread = " (no git repository: .gitignore is not read)" if shipped.ignores_git else ""
    note = f"; Ray takes {amount(UPLOAD_LIMIT)} packed" if shipped.size > UPLOAD_LIMIT / 2 else ""
    return [
        f"a submitted job takes along {len(shipped.files):,} files, {amount(shipped.size)}{note}{unread}; "
        f"the largest:",
        *shipped.largest(),
    ]


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural * (number != 1)}"


def _all(problems: Sequence[str]) -> UserError:
    if len(problems) == 1:
        return ConfigError(problems[0])
    numbered = "\n".join(f"{i}. {problem}" for i, problem in enumerate(problems, start=1))
    return ConfigError(f"{len(problems)} problems:\n{numbered}")
