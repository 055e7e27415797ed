"""Replay of supervised text beside the objective: the likelihood of texts that a language model knows.

A few texts of a `.jsonl` file in every optimizer step, as pre-training data are mixed into fine-tuning.
The plainest way to keep a language model's knowledge, where such text is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rlft.config import Config, Positive
from rlft.retention.term import Place, Retention, filled
from rlft.retention.texts import rows_of_text
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class TextReplay(Retention):
    """path: `.jsonl` rows; column: of their text; batch: texts of each optimizer step; tokenizer: a model
    folder, null: the start model's."""

    acting: ClassVar[bool] = False

    path: str
    coef: Kept = 0.1
    column: str = "text"
    batch: Positive = 8
    tokenizer: str | None = None
    called: str = "text_replay"

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="buffer")

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        rows_of_text(self.path, self.column)

    def prepared(self, place: Place) -> TextReplay:
        return filled(self, tokenizer=place.start)

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it learns from texts of its own (rlft/learning/text_buffer.py)."""
        raise NotImplementedError
