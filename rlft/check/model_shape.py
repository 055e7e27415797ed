"""How large a model is, from its configuration alone: built on torch's `meta` device, without weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.check.known_models import KNOWN
from rlft.config import Config, Lora, load_config
from rlft.rewards.places import places


@dataclass(frozen=True, slots=True)
class Served:
    """A reward in an actor of its own. gpus: of it; parts: bytes by name of what it holds, if it says."""

    name: str
    gpus: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """params, trained: counts of all and of trained parameters; kv_width: key heads x head width;
    critic: whether a critic of the same shape is trained beside it; by_noise: whether weights move without
    a gradient; served: models of rewards."""

    params: int
    trained: int
    layers: int
    hidden: int
    inner: int
    kv_width: int
    vocabulary: int
    critic: bool = False
    by_noise: bool = False
    served: tuple[Served, ...] = ()


def structure(cfg: Config) -> Any:
    """The model that `cfg` trains on torch's `meta` device, its head as it is in the learner: no linear
    layer. Or a sentence on why it is not known here."""
    import torch

    model = _on_meta(_begun(cfg))
    if not isinstance(model, str) and (head := model.get_output_embeddings()) is not None:
        kept = torch.nn.Module()
        kept.weight = head.weight
        model.set_output_embeddings(kept)
    return model


def _begun(cfg: Config) -> Config:
    """The configuration that makes the model that `cfg` goes on with."""
    while cfg.warm_start is not None:
        warm = load_config(cfg.warm_start)
        cfg = warm.model_copy(
            update={"model": warm.model.model_copy(update={"lora": cfg.model.lora})}
        )
    return cfg


def _on_meta(cfg: Config) -> Any:
    import torch

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # its retries; we say it in one line
    try:
        with torch.device("meta"):
            return _built(cfg) if cfg.model.build is not None else _configured(cfg)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return (  # of what is read of weights while a model is made, there is nothing here
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}"
        )


def model_shape(cfg: Config) -> ModelShape | str:
    """The shape of the model that `cfg` trains, or a sentence on why it is not known here."""
    cfg = _begun(cfg)
    model = _on_meta(cfg)
    if isinstance(model, str):
        return model
    params = sum(p.numel() for p in model.parameters())
    config = model.config
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        params=params,
        trained=params if cfg.model.lora is None else _adapter_size(model, cfg.model.lora),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kv_width=width * (getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=config.vocab_size,
    )


def served_models(cfg: Config) -> tuple[Served, ...]:
    """The rewards that live alone, each with what its method `memory(longest)` says: bytes by name, for
    texts of `longest` tokens."""
    found = []
    for place in places(cfg.rewards):
        if place.own:
            [spec] = place.rewards.fns
            reward = registry.build("reward", {"name": spec.fn, **spec.args})
            memory = getattr(reward, "memory", None)
            parts = memory(cfg.model.max_length) if memory else {}
            found.append(Served(place.name, place.gpus, parts))
    return tuple(found)


def _built(cfg: Config) -> Any:
    build = cfg.model.build
    model, _ = registry.build("model", build if isinstance(build, dict) else {"name": build})(
        cfg.seed
    )
    return model


def _configured(cfg: Config) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    assert cfg.model.path is not None
    if (known := KNOWN.get(cfg.model.path)) is not None:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**known))
    path = Path(cfg.model.path).expanduser()
    config = AutoConfig.from_pretrained(path if path.is_dir() else cfg.model.path)
    return AutoModelForCausalLM.from_config(config)


def _adapter_size(model: Any, lora: Lora) -> int:
    """Parameters of the adapters that peft would add; the output head is never adapted."""
    import torch

    named = lora.target_modules
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
            last = name.rsplit(".", 1)[-1]
            if (
                named == "all-linear"
                or last == named
                or (isinstance(named, list) and last in named)
            ):
                total += lora.rank * (module.in_features + module.out_features)
    return total
