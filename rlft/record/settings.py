"""The sections `record`, `guards` and `probes` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlft.sections import Natural, Plugin, Positive, Section


class Wandb(Section):
    """A run on Weights & Biases."""

    project: str
    entity: str | None = None
    name: str | None = Field(default=None, description="null: the run folder's name")
    group: str | None = None
    tags: list[str] = Field(default=[])
    mode: Literal["online", "offline"] = "online"


class Mlflow(Section):
    """A run in an MLflow experiment."""

    experiment: str
    tracking_uri: str | None = Field(default=None, description="null: MLflow's own default")
    name: str | None = Field(default=None, description="null: the run folder's name")


class Record(Section):
    """What is written beside the metrics: trackers, token traces, bundles to replay."""

    tensorboard: bool = False
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None
    report: bool = Field(default=True, description="write report.html when the run ends")
    tokens: Natural = Field(
        default=2, description="completions a step whose log-probs are kept token by token"
    )
    films: Natural = Field(
        default=3,
        description="of an environment: episodes filmed for the report after an evaluation",
    )
    bundles: list[Positive] = Field(default=[], description="steps saved for `rlft replay`")
    bundle_every: Natural = Field(default=0, description="and every so many steps; 0: none")


class Guard(Section):
    """A signal that may vanish: how many steps in a row until it is an alert, or ends the run."""

    steps: Positive = 5
    action: Literal["warn", "stop", "ignore"] = "warn"


class FlatGroups(Guard):
    """Share of groups whose rewards are all equal."""

    above: Annotated[float, Field(ge=0, le=1)] = 0.9


class ConstantReward(Guard):
    """Standard deviation of the reward over all answers of the step."""

    below: Annotated[float, Field(gt=0)] = 1e-6


class Truncated(Guard):
    """Share of answers that `sampler.max_tokens` cut off."""

    above: Annotated[float, Field(ge=0, le=1)] = 0.95


class Entropy(Guard):
    """Mean entropy of the policy at a decision, in nats; watched where the policy samples."""

    below: Annotated[float, Field(gt=0)] = 0.001


class Guards(Section):
    """Watches over the signal that a run learns from."""

    flat_groups: FlatGroups = FlatGroups()
    constant_reward: ConstantReward = ConstantReward()
    truncated: Truncated = Truncated()
    entropy: Entropy = Entropy()


def _absolute(path: str) -> str:
    # The report is written again later, from any folder.
    return str(Path(path).expanduser().absolute())


class Probes(Section):
    """What the policy still knows, measured beside the run."""

    every: Natural = Field(default=0, description="steps between probes; 0: never on the way")
    at_start: bool = True
    at_end: bool = True
    fns: list[Plugin] = Field(default=[], description="the probes")
    threads: Positive = Field(default=1, description="of the actor that probes")
    gpus: Annotated[float, Field(ge=0)] = 0
    scratch: Annotated[str, AfterValidator(_absolute)] | None = Field(
        default=None,
        description="folder of a run from nothing with the same probes: the report says forward transfer",
    )
