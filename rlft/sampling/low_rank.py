"""Many members of a population in one batch: low-rank noise added row by row.

A member's weights are never formed. Where the model multiplies by `W [m, n]`, a row of member i gets
`y = x W^T + (s_i / sqrt(r)) (x B_i) A_i^T` (EGGROLL, arXiv 2511.16652, equation 6): one batched product
for all rows of all members. The base weights stay as they are, so there is nothing to restore.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlft.errors import ConfigError
from rlft.learning.noise import Drawing, Noise, factors


@functools.cache
def linear_shapes(folder: Path) -> dict[str, torch.Size]:
    """Names and shapes of the weights of the model's linear maps, its output head left out; no weights
    are read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    return {f"{name}.weight": linear.weight.shape for name, linear in _linears(model)}


def linear_weights(folder: Path) -> frozenset[str]:
    """Their names alone."""
    return frozenset(linear_shapes(folder))


def with_matrices(drawing: Drawing, folder: Path) -> Drawing:
    """The drawing with the names that its rank applies to, which it does not travel with. Raises
    ConfigError: the model has no linear map, so that all members would be the same."""
    if not drawing.rank:
        return drawing
    matrices = linear_weights(folder)
    if not matrices:
        raise ConfigError(
            f"noise of algo.rank={drawing.rank} is added to linear maps, and the model in {folder} "
            f"has none (GPT-2 and others are built of another kind of layer): use algo.rank=0"
        )
    return replace(drawing, matrices=matrices)


def _linears(model: Any) -> list[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()
    found = model.named_modules()
    return [(n, m) for n, m in found if isinstance(m, nn.Linear) and m is not head]


class RowNoise:
    """Low-rank noise of several members in a model, while entered.

    `place` says which member each row of the next forwards belongs to.
    """

    def __init__(self, model: Any, members: Sequence[Noise], drawing: Drawing) -> None:
        self._model, self._members, self._rank = model, members, drawing.rank
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, linear in _linears(model):
            weight = linear.weight
            pairs = [
                factors(
                    m.seed, f"{name}.weight", weight.shape, drawing.rank, device=str(weight.device)
                )
                for m in members
            ]
            scale = drawing.rank**-0.5
            scaled = [
                (left * (m.scale * scale)).T for (left, _), m in zip(pairs, members, strict=True)
            ]
            self._factors[name] = (
                torch.stack([right for _, right in pairs]).to(weight.dtype),  # [M, n, r]
                torch.stack(scaled).to(weight.dtype),  # [M, r, m]
            )
        self._active: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._groups = 0
        self._slots: torch.Tensor | None = None
        self._back: torch.Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> RowNoise:
        for name, linear in _linears(self._model):
            hook = functools.partial(self._add, name)
            self._handles.append(linear.register_forward_hook(hook))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def place(self, member_of_row: Sequence[int]) -> None:
        """Rows of one member lie together. Members may have different numbers of rows: the shorter
        ones are filled up with a row that is computed for nothing."""
        order = list(dict.fromkeys(member_of_row))
        rows: dict[int, list[int]] = {m: [] for m in order}
        for row, member in enumerate(member_of_row):
            rows[member].append(row)
        longest = max(map(len, rows.values()))
        self._groups = len(order)
        self._slots = self._back = None
        if [r for m in order for r in rows[m]] != list(range(len(member_of_row))) or any(
            len(r) != longest for r in rows.values()
        ):
            device = next(self._model.parameters()).device
            padded = [
                r for m in order for r in (*rows[m], *[rows[m][0]] * (longest - len(rows[m])))
            ]
            back = [0] * len(member_of_row)
            for place, member in enumerate(order):
                for at, row in enumerate(rows[member]):
                    back[row] = place * longest + at
            self._slots = torch.tensor(padded, device=device)
            self._back = torch.tensor(back, device=device)
        whole = order == list(range(len(self._members)))
        self._active = (
            self._factors
            if whole
            else {n: (b[order], a[order]) for n, (b, a) in self._factors.items()}
        )

    def _add(self, name: str, module: nn.Module, args: Any, y: torch.Tensor) -> torch.Tensor:
        x, (right, left) = args[0], self._active[name]
        if self._slots is None:
            grouped = x.reshape(self._groups, -1, x.shape[-1])
            y.view(self._groups, -1, y.shape[-1]).baddbmm_(torch.bmm(grouped, right), left)
            return y
        rows = x[self._slots]
        grouped = rows.reshape(self._groups, -1, x.shape[-1])
        added = torch.bmm(torch.bmm(grouped, right), left).view(len(self._slots), *y.shape[1:])
        return y.add_(added[self._back])
