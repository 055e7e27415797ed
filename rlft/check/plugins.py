"""The plug-ins of a configuration, and what they need of each other."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from pydantic import TypeAdapter

from rlft import registry
from rlft.algo import Algo
from rlft.check.trained_part import check_trained_part
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.not_built import refused
from rlft.probes.probe import check_probes
from rlft.retention.term import check_retention
from rlft.rewards.judge import self_judging
from rlft.rewards.places import answers_back


def check_plugins(cfg: Config) -> tuple[Algo, Any]:
    """Resolves every plug-in of `cfg` and checks what they need of each other; returns (algo, env).

    Raises PluginError or ConfigError.
    """
    for reason in refused(cfg.learner.deepspeed, "learner.deepspeed"):
        raise ConfigError(reason)
    algo: Algo = registry.build("algo", cfg.algo)
    env = registry.build("env", cfg.env)
    for reward in cfg.rewards.fns:
        registry.build("reward", {"name": reward.fn, **reward.args})
    registry.resolve("engine", cfg.sampler.engine)
    registry.resolve("transport", cfg.publish.transport)  # made where the GPUs are
    check_trained_part(cfg, algo)
    acts = callable(getattr(env, "make", None))
    talks = answers_back(env)
    if acts != algo.acts:
        raise ConfigError(_mismatch(cfg, algo, acts))
    if talks:
        _check_talking(cfg, algo)
    if acts:
        _check_acting(cfg, env)
    elif cfg.model.build is not None:
        registry.build("model", cfg.model.build)
    evaluates = cfg.eval.every or cfg.eval.at_start or cfg.eval.at_end
    if (algo.samples or evaluates) and cfg.sampler.num == 0:
        what = f"algo {type(algo).__name__}" if algo.samples else "eval"
        raise ConfigError(f"{what} samples, but sampler.num is 0; set it to at least 1")
    if (algo.samples or evaluates) and not (cfg.rewards.fns or acts or talks):
        raise ConfigError("rewards.fns is empty; name at least one reward, e.g. [{fn: gsm8k}]")
    if cfg.max_staleness > algo.max_staleness:
        raise ConfigError(
            f"max_staleness is {cfg.max_staleness}, but algo {type(algo).__name__} learns from data that "
            f"is at most {algo.max_staleness} versions old; lower it"
        )
    if cfg.max_staleness and cfg.cluster.placement == "colocated" and cfg.learner.gpus:
        raise ConfigError(
            f"max_staleness is {cfg.max_staleness}, but colocated samplers and learners take turns on "
            f"their GPUs: set cluster.placement=disaggregated, or max_staleness=0"
        )
    algo.suits(cfg)
    check_retention(cfg, algo, env)
    check_probes(cfg, algo, env)
    _ship_by_value()
    return algo, env


def _mismatch(cfg: Config, algo: Algo, acts: bool) -> str:
    name = cfg.env if isinstance(cfg.env, str) else cfg.env["name"]
    if acts:
        return (
            f"env {name} is an environment that a policy acts in; algo {type(algo).__name__} trains a "
            f"policy that writes. Use control_ppo, reinforce, polychromic or clone"
        )
    return (
        f"algo {type(algo).__name__} trains a policy that acts; env {name} has prompts and no `make`. "
        f"Use an environment such as gym or minigrid, or an algorithm such as grpo"
    )


def _check_talking(cfg: Config, algo: Algo) -> None:
    """What is not built for episodes of several turns."""
    if algo.by_noise:
        raise ConfigError(
            f"algo {type(algo).__name__} evaluates members of a population, which is not built for an "
            f"environment that answers back; use one that learns by gradients, such as grpo"
        )
    if getattr(algo, "references", 0):
        raise ConfigError(
            f"algo {type(algo).__name__} begins answers with demonstrations (algo.references), which is "
            f"not built for an environment that answers back; use one without, such as grpo, ppo or sft"
        )
    if getattr(algo, "overlong_buffer", 0):
        raise ConfigError(
            "algo.overlong_buffer lowers the reward of one long answer (sampler.max_tokens); an episode of "
            "several turns is bounded by turns.max and turns.max_tokens: set algo.overlong_buffer=0"
        )


def _check_acting(cfg: Config, env: Any) -> None:
    """What a policy that acts can do without, and what it needs."""
    from rlft.sampling.spaces import check_spaces

    if cfg.rewards.fns:
        raise ConfigError(
            "rewards.fns is set, but an environment gives its own rewards; remove it, and shape rewards "
            "with a Gymnasium wrapper"
        )
    if cfg.model.dtype != "float32" or cfg.model.lora is not None:
        raise ConfigError(
            f"a policy that acts is trained in float32 without adapters; got model.dtype="
            f"{cfg.model.dtype}{', model.lora' if cfg.model.lora else ''}: set model.dtype=float32"
        )
    if cfg.learner.zero_stage == 3:
        raise ConfigError(
            "learner.zero_stage=3 shards weights, which small policies do without; use 0, 1 or 2"
        )
    if cfg.publish.transport != "object_store":
        raise ConfigError(
            f"publish.transport is {cfg.publish.transport}; runners take weights by object_store"
        )
    if cfg.record.bundles or cfg.record.bundle_every:
        raise ConfigError(
            "record.bundles keeps steps for `rlft replay`, which is not built for policies that act. "
            "Remove it, and record.bundle_every: with save.every=1 a step is taken again, with the same "
            "numbers on a CPU, by `rlft run --resume` from the checkpoint before it"
        )
    one = env.make()
    name = cfg.env if isinstance(cfg.env, str) else cfg.env["name"]
    check_spaces(one.observation_space, one.action_space, f"env {name}")
    if cfg.model.build is not None:
        registry.build("network", cfg.model.build)(one.observation_space, one.action_space)
    one.close()


def plugin_warnings(cfg: Config) -> list[str]:
    """What is allowed, but should be known: a judge that judges itself."""
    made = [registry.build("reward", {"name": r.fn, **r.args}) for r in cfg.rewards.fns]
    return [said for one in made if (said := self_judging(one, cfg.model.path)) is not None]


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


def _ship_by_value() -> None:
    """Classes of plug-in files travel to actors with their code: no actor has to find the file."""
    import ray

    for name, module in list(sys.modules.items()):
        if name.startswith("rlft_plugin_"):
            ray.cloudpickle.register_pickle_by_value(module)
