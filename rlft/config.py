"""The configuration: YAML with `extends:`, dotted overrides, strict and frozen after parsing.

Plug-in sections (`algo`, `env`, `rewards`, `model.build`) are checked against the plug-in itself in
`check_plugins`, because their keys are the plug-in's own fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from rlft import registry
from rlft.errors import ConfigError, did_you_mean
from rlft.not_built import not_built
from rlft.record.settings import Guards, Probes, Record
from rlft.schedule import Schedule, Scheduled
from rlft.sections import Natural, Plugin, Positive, Section
from rlft.yaml_tree import read_tree, set_key


class Lora(Section):
    """Low-rank adapters through peft; everything else is frozen."""

    rank: Positive = 16
    alpha: float = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


class Model(Section):
    """Where the start weights come from: exactly one of `path` and `build`, or `warm_start` above."""

    path: str | None = Field(default=None, description="Hugging Face folder or hub name")
    build: Plugin | None = Field(
        default=None,
        description="plug-in `(seed) -> (model, tokenizer)` that makes a fresh model in code",
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: Lora | None = None
    max_length: Positive = Field(default=1024, description="longest prompt + response, in tokens")
    gradient_checkpointing: bool = False


class Sampler(Section):
    """Sampler actors: how many, which engine, and how they sample."""

    engine: str = Field(default="vllm", description="vllm, transformers, or a plug-in class")
    num: Natural = Field(default=1, description="sampler actors")
    max_tokens: Positive = 256
    min_tokens: Natural = Field(default=0, description="no stop token before this many tokens")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Natural = Field(default=0, description="0: no limit")
    stop: list[str] = Field(
        default=[], description="further stop tokens, one vocabulary entry each"
    )
    max_batch: Positive = Field(default=256, description="sequences decoded at the same time")
    engine_args: dict[str, Any] = Field(
        default={}, description="passed to the engine (vLLM: EngineArgs); our required keys win"
    )
    gpus: Annotated[float, Field(ge=0)] = Field(default=0, description="GPUs per sampler")


class Freeze(Section):
    """Weights that are held still."""

    names: list[str] = Field(
        min_length=1, description="patterns of parameter names, such as policy_encoder.*"
    )
    until: Positive | None = Field(default=None, description="steps of the run; null: always")


class Learner(Section):
    """Learner ranks and their optimizer."""

    num: Positive = Field(default=1, description="learner ranks (data parallel)")
    zero_stage: Literal[0, 1, 2, 3] = 0
    lr: Scheduled = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(default=1.0, description="0: no clipping")
    clip: Literal["global", "parameter"] = Field(
        default="global", description="what is clipped to max_grad_norm: all gradients, or each"
    )
    trainable: Plugin = Field(default="full", description="which weights are trained")
    optimizer: Plugin = Field(default="adamw", description="adamw, muon, or a plug-in class")
    token_budget: Positive = Field(
        default=4096, description="padded tokens per micro-batch; a longer row gets its own"
    )
    deepspeed: dict[str, Any] = Field(
        default={}, description="DeepSpeed configuration, passed through; our required keys win"
    )
    gpus: Annotated[float, Field(ge=0)] = Field(default=0, description="GPUs per rank: 0 or 1")
    freeze: list[Freeze] = Field(default=[], description="weights that do not move, for a while")


class Reward(Section):
    """One reward function and how much it counts."""

    fn: str = Field(
        description="module:attr or file.py:attr of `(completion, task) -> float | dict`, or of the "
        "same with `trajectory` in place of `completion`; may be async"
    )
    weight: float = 1.0
    args: dict[str, Any] = Field(default={}, description="further keyword arguments")
    gpus: Annotated[float, Field(ge=0)] | None = (
        None  # a number: in an actor of its own, with those
    )


class Rewards(Section):
    """How rewards are computed."""

    fns: list[Reward] = Field(default=[])
    workers: Positive = 1
    timeout: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="seconds that scoring one completion may take, all functions together",
    )
    concurrency: Positive = Field(
        default=32, description="completions that async functions work on at a time, per worker"
    )
    invalid_score: float = Field(default=0.0, description="the reward of an `Invalid` completion")
    on_error: Literal["shrink", "refill"] = Field(
        default="shrink",
        description="a completion whose reward failed: its group goes without, or samples another",
    )
    refill_tries: Positive = Field(default=2, description="rounds of sampling others")
    max_error_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="stop the run when more of a step's reward calls fail than this"
    )
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=4.0, description="memory of a worker with all that it starts; null: no limit"
    )
    max_processes: Positive = Field(
        default=64, description="processes of a worker with all that it starts"
    )
    env: list[str] = Field(
        default=[],
        description="environment variables that rewards may see; credentials are not passed",
    )


class Runner(Section):
    """Environments that answer back: how many step together. The actors that hold them are the samplers
    (`sampler.num`)."""

    blocks: Positive = Field(
        default=1, description="blocks of environments, shared out among the actors"
    )
    envs: Positive = Field(
        default=8, description="environments of a block: the policy acts in them as one batch"
    )
    step_timeout: Annotated[float, Field(gt=0)] = Field(
        default=60,
        description="seconds that a step or reset may take; then the episode is an error",
    )


class Turns(Section):
    """Episodes of several turns, with an environment that answers what a language model writes."""

    max: Positive = Field(default=8, description="turns of the policy; then the episode is cut off")
    max_tokens: Positive | None = Field(
        default=None,
        description="tokens of an episode after its prompt; null: what model.max_length leaves",
    )
    role: str = Field(default="user", description="of the environment's answers: user, tool, ...")


class Evaluate(Section):
    """Evaluation on held-out tasks."""

    every: Natural = Field(default=0, description="steps between evaluations; 0: never on the way")
    at_start: bool = False
    at_end: bool = False
    max_tasks: Positive = 512
    max_tokens: Positive | None = Field(default=None, description="default: the sampler's")
    episodes: Positive = Field(
        default=1, description="of an environment: episodes from each configuration"
    )
    greedy: bool = Field(
        default=True, description="of an environment: the likeliest action, or one drawn"
    )


class Save(Section):
    """Checkpoints."""

    every: Natural = Field(default=50, description="steps between checkpoints; 0: at the end only")
    keep: Positive = Field(default=2, description="checkpoints kept, the newest first")
    at_end: bool = True
    best: str | None = Field(
        default=None,
        description="a metric of the step, e.g. eval/reward/mean; the checkpoint with the best is kept",
    )
    best_is: Literal["highest", "lowest"] = "highest"


class Publish(Section):
    """Weights to engines, and the proofs that they arrived."""

    transport: str = "object_store"
    canary_tolerance: float | None = Field(
        default=None,
        description="largest mean |log-prob gap| in nats of the canary prompt; default by dtype",
    )


class Cluster(Section):
    """Ray: which cluster, placement, and threads."""

    address: str | None = Field(
        default=None,
        description="a running cluster; null: the one RAY_ADDRESS names, else a private local one",
    )
    cpus: Positive | None = Field(
        default=None, description="cores to plan for; null: what is there"
    )
    placement: Literal["colocated", "disaggregated"] = "colocated"
    threads_per_sampler: Positive | None = Field(default=None, description="null: planned")
    threads_per_learner: Positive | None = Field(default=None, description="null: planned")
    object_store_gb: Annotated[float, Field(gt=0)] = 2.0


class Deadlines(Section):
    """Seconds until a named wait is an error."""

    start: Annotated[float, Field(gt=0)] = 900
    rollout: Annotated[float, Field(gt=0)] = 1800
    reward: Annotated[float, Field(gt=0)] = 120
    learn: Annotated[float, Field(gt=0)] = 3600
    publish: Annotated[float, Field(gt=0)] = 600
    save: Annotated[float, Field(gt=0)] = 1200
    probe: Annotated[float, Field(gt=0)] = 3600
    notice: Annotated[float, Field(gt=0)] = Field(
        default=30, description="seconds until a wait is mentioned on the console"
    )


class Recovery(Section):
    """What is started again after it died, and how often."""

    max_restarts: Natural = Field(
        default=3,
        description="restarts of one actor, or of all from the checkpoint, within window; 0: none",
    )
    window: Annotated[float, Field(gt=0)] = Field(
        default=3600, description="seconds after which a restart is no longer counted"
    )


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    seed: Natural = 0
    steps: Positive
    budget: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="metric: amount; the run ends, before `steps`, with the step whose sum reaches it",
    )
    tasks_per_step: Positive = Field(description="tasks of one ticket: prompts per step")
    run_root: str = "runs"
    warm_start: str | None = Field(
        default=None,
        description="a configuration run first, into <run folder>/warm_start; its model is the start",
    )
    max_staleness: Natural = Field(
        default=0,
        description="versions that a sample may be older than the weights that learn from it",
    )
    algo: Plugin
    env: Plugin
    retention: list[Plugin] = Field(
        default=[], description="terms that keep what the start policy knows"
    )
    model: Model = Model()
    sampler: Sampler = Sampler()
    runner: Runner = Runner()
    turns: Turns = Turns()
    learner: Learner = Learner()
    rewards: Rewards = Rewards()
    eval: Evaluate = Evaluate()
    probes: Probes = Probes()
    save: Save = Save()
    record: Record = Record()
    guards: Guards = Guards()
    publish: Publish = Publish()
    cluster: Cluster = Cluster()
    deadlines: Deadlines = Deadlines()
    recovery: Recovery = Recovery()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        sources = [self.model.path, self.model.build, self.warm_start]
        if sum(s is not None for s in sources) != 1:
            raise ValueError(
                "give exactly one start: model.path, model.build or warm_start "
                f"(got path={self.model.path!r}, build={self.model.build!r}, "
                f"warm_start={self.warm_start!r})"
            )
        if self.sampler.max_tokens >= self.model.max_length:
            raise ValueError(
                f"sampler.max_tokens ({self.sampler.max_tokens}) leaves no room for a prompt in "
                f"model.max_length ({self.model.max_length})"
            )
        if self.turns.max_tokens is not None and self.turns.max_tokens < self.sampler.max_tokens:
            raise ValueError(
                f"turns.max_tokens ({self.turns.max_tokens} for an episode) is below "
                f"sampler.max_tokens ({self.sampler.max_tokens} for one turn of it)"
            )
        if self.rewards.fns and self.rewards.timeout >= self.deadlines.reward:
            raise ValueError(
                f"rewards.timeout ({self.rewards.timeout:g} s for one completion) must be below "
                f"deadlines.reward ({self.deadlines.reward:g} s for all of a step)"
            )
        if self.sampler.min_tokens > self.sampler.max_tokens:
            raise ValueError("sampler.min_tokens is above sampler.max_tokens")
        _refuse_best_that_never_is(self)
        return self


def _refuse_best_that_never_is(cfg: Config) -> None:
    """A checkpoint is judged by an evaluation of the same step: the two must meet at least once."""
    if cfg.save.best is None or not cfg.save.best.startswith("eval/"):
        return
    together = math.lcm(cfg.save.every, cfg.eval.every)  # 0 if either is
    if not (0 < together <= cfg.steps or (cfg.save.at_end and cfg.eval.at_end)):
        raise ValueError(
            f"save.best is {cfg.save.best!r}, but no checkpoint is evaluated: make eval.every "
            f"({cfg.eval.every}) a divisor of save.every ({cfg.save.every}), or set save.at_end and "
            f"eval.at_end"
        )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads `path`, what it `extends`, then `key=value` overrides; returns the validated whole.

    Raises ConfigError: missing file, bad YAML, unknown key (with the nearest), wrong type.
    """
    tree = read_tree(Path(path))
    for override in overrides:
        set_key(tree, override)
    if isinstance(tree.get("warm_start"), str):
        # Absolute, so that the copy in the run folder means the same file.
        tree["warm_start"] = str(Path(tree["warm_start"]).resolve())
    return parse_config(tree, str(path))


def parse_config(tree: Mapping[str, Any], where: str) -> Config:
    """Validates a plain tree; `where` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(_faults(error))}") from None


def parse_rewards(keys: Mapping[str, Any]) -> Rewards:
    """Validates the section `rewards` alone."""
    try:
        return Rewards.model_validate(keys)
    except ValidationError as error:
        raise ConfigError("; ".join(_faults(error, "rewards"))) from None


def dump_config(cfg: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(cfg.model_dump(mode="json", by_alias=True), sort_keys=False)


def _faults(error: ValidationError, *above: str) -> list[str]:
    """A line a fault; an unknown key gets the nearest known one of its section. above: the keys that
    lead to what was validated."""
    lines = []
    faults: list[dict[str, Any]] = [
        {**fault, "loc": (*above, *fault["loc"])} for fault in error.errors()
    ]
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            *parents, key = fault["loc"]
            section = _section_at(parents)
            known = [f.alias or n for n, f in section.model_fields.items()] if section else []
            where = ".".join(str(p) for p in parents) or "the top level"
            if reason := not_built(str(key)):
                lines.append(f"{key} in {where}: {reason}")
                continue
            lines.append(
                f"unknown key {key!r} in {where}.{did_you_mean(str(key), known)}"
                f" Its keys are: {', '.join(known)}."
            )
    rest = (f for f in faults if f["type"] != "extra_forbidden")
    return lines + [registry.fault_line(fault) for fault in rest]


def _section_at(path: Iterable[Any]) -> type[BaseModel] | None:
    section: type[BaseModel] = Config
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            if isinstance(part, int) or part == "schedule":
                continue
            return None
        kinds = [field.annotation, *_flat_args(field.annotation)]
        section = next(
            (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), section
        )
    return section


def _flat_args(annotation: Any) -> list[Any]:
    found = []
    for arg in get_args(annotation):
        found += [arg, *_flat_args(arg)]
    return found


__all__ = ["Config", "Schedule", "dump_config", "load_config", "parse_config"]
