"""Any method of peft, by the name of its configuration class and its arguments.

What engines are sent is the model with the adapter worked into its weights, so a method must be one
whose layers merge. Prompt learning, mixtures that depend on the input, and initialisations that read
data (EVA, CorDA) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from rlft.errors import ConfigError, did_you_mean
from rlft.learning.trained_part import Trainable
from rlft.policy.adapters import linear_names, merged, wrapped_layers

_READ_DATA = ("eva", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Peft(Trainable):
    """config: such as VeraConfig; args: its arguments. `target_modules` is all linear layers by default."""

    adds: ClassVar[bool] = True

    config: str
    args: dict[str, Any] = field(default_factory=dict)

    def prepared(self, lm: Any, seed: int) -> Any:
        import peft

        where = f"learner.trainable: peft {self.config}"
        made = self._made(lm, where)
        dtype = next(lm.parameters()).dtype
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the same on every rank
            try:
                adapted = peft.get_peft_model(lm, made)
            except (ValueError, TypeError, RuntimeError, ImportError) as error:
                raise ConfigError(f"{where}: {error}") from error
        adapted = adapted.to(dtype)
        _refuse_what_does_not_merge(adapted, where)
        return adapted

    def _made(self, lm: Any, where: str) -> Any:
        import peft

        known = [n for n, c in vars(peft).items() if _is_method(c)]
        if self.config not in known:
            raise ConfigError(
                f"{where}: no such class.{did_you_mean(self.config, known)} Known: {', '.join(known)}"
            )
        kind = getattr(peft, self.config)
        args = {"task_type": "CAUSAL_LM", **self.args}
        start = args.get("init_lora_weights")
        if isinstance(start, str) and start.lower() in _READ_DATA:
            raise ConfigError(
                f"{where}: init_lora_weights={start} reads data to begin from, which is not built; use "
                f"another, e.g. pissa or true"
            )
        if args.get("modules_to_save") or args.get("trainable_token_indices"):
            raise ConfigError(
                f"{where}: whole modules beside adapters are not built; leave modules_to_save and "
                f"trainable_token_indices out"
            )
        takes_targets = "target_modules" in getattr(kind, "__dataclass_fields__", {})
        if takes_targets and args.get("target_modules") in (None, "all-linear"):
            # peft's own "all-linear" looks for the output layer by type; ours is a LogProbHead.
            args["target_modules"] = linear_names(lm)
        try:
            made = kind(**args)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"{where}: {error}") from None
        if made.is_prompt_learning:
            raise ConfigError(
                f"{where} learns a prompt, not weights, so engines cannot be sent it; choose a method "
                f"whose adapters merge, such as LoraConfig, VeraConfig, OFTConfig"
            )
        return made


def _is_method(found: Any) -> bool:
    """Whether an attribute of peft is the configuration of a method, and not of a part of one."""
    from peft import PeftConfig

    return isinstance(found, type) and issubclass(found, PeftConfig) and found is not PeftConfig


def _refuse_what_does_not_merge(adapted: Any, where: str) -> None:
    """Merges every layer once, and leaves it as it was."""
    _, layers = wrapped_layers(adapted.get_base_model())
    reason = "none of its layers has a merge" if not layers else None
    try:
        for layer in {id(one): one for one in layers.values()}.values():
            merged(layer)
    except (NotImplementedError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        raise ConfigError(
            f"{where} cannot be merged into the weights, so engines cannot be sent it ({reason}); choose "
            f"a method whose adapters merge, such as LoraConfig, VeraConfig, OFTConfig"
        )
