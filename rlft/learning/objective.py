"""The objective of a micro-batch from its terms, and running sums over all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from rlft.losses.aggregate import per_decision
from rlft.types import Batch, PolicyOut, Term


def objective(
    terms: Iterable[tuple[Term, float]],
    module: str,
    rows: Sequence[int],
    out: PolicyOut,
    batch: Batch,
    denom: float,
    sums: Sums,
) -> tuple[torch.Tensor, set[int]]:
    """The sum of the terms of `module` with their coefficients, over `denom`, and which of `rows`, the
    numbers of the batch's rows, have a loss that is not finite."""
    mask = batch.mask
    counter = "grad_norm" if module == "policy" else f"{module}/grad_norm"
    loss = torch.zeros((), device=mask.device)
    row_loss = torch.zeros(len(mask), device=mask.device)
    for term, coef in terms:
        if term.module != module:
            continue
        value = term.fn(out, batch)
        value, diagnostics = value if isinstance(value, tuple) else (value, {})
        weighted = per_decision(term.name, value, mask) * batch.weight
        loss = loss + coef * weighted.sum() / denom
        row_loss = row_loss + weighted.detach().sum(dim=1)
        sums.add(f"loss/{term.name}", float(weighted.detach().sum()) / denom, 0.0, per=counter)
        for name, value_BT in diagnostics.items():
            sums.over(name, value_BT, mask & ~value_BT.isnan())  # NaN: does not apply there
    bad = row_loss.isfinite().logical_not().nonzero()[:, 0].tolist()
    return loss, {rows[i] for i in bad if i < len(rows)}


class Sums:
    """Running sums of a rank, averaged over all ranks at the end in two all-reduces."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._largest: dict[str, float] = defaultdict(float)
        self._per: dict[str, str] = {}

    def add(self, name: str, value: float, count: float, per: str | None = None) -> None:
        """per: the name whose count, of applied updates, the sum is divided by, not its own."""
        self._sums[name][0] += value
        self._sums[name][1] += count
        if per is not None:
            self._per[name] = per

    def over(self, name: str, value_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
        """Adds the masked values of a `[B, T]` tensor."""
        kept = torch.where(mask_BT, value_BT.detach(), 0.0)  # quicker than picking them out
        self.add(name, float(kept.sum()), float(mask_BT.count_nonzero()))

    def largest(self, name: str, value_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
        chosen = value_BT.detach()[mask_BT]
        self._largest[name] = max(
            self._largest[name], float(chosen.max()) if chosen.numel() else 0.0
        )

    def reduced(self, device: torch.device) -> dict[str, float]:
        """Averages and maxima over every rank. A collective."""
        names, peaks = sorted(self._sums), sorted(self._largest)
        flat = [x for name in names for x in self._sums[name]]
        totals = torch.tensor(flat, dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        highest = torch.tensor(
            [self._largest[p] for p in peaks], dtype=torch.float64, device=device
        )
        if peaks:
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        pairs = totals.reshape(-1, 2).tolist()
        out = {}
        for name, (total, count) in zip(names, pairs, strict=True):
            if name in self._per:  # this rank's count: every rank counts the same updates
                count = self._sums[self._per[name]][1]
            out[name] = total / max(count, 1.0)
        return {**out, **dict(zip(peaks, highest.tolist(), strict=True))}
