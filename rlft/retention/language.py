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
from rlft.retention.term import Place, filled
from rlft.retention.text_replay import TextReplay


@dataclass(frozen=True)
class Language(TextReplay):
    """As `TextReplay`; longest: tokens of one text; tokenizer: a model folder, null: that of the policy's
    language model."""

    acting: ClassVar[bool] = True
    writing: ClassVar[bool] = False

    longest: Positive = 128
    called: str = "language"

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        TextReplay.check(self, cfg, env, acts)
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
