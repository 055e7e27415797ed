"""What a language model has forgotten of its base: cross-entropy and KL to the base on held-out text.

`L_f = mean_t -sum_v p_base(v | x_<t) log p(v | x_<t)`, the metric of "Scaling Laws for Forgetting When
Fine-Tuning Large Language Models" (arXiv 2401.05605); less the base's entropy it is KL(base || policy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from rlft.config import Config, Positive
from rlft.probes.probe import ForgettingProbe, Subject
from rlft.retention.term import teacher_writes
from rlft.retention.texts import rows_of_text, token_lists

_TILE_BYTES = 3 * 2**20


@dataclass(frozen=True)
class TextForgetting(ForgettingProbe):
    """path: `.jsonl` rows that nobody trains on; column: of their text; base: a model folder, null: the
    start; texts: so many; max_tokens: of each. `soft_ce` is L_f, `entropy` the base's, `kl` their
    difference, `nll` that of the texts themselves, all nats a token."""

    acting: ClassVar[bool] = False

    path: str
    column: str = "text"
    base: str | None = None
    texts: Positive = 64
    max_tokens: Positive = 512
    called: str = "text"

    def check(self, cfg: Config, env: Any) -> None:
        rows_of_text(self.path, self.column)
        if self.base is not None:
            teacher_writes(self.base, cfg, "probes.fns: text: base")

    @torch.no_grad()
    def __call__(self, subject: Subject) -> Mapping[str, float]:
        from rlft.policy.lm import load_lm

        start = Path(self.base) if self.base is not None else subject.start
        device = subject.device
        base, tuned = (
            load_lm(x, subject.cfg.model.dtype).eval().to(device) for x in (start, subject.model)
        )
        texts = token_lists(self.path, start, self.max_tokens, limit=self.texts, column=self.column)
        totals, count = torch.zeros(3, dtype=torch.float64), 0
        for ids in texts:
            row = torch.tensor([ids], device=device)
            position = torch.arange(1, len(ids), device=device)[None]
            mask = torch.ones_like(position, dtype=torch.bool)
            theirs, chosen, *_ = base.read(row, position, mask)
            ours, *_ = tuned.read(row, position, mask)
            found = soft_cross_entropy(
                *(theirs, base.causal_lm().lm_head.weight),
                *(ours, tuned.causal_lm().lm_head.weight),
                chosen,
            )
            totals += torch.stack([x.double().sum().cpu() for x in found])
            count += len(chosen)
        ce, entropy, nll = (totals / count).tolist()
        return {"soft_ce": ce, "entropy": entropy, "kl": ce - entropy, "nll": nll}


def soft_cross_entropy(
    base_NH: torch.Tensor,
    base_VH: torch.Tensor,
    tuned_NH: torch.Tensor,
    tuned_VH: torch.Tensor,
    tokens_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each position, nats float32 `[N]`: `-sum_v p_base log p_tuned`, the base's entropy
    `-sum_v p_base log p_base`, and `-log p_tuned` of its token. Log-softmax in float32, over the whole
    vocabulary of a few positions at a time. Raises ValueError: vocabularies of different sizes."""
    if len(base_VH) != len(tuned_VH):
        raise ValueError(f"the base has {len(base_VH)} tokens, the policy {len(tuned_VH)}")
    found = [base_NH.new_empty(len(base_NH), dtype=torch.float32) for _ in range(3)]
    size = max(1, _TILE_BYTES // (4 * len(base_VH)))
    for at in range(0, len(base_NH), size):
        tile = slice(at, at + size)
        p = (base_NH[tile] @ base_VH.T).float().log_softmax(-1)
        q = (tuned_NH[tile] @ tuned_VH.T).float().log_softmax(-1)
        found[0][tile] = -(p.exp() * q).sum(-1)
        found[1][tile] = -(p.exp() * p).sum(-1)
        found[2][tile] = -q.gather(1, tokens_N[tile, None]).squeeze(1)
    return found[0], found[1], found[2]
