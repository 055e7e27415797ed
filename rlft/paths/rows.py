"""`rows.jsonl`: what rejection sampling keeps, one training row a line, with where each came from.

`datasets.load_dataset("json", data_files=...)` reads it, and so does algo `sft`. Columns: `question`,
`prompt`, `response`, `origin` (`gold` or `sample`), `key`, and of samples `model`, `version`, `seed`
(the run's), `step` and `sample` (the completion's id, from which its engine seed follows).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.errors import DataError
from rlft.types import Prompt

_SOURCE = ("model", "version", "seed", "step", "sample")
_COLUMNS = ("question", "prompt", "response", "origin")


@dataclass(frozen=True, slots=True)
class Kept:
    """A right answer that stands for its key. source: the columns that say where it came from."""

    text: str
    key: str
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its gold responses and the answers that are kept of it."""

    id: str
    prompt: Prompt
    gold: tuple[str, ...]
    kept: tuple[Kept, ...] = ()


def rows_of(question: Question) -> Iterator[dict[str, Any]]:
    """The question's rows, gold first. Every row has every column."""
    same = {"question": question.id, "prompt": question.prompt}
    for text in question.gold:
        none = dict.fromkeys(_SOURCE)
        yield {**same, "response": text, "origin": "gold", "key": None, **none}
    for one in question.kept:
        source = {name: one.source.get(name) for name in _SOURCE}
        yield {**same, "response": one.text, "origin": "sample", "key": one.key, **source}


def lines_of(question: Question) -> Iterator[str]:
    """The question's rows as lines of the file."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(question))


def write_questions(path: Path, questions: Mapping[str, Question]) -> int:
    """Writes all rows, in one piece; returns how many."""
    lines = [line for question in questions.values() for line in lines_of(question)]
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(lines), "utf-8")
    beside.replace(path)
    return len(lines)


def read_questions(path: str | Path, key: Callable[[str], str]) -> list[Question]:
    """The questions of a `rows.jsonl`; keys are taken anew, since `key` may be another than it was.

    Raises DataError that names file and line: none, empty, not JSON, or a row without its columns.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected the rows.jsonl of an rft run")
    found: dict[str, Question] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            known = found.get(row["question"])
            gold, kept = (known.gold, known.kept) if known else ((), ())
            if row["origin"] == "gold":
                gold = (*gold, row["response"])
            else:
                text = row["response"]
                source = {name: row.get(name) for name in _SOURCE}
                kept = (*kept, Kept(text, key(text), source))
            found[row["question"]] = Question(row["question"], _prompt(row), gold, kept)
    if not found:
        raise DataError(f"{path} has no rows: nothing to combine")
    return list(found.values())


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): expected a row of an rft run") from error
    missing = [c for c in _COLUMNS if not isinstance(row, dict) or c not in row]
    if missing:
        raise DataError(
            f"{where} has no column {missing[0]!r}; expected {', '.join(map(repr, _COLUMNS))}"
        )
    return row
