"""Texts of a file that a language model is kept near on, beside the objective.

A few texts in every optimizer step. `target: text` is replay: their likelihood, as pre-training data are
mixed into fine-tuning. `target: teacher` is behavioural cloning on a fixed buffer (arXiv 2402.02868, of
policies that act: `behavioural_cloning`) for language models: `KL(teacher || policy)` at each of their
tokens, which asks for what the model says of the text and not for the text. The plainest ways to keep a
language model's knowledge, where such text is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlft.config import Config, Positive
from rlft.errors import ConfigError
from rlft.retention.term import Place, Retention, filled, same_vocabulary, teacher_writes
from rlft.retention.texts import rows_of_text
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class TextReplay(Retention):
    """path: `.jsonl` rows; column: of their text; batch: texts of each optimizer step, read in forwards of
    at most `learner.token_budget` tokens; tokenizer: a model folder, null: the start model's; target: what
    is learnt at each token; teacher: of `target: teacher`, a language model's folder, null: the start's;
    top_k: so many of the teacher's likeliest tokens and the rest as one, 0: all."""

    acting: ClassVar[bool] = False

    path: str
    coef: Kept = 0.1
    column: str = "text"
    batch: Positive = 8
    tokenizer: str | None = None
    target: Literal["text", "teacher"] = "text"
    teacher: str | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    called: str = "text_replay"

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="buffer")

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        rows_of_text(self.path, self.column)
        if self.target == "text" and (self.teacher is not None or self.top_k):
            raise ConfigError(
                f"retention: {self.called}: teacher={self.teacher!r} and top_k={self.top_k} are of "
                f"`target: teacher`, and target is text; set it, or remove them"
            )
        if self.teacher is not None:
            teacher_writes(self.teacher, cfg, f"retention: {self.called}")

    def prepared(self, place: Place) -> TextReplay:
        one = filled(self, tokenizer=place.start)
        if self.target == "teacher":
            one = filled(one, teacher=place.start)
            same_vocabulary(one.teacher, place.start, f"retention: {self.called}")
        return one

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it learns from texts of its own (rlft/learning/text_buffer.py)."""
        raise NotImplementedError
