"""An episode's row, turn by turn: what the policy sampled, then what the environment answered.

The prefix of a turn is the tokens of the turns before as they are. Text becomes tokens once, and only
the environment's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlft.types import Completion, Row


@dataclass(frozen=True, slots=True)
class Turn:
    """What a sampler is told of an episode that goes on. at: of its row, among those of the turn before;
    said: what the environment answered; role: of that as a message, None: it is raw text; seed: of the
    turn; longest: tokens that the row may have."""

    at: int
    said: str
    role: str | None
    seed: int
    longest: int


def extended(row: Row, said: Sequence[int], completion: Completion) -> Row:
    """The row with the environment's tokens, which nobody learns from, and the policy's behind them."""
    response, given, drawn = len(row.ids) - row.prompt_len, len(said), len(completion.ids)
    before = np.ones(response, bool) if row.mask is None else row.mask
    version = completion.version
    if version is not None:
        # The rows of one rollout all say who drew each token, or none does.
        assert row.version is not None
        version = np.concatenate([row.version, np.full(given, -1, np.int32), version])
    return Row(
        ids=np.concatenate([row.ids, np.array(said, np.int32), completion.ids]),
        prompt_len=row.prompt_len,
        sample_logp=np.concatenate(
            [row.sample_logp, np.full(given, np.nan, np.float32), completion.logp]
        ),
        version=version,
        mask=np.concatenate([before, np.zeros(given, bool), np.ones(drawn, bool)]),
    )
