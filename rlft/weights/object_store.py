"""Weights through Ray's object store: one flat buffer, written once, mapped by every engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rlft.types import TensorSpec, WeightUpdate
from rlft.weights.fingerprint import fingerprint
from rlft.weights.transports import Transport

_ALIGN = 64


class ObjectStore(Transport):
    """Weights through Ray's object store: works everywhere, on one machine or many."""

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], version: int, put: Any
    ) -> WeightUpdate:
        """Packs `tensors` into one buffer, `put`s it, and describes it."""
        held = list(tensors)
        manifest = tuple(fingerprint(name, tensor) for name, tensor in held)
        offsets, size = _layout(manifest)
        buffer = torch.empty(size, dtype=torch.uint8)
        for (_, tensor), offset in zip(held, offsets, strict=True):
            count = tensor.numel() * tensor.element_size()
            buffer[offset : offset + count] = tensor.contiguous().reshape(-1).view(torch.uint8)
        return WeightUpdate(version, version - 1, "full", manifest, source=put(buffer.numpy()))

    def receive(
        self, update: WeightUpdate, payload: np.ndarray
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) as views of the mapped buffer: nothing is copied here."""
        import warnings

        with warnings.catch_warnings():
            # The map is read-only, and torch warns of it; loaders only read.
            warnings.simplefilter("ignore")
            buffer = torch.from_numpy(payload)
        offsets, _ = _layout(update.manifest)
        for spec, offset in zip(update.manifest, offsets, strict=True):
            dtype = getattr(torch, spec.dtype)
            count = math.prod(spec.shape) * dtype.itemsize
            yield spec.name, buffer[offset : offset + count].view(dtype).reshape(spec.shape)


def _layout(manifest: tuple[TensorSpec, ...]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for spec in manifest:
        offsets.append(end)
        size = math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize
        end += -(-size // _ALIGN) * _ALIGN
    return offsets, end
