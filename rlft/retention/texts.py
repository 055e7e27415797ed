"""Texts of a file as lists of tokens: what language models are kept near on."""

from __future__ import annotations

import json
from pathlib import Path

from rlft.errors import DataError
from rlft.seeding import Key


def rows_of_text(path: str | Path, column: str = "text") -> list[str]:
    """The column of a `.jsonl` file. Raises DataError: no such file, a line that is no object, a row
    without text, or no row at all."""
    path = Path(path).expanduser()
    if not path.is_file() or path.suffix != ".jsonl":
        raise DataError(f"{path} is not a .jsonl file; expected rows with {column!r}")
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str) or not row[column]:
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{path}, line {number} has no text in {column!r}; found {got}")
        found.append(row[column])
    if not found:
        raise DataError(f"{path} has no row; expected at least one with {column!r}")
    return found


def token_lists(
    path: str | Path,
    model: Path,
    longest: int,
    *,
    limit: int | None = None,
    column: str = "text",
    drawn: Key | None = None,
) -> list[list[int]]:
    """The texts as tokens of the model's tokenizer, each cut to `longest`, those of one token left out.
    limit: so many; drawn: in a random order of this key, so that a limit takes of the whole file and not
    of its beginning. Raises DataError."""
    from rlft.policy.text import Text

    text, rows = Text(model), rows_of_text(path, column)
    if drawn is not None:
        drawn.rng().shuffle(rows)
    found: list[list[int]] = []
    for row in rows:
        if limit is not None and len(found) >= limit:
            break
        if len(ids := text.prompt_ids(row)[:longest]) > 1:
            found.append(ids)
    if not found:
        raise DataError(f"{path}: no text has two tokens or more")
    return found
