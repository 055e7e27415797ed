"""Any method of peft, by the name of its configuration class and its arguments.

What engines are sent is the model with the adapter worked into its weights, so a method must be one
whose layers merge. Prompt learning, mixtures that depend on the input, and initialisations that read
data are refused, but for EVA, which reads texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from rlft.errors import ConfigError, did_you_mean
from rlft.learning.eva import begin_from_texts
from rlft.learning.trained_part import Trainable
from rlft.policy.adapters import linear_names, merged, wrapped_layers
from rlft.retention.texts import rows_of_text

_READ_DATA = ("corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Peft(Trainable):
    """config: such as VeraConfig; args: its arguments. `target_modules` is all linear layers by default.
    Of LoRA with `init_lora_weights: eva`: texts: `.jsonl` rows that it begins from; column: of their text;
    batch: texts of one forward."""

    adds: ClassVar[bool] = True

    config: str
    args: dict[str, Any] = field(default_factory=dict)
    texts: str | None = None
    column: str = "text"
    batch: Annotated[int, Field(gt=0)] = 4

    def check(self) -> None:
        """Raises ConfigError or DataError: EVA without texts, or texts that nothing reads."""
        eva = self._start == "eva"
        if eva and self.config != "LoraConfig":
            raise ConfigError(
                f"learner.trainable: peft {self.config}: init_lora_weights=eva is for LoraConfig; use that"
            )
        if eva and self.texts is None:
            raise ConfigError(
                f"learner.trainable: peft {self.config}: init_lora_weights=eva begins from what the layers "
                f"see of texts; give `texts`, a .jsonl file with {self.column!r}"
            )
        if not eva and self.texts is not None:
            raise ConfigError(
                f"learner.trainable: peft {self.config}: `texts` are read by init_lora_weights: eva alone, "
                f"got {self._start!r}; set it in args, or remove texts"
            )
        if self.texts is not None:
            rows_of_text(self.texts, self.column)

    def fits(self, lm: Any) -> None:
        import peft

        where = f"learner.trainable: peft {self.config}"
        made = self._made(lm, where)
        try:
            adapted = peft.get_peft_model(lm, made)
        except (RuntimeError, AttributeError, KeyError):
            return  # it begins from what weights are, which are not here
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"{where}: {error}") from error
        if not wrapped_layers(adapted.get_base_model())[1]:
            raise _no_merge(where, "none of its layers has a merge")

    @property
    def _start(self) -> str:
        return str(self.args.get("init_lora_weights")).lower()

    def prepared(self, lm: Any, seed: int) -> Any:
        import peft

        where = f"learner.trainable: peft {self.config}"
        self.check()
        made = self._made(lm, where)
        dtype = next(lm.parameters()).dtype
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the same on every rank
            try:
                adapted = peft.get_peft_model(lm, made)
                if self.texts is not None:
                    begin_from_texts(adapted, self.texts, self.column, self.batch, where)
            except ConfigError:
                raise
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
        if self._start in _READ_DATA:
            raise ConfigError(
                f"{where}: init_lora_weights={self._start} reads data to begin from, which is not built; "
                f"use another, e.g. eva, pissa or true"
            )
        if self.config == "AdaLoraConfig":
            raise ConfigError(
                f"{where}: its ranks are given out anew while it trains, which is not built; use "
                f"LoraConfig with init_lora_weights: eva, which gives them out at the start"
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
        raise _no_merge(where, reason)


def _no_merge(where: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{where} cannot be merged into the weights, so engines cannot be sent it ({reason}); choose "
        f"a method whose adapters merge, such as LoraConfig, VeraConfig, OFTConfig"
    )
