"""Keys and values of a batch under way, in room that is reserved once.

transformers' own cache concatenates at every token: all keys and values are copied once a token.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer of full attention whose tensors are views of ones with room for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts in the new tokens; returns all keys and values `[N, heads, L, head size]`."""
        held = self.get_seq_length()
        if held == 0:
            self.lazy_initialization(key_states, value_states)
            self._room = [self._reserved(key_states), self._reserved(value_states)]
        whole = held + key_states.shape[2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, held:whole] = new
        self.keys, self.values = (room[:, :, :whole] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows of `indices`."""
        held = self.get_seq_length()
        if held:
            self._room = [room[indices] for room in self._room]
            self.keys, self.values = (room[:, :, :held] for room in self._room)

    def _reserved(self, states: torch.Tensor) -> torch.Tensor:
        num, heads, _, size = states.shape
        return states.new_empty(num, heads, self._capacity, size)


def cache_for(config: Any, capacity: int) -> DynamicCache:
    """An empty cache; layers of other kinds than full attention are transformers' own.

    capacity: tokens of the longest row, prompt and answer.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
