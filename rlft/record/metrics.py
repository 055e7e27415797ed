"""`metrics.jsonl` and `samples.jsonl`: one JSON object a line, appended and flushed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class StepRow(dict[str, Any]):
    """The numbers of one step, gathered from where they arise."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to `time/<phase>_s`."""
        began = time.monotonic()
        yield
        name = f"time/{phase}_s"
        self[name] = self.get(name, 0.0) + time.monotonic() - began


class JsonLines:
    """An append-only file of objects that have a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line; non-finite numbers become null, so that every reader can parse it."""
        # default: a task's target may be anything, a Fraction or a set, say.
        plain = {k: _plain(v) for k, v in row.items()}
        text = json.dumps(plain, ensure_ascii=False, default=str)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; a torn last line (the process was killed while writing) is left out."""
        if not self.path.exists():
            return []
        rows = []
        # Bytes: the tear may be inside a character. Not splitlines of text: a completion may hold U+2028.
        for line in self.path.read_bytes().split(b"\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def forget_after(self, step: int) -> None:
        """Drops rows of steps after `step`: a resumed run takes them again."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), "utf-8")
        beside.replace(self.path)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    return value
