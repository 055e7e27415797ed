"""Explained Variance Adaptation: LoRA that begins from the directions of what its layers see.

The rows of A are the leading principal directions of a layer's inputs on given texts, and ranks go to the
layers whose directions explain most; B is 0, so the model says at first what it said (arXiv 2410.07170).
peft does it; here it is given the texts, on each rank the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlft.errors import ConfigError
from rlft.learning.language_buffer import there
from rlft.learning.text_buffer import padded
from rlft.policy.adapters import wrapped_layers
from rlft.retention.texts import token_lists

LONGEST = 512
"""Tokens of one text that are read."""

_FORWARDS, _PASSES = 60, 5
"""Directions settle in some ten forwards, if they do."""


def begin_from_texts(adapted: Any, path: str, column: str, batch: int, where: str) -> None:
    """Sets the adapters of `adapted`, a peft model with `init_lora_weights: eva`, in place. batch: texts
    of one forward. Raises ConfigError: a layer that is not linear, more directions than a layer has inputs
    or texts have tokens, or directions that do not settle; DataError."""
    from peft import initialize_lora_eva_weights

    base = adapted.get_base_model()
    found = token_lists(path, Path(base.name_or_path), LONGEST, column=column)
    settings = adapted.peft_config["default"]
    wanted = round(max([settings.r, *settings.rank_pattern.values()]) * settings.eva_config.rho)
    for name, layer in wrapped_layers(base)[1].items():
        inner = layer.get_base_layer()
        if not isinstance(inner, torch.nn.Linear):
            raise ConfigError(
                f"{where}: eva is for linear layers, and {name} is a {type(inner).__name__}; leave it "
                f"out of target_modules"
            )
        if inner.in_features < wanted:
            raise ConfigError(
                f"{where}: eva looks for {wanted} directions (r x rho), and the inputs of {name} have "
                f"{inner.in_features}; set a smaller r, or eva_config.rho"
            )
    batches = _batches(found, batch, wanted)
    if not batches:  # peft would wait for ever for directions that so few tokens do not have
        raise ConfigError(
            f"{where}: eva looks for {wanted} directions (r x rho) in the inputs of each layer, and the "
            f"{len(found)} texts of {path} have {sum(map(len, found))} tokens; give more texts, or a "
            f"smaller r or rho"
        )
    limit, count = max(_FORWARDS, _PASSES * len(batches)), 0

    def forward(model: Any, inputs: dict[str, torch.Tensor]) -> None:
        nonlocal count
        count += 1
        if count > limit:  # peft has none itself
            raise ConfigError(
                f"{where}: after {limit} forwards over {path} the {wanted} directions (r x rho) of some "
                f"layer have not settled: its inputs do not have so many, as those "
                f"of a first layer where few different tokens occur. Give other texts, or a smaller r, rho "
                f"or tau"
            )
        base.get_decoder()(**inputs, use_cache=False)

    initialize_lora_eva_weights(
        adapted,
        batches,
        forward_fn=forward,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )


def _batches(texts: list[list[int]], size: int, least: int) -> list[dict[str, torch.Tensor]]:
    """Padded batches of `size` texts or more, of at least `least` tokens each; what is left over at the end
    goes to the last one."""
    groups: list[list[list[int]]] = []
    for ids in texts:
        if not groups or (len(groups[-1]) >= size and sum(map(len, groups[-1])) >= least):
            groups.append([])
        groups[-1].append(ids)
    if sum(map(len, groups[-1])) < least:
        left = groups.pop()
        if not groups:
            return []
        groups[-1] += left
    return [_padded(group) for group in groups]


def _padded(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    ids, after = padded(texts)
    return {"input_ids": ids, "attention_mask": there(after)}
