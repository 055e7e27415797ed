"""Learning language beside an episode's actions, for policies whose memory is a language model (LaMo).

The second loss of LaMo (arXiv 2310.20587): `L_action + coef L_language`, where the language model inside a
`DecisionTransformer` goes on to predict text, so that what it knows is not overwritten; coef is 0.1 there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlft.config import Config, Positive
from rlft.errors import ConfigError
from rlft.retention.term import Place, Retention, filled
from rlft.retention.texts import rows_of_text
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class Language(Retention):
    """path: `.jsonl` rows; column: of their text; batch: texts of each optimizer step; longest: tokens of
    one text; tokenizer: a model folder, null: that of the policy's language model."""

    writing: ClassVar[bool] = False

    path: str
    coef: Kept = 0.1
    column: str = "text"
    batch: Positive = 8
    tokenizer: str | None = None
    longest: Positive = 128
    called: str = "language"

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="buffer")

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        rows_of_text(self.path, self.column)
        build = cfg.model.build
        if build is not None and (isinstance(build, str) or "lm" not in build):
            raise ConfigError(
                f"retention: language needs a policy with a language model inside, got model.build="
                f"{build!r}; use {{name: decision_transformer, lm: FOLDER}}"
            )

    def prepared(self, place: Place) -> Language:
        said = json.loads((Path(place.start) / "policy.json").read_text())["network"]
        if "lm" not in said:
            raise ConfigError(
                f"retention: the policy in {place.start} has no language model inside: {said}"
            )
        return filled(self, tokenizer=str(Path(said["lm"]).expanduser()))

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it learns from texts of its own (rlft/learning/language_buffer.py)."""
        raise NotImplementedError
