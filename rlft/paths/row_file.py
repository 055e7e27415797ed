"""The questions of a sampling run and the `rows.jsonl` that they stand in, which grows step by step.

The file is always the rows of the questions in the order in which they came. New questions are appended,
so a step costs what it adds; a step that changes an earlier question (a later pass over the data) writes
the file again beside its place and renames it. What the file holds is not part of a checkpoint: a run
that is resumed, or whose file somebody changed, writes it whole once, from the questions of its
checkpoint. So no row is lost, and none of a step that is taken again is there twice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlft.paths.rows import Question, lines_of, write_questions
from rlft.paths.selection import Distance, merge


class RowFile:
    """questions: by id, with what is kept of each. Pickled, it is these alone."""

    def __init__(self) -> None:
        self.questions: dict[str, Question] = {}
        self._forget()

    def _forget(self) -> None:
        """Nothing is known of the file: it will be written whole."""
        self._new: list[str] = []
        self._rows = 0
        self._bytes: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"questions": self.questions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.questions = state["questions"]
        self._forget()

    def add(self, new: Question, distance: Distance | None) -> None:
        """Adds what was found for a question. Raises DataError: its id stands for another one here."""
        known = self.questions.get(new.id)
        merge(self.questions, new, distance)
        if known is None:
            self._new.append(new.id)
        elif self.questions[new.id] != known:
            self._bytes = None

    def write(self, path: Path) -> int:
        """Brings the file up to date; returns how many rows it holds."""
        if self._bytes is None or not path.exists() or path.stat().st_size != self._bytes:
            self._rows = write_questions(path, self.questions)
        elif self._new:
            lines = [line for id in self._new for line in lines_of(self.questions[id])]
            _append(path, "".join(lines).encode(), self._bytes)
            self._rows += len(lines)
        self._new.clear()
        self._bytes = path.stat().st_size
        return self._rows


def _append(path: Path, data: bytes, size: int) -> None:
    """Adds `data` to a file of `size` bytes, or nothing: a full disk leaves no half of a row."""
    with path.open("ab", buffering=0) as stream:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError:
            os.truncate(path, size)
            raise
