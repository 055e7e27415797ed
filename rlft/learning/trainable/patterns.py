"""The weights whose name matches; everything else is frozen, and costs no gradient and no moments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rlft.errors import ConfigError
from rlft.learning.trained_part import Trainable


def matching(patterns: tuple[str, ...], names: list[str], where: str) -> set[str]:
    """The names that one of `patterns` is found in. Raises ConfigError: no regular expression, or one
    that matches nothing."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            hits = {n for n in names if re.search(pattern, n)}
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is no regular expression ({error})") from None
        if not hits:
            raise ConfigError(
                f"{where}: {pattern!r} matches no weight; names are like {', '.join(names[:3])}"
            )
        found |= hits
    return found


@dataclass(frozen=True)
class Patterns(Trainable):
    """train: regular expressions, searched for in the names of a Hugging Face model
    (`layers\\.1\\.mlp`, `norm`)."""

    train: tuple[str, ...]

    def fits(self, lm: Any) -> None:
        self.prepared(lm, 0)

    def prepared(self, lm: Any, seed: int) -> Any:
        named = dict(lm.named_parameters())
        chosen = matching(self.train, list(named), "learner.trainable.train")
        for name, parameter in named.items():
            parameter.requires_grad_(name in chosen)
        return lm
