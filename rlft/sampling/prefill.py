"""Prompts through a causal language model, what they share computed once.

Rows of one prompt (a group's, a population's) are one row here and copied afterwards, with their keys
and values. What all prompts begin with (a chat template, some examples) is read once before them.
Rows whose weights differ (`owner`) share nothing with each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch


@dataclass(slots=True)
class Prefilled:
    """Rows N after their prompts of at most P tokens: logits [N, V] of the next token, the cache, the
    attention mask [N, P] and the position [N, 1] of each row's last token."""

    logits: torch.Tensor
    cache: Any
    attention: torch.Tensor
    position: torch.Tensor


def prefill(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    owners: Sequence[int],
    place: Callable[[Sequence[int]], None],
) -> Prefilled:
    """Reads `prompts`, each with the weights of its owner; owners that are equal lie together.

    place: told the owner of each row before a forward. Columns: what all share, padding, the rest.
    """
    from transformers import DynamicCache

    device = model.device
    cache = DynamicCache(config=model.config)
    keys = list(zip(owners, prompts, strict=True))
    if _copies(cache):
        keys = list(dict.fromkeys(keys))
    row_of = {key: i for i, key in enumerate(keys)}
    shared = _shared([prompt for _, prompt in keys]) if _takes_gaps(model, cache) else 0
    heads = list(dict.fromkeys(owner for owner, _ in keys))
    if len(heads) == len(keys):
        shared = 0
    if shared:
        place(heads)
        start = torch.tensor(keys[0][1][:shared], device=device).expand(len(heads), -1)
        model(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
        owner_of = [heads.index(owner) for owner, _ in keys]
        cache.batch_select_indices(torch.tensor(owner_of, device=device))
    longest = max(len(prompt) for _, prompt in keys)
    ids = torch.zeros(len(keys), longest - shared, dtype=torch.int64)
    attention = torch.zeros(len(keys), longest, dtype=torch.int64)
    attention[:, :shared] = 1
    for row, (_, prompt) in enumerate(keys):
        own = len(prompt) - shared
        ids[row, -own:] = torch.tensor(prompt[shared:])
        attention[row, -own:] = 1
    attention = attention.to(device)
    position = (attention.cumsum(1) - 1).clamp_min(0)
    place([owner for owner, _ in keys])
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention,
        position_ids=position[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    done = Prefilled(logits, cache, attention, position[:, -1:])
    return (
        done
        if len(keys) == len(prompts)
        else _copied(done, [row_of[key] for key in zip(owners, prompts, strict=True)])
    )


def _copied(done: Prefilled, rows: list[int]) -> Prefilled:
    at = torch.tensor(rows, device=done.logits.device)
    done.cache.batch_select_indices(at)
    return Prefilled(done.logits[at], done.cache, done.attention[at], done.position[at])


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all of them begin with; each keeps one of its own, whose logits are asked."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, columns)))


def _copies(cache: Any) -> bool:
    """Whether rows of the cache can be copied; those of some layers (linear attention) cannot."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def _takes_gaps(model: Any, cache: Any) -> bool:
    """Whether padding may stand between tokens. A window of attention would count it, and so would a
    model that is not told positions but counts the places of its cache (MPT)."""
    from transformers.cache_utils import DynamicLayer

    told = "position_ids" in inspect.signature(model.forward).parameters
    return told and all(type(layer) is DynamicLayer for layer in cache.layers)
