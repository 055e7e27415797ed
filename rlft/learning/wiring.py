"""What `learner.trainable`, `learner.optimizer` and `learner.clip` mean for the policy's engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlft import registry
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.learning.chosen import ChosenAdamW
from rlft.learning.clipping import clip_by_parameter, push
from rlft.learning.pieces import flats
from rlft.learning.shards import Intercept
from rlft.learning.trained_part import Optimizing, Trainable
from rlft.seeding import Key


def name_of(spec: str | Mapping[str, Any]) -> str:
    """The name in a plug-in's section."""
    return spec if isinstance(spec, str) else str(spec.get("name"))


def trained_part(cfg: Config) -> Trainable:
    """The method of `learner.trainable`. Raises ConfigError for what does not go together."""
    learner = cfg.learner
    method: Trainable = registry.build("trainable", learner.trainable)
    name, optimizer = name_of(learner.trainable), name_of(learner.optimizer)
    if cfg.model.lora is not None and name != "full":
        raise ConfigError(
            f"model.lora trains adapters and freezes the rest; learner.trainable={name} chooses "
            f"otherwise: leave one of the two out"
        )
    if method.chooses and optimizer != "adamw":
        raise ConfigError(
            f"learner.trainable={name} steps chosen elements with AdamW, learner.optimizer={optimizer} "
            f"whole matrices: set learner.optimizer=adamw, or choose by patterns"
        )
    ours = method.chooses or method.pushed or optimizer != "adamw" or learner.clip != "global"
    if ours and "optimizer" in learner.deepspeed:
        raise ConfigError(
            f"learner.deepspeed.optimizer leaves no room for learner.trainable={name}, "
            f"learner.optimizer={optimizer}, learner.clip={learner.clip}: remove it"
        )
    if learner.freeze and (name != "full" or optimizer != "adamw"):
        raise ConfigError(
            f"learner.freeze holds weights of the usual optimizer; with learner.trainable={name} and "
            f"learner.optimizer={optimizer} leave it out, and choose what is trained there"
        )
    if learner.clip == "parameter" and learner.max_grad_norm == 0:
        raise ConfigError(
            "learner.clip=parameter clips to learner.max_grad_norm, which is 0 (no clipping): set it"
        )
    return method


def refuse_elsewhere(cfg: Config, what: str) -> None:
    """Raises ConfigError if these keys ask for anything where only the usual is done."""
    learner = cfg.learner
    usual = {"trainable": "full", "optimizer": "adamw", "clip": "global"}
    for key, value in usual.items():
        got = name_of(getattr(learner, key))
        if got != value:
            raise ConfigError(
                f"learner.{key}={got} is for language models; {what} has {value} only"
            )


def policy_optimizer(
    cfg: Config, method: Trainable, named: Mapping[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of `named`, before DeepSpeed puts flat tensors in their place."""
    learner = cfg.learner
    if method.chooses:
        return ChosenAdamW(
            list(named.values()),
            method,
            Key(cfg.seed).child("learner.trainable"),
            betas=learner.betas,
            eps=learner.eps,
            weight_decay=learner.weight_decay,
        )
    optimizing: Optimizing = registry.build("optimizer", learner.optimizer)
    return optimizing.made(named, learner)


def names(module: Any) -> dict[str, torch.nn.Parameter]:
    """What is trained of a policy, by its name in the Hugging Face model."""
    return {name.removeprefix("lm."): p for name, p in module.named_parameters() if p.requires_grad}


def attach(
    cfg: Config,
    method: Trainable,
    engine: Any,
    optimizer: torch.optim.Optimizer | None,
    module: torch.nn.Module,
    intercept: Intercept,
) -> None:
    """Tells the optimizer where its elements lie, and makes it clip by parameter if asked."""
    by_parameter = cfg.learner.clip == "parameter"
    if optimizer is None or not (hasattr(optimizer, "layout") or by_parameter or method.pushed):
        return
    layout = flats(engine, names(module))
    if hasattr(optimizer, "layout"):
        optimizer.layout = layout
    if method.pushed is not None:
        push(optimizer, layout, method.pushed, method.sparsity)  # type: ignore[attr-defined]
    if by_parameter:
        clip_by_parameter(intercept, optimizer, layout, cfg.learner.max_grad_norm)
