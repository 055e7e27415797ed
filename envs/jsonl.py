"""Tasks from any file of rows: `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`.

Which column is the prompt and which the target are keys of the configuration; every other column is
in `task.info`, where a reward can read it. Rows of a JSON file are objects; `.jsonl` and `.csv` may be
compressed (`.gz`). A CSV file has a header line, and all its values are text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError, DataError, did_you_mean
from rlft.seeding import Key
from rlft.types import Prompt, Task

PLACE = "{prompt}"


@dataclass(frozen=True)
class Rows:
    """path: the training rows; held_out_path: rows to evaluate on; held_out_size: or so many of the
    training rows, drawn by `seed` and then not trained on.

    prompt: column of the prompt, text or chat messages; target: column of what the reward compares
    with, null for none; demos: column of a reference response, or a list of them; id: column of the
    tasks' names, null for the row's number.
    template: the prompt text, with `{prompt}` in it; chat: make text a user message, else raw text;
    system: a system message before it; limit, held_out_limit: the first so many rows only.
    """

    path: str
    held_out_path: str | None = None
    held_out_size: int = 0
    prompt: str = "prompt"
    target: str | None = "target"
    demos: str | None = None
    id: str | None = None
    template: str = PLACE
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    held_out_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if PLACE not in self.template:
            raise ConfigError(f"template={self.template!r} must contain {PLACE}")
        if self.system is not None and not self.chat:
            raise ConfigError("system needs chat: true; put the text into template instead")
        if self.held_out_size and self.held_out_path is not None:
            raise ConfigError("give held_out_path or held_out_size, not both")
        for name in ("limit", "held_out_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or null for all rows")
        if self.held_out_size < 0:
            raise ConfigError(f"held_out_size={self.held_out_size} must be at least 0")

    def train(self) -> Sequence[Task]:
        """The rows to train on, in the file's order. Raises DataError."""
        tasks = self._tasks(self.path, self.limit)
        if self.held_out_size == 0:
            return tasks
        kept = self._drawn(len(tasks))
        return [task for place, task in enumerate(tasks) if place not in kept]

    def held_out(self) -> Sequence[Task]:
        """The rows to evaluate on; empty if none were asked for. Raises DataError."""
        if self.held_out_path is not None:
            return self._tasks(self.held_out_path, self.held_out_limit)
        if self.held_out_size == 0:
            return []
        tasks = self._tasks(self.path, self.limit)
        return [tasks[place] for place in sorted(self._drawn(len(tasks)))]

    def _drawn(self, rows: int) -> frozenset[int]:
        if self.held_out_size >= rows:
            raise DataError(
                f"{self.path} has {rows} rows; held_out_size={self.held_out_size} leaves none to train "
                f"on. Lower it, or name a file as held_out_path"
            )
        rng = Key(self.seed, ("jsonl", "held_out")).rng()
        return frozenset(rng.sample(range(rows), self.held_out_size))

    def _tasks(self, path: str, limit: int | None) -> list[Task]:
        tasks: list[Task] = []
        for number, row in enumerate(rows(Path(path).expanduser()), start=1):
            tasks.append(self._task(row, number, f"{path}, row {number}"))
            if number == limit:
                break
        if not tasks:
            raise DataError(f"{path} has no rows: expected at least one, with {self._columns()}")
        if self.id is not None:
            _refuse_repeated(tasks, path, self.id)
        return tasks

    def _task(self, row: Any, number: int, where: str) -> Task:
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where} is a {type(row).__name__}, expected an object with {self._columns()}"
            )
        info = {
            str(k): v for k, v in row.items() if k not in (self.prompt, self.target, self.demos)
        }
        return Task(
            id=str(number) if self.id is None else str(_column(row, self.id, where)),
            prompt=self._prompt(_column(row, self.prompt, where), where),
            target=None if self.target is None else _column(row, self.target, where),
            demos=() if self.demos is None else _texts(row, self.demos, where),
            info=info,
        )

    def _prompt(self, given: Any, where: str) -> Prompt:
        if isinstance(given, str):
            # Not str.format: a prompt or a template may hold other braces.
            text = self.template.replace(PLACE, given)
            if not self.chat:
                return text
            user = {"role": "user", "content": text}
            return ({"role": "system", "content": self.system}, user) if self.system else (user,)
        messages = given if isinstance(given, list) else None
        if not messages or not all(_is_message(m) for m in messages):
            raise DataError(
                f"{where}: column {self.prompt!r} is {str(given)[:80]!r}; expected text, or a list of "
                f'messages {{"role": ..., "content": ...}}'
            )
        return tuple({"role": m["role"], "content": m["content"]} for m in messages)

    def _columns(self) -> str:
        named = [self.prompt, self.target, self.demos, self.id]
        return "the columns " + ", ".join(repr(c) for c in named if c is not None)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise DataError(
            f"{where} has no column {name!r}. Found: {', '.join(map(repr, row)) or 'none'}."
            f"{did_you_mean(name, map(str, row))}"
        )
    return row[name]


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    given = _column(row, name, where)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise DataError(
            f"{where}: column {name!r} is a {type(given).__name__}; expected text, or a list of texts"
        )
    return tuple(texts)


def _refuse_repeated(tasks: Sequence[Task], path: str, column: str) -> None:
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks, start=1):
        if task.id in seen:
            raise DataError(
                f"{path}: rows {seen[task.id]} and {number} have the same {column!r}, {task.id!r}; ids "
                f"must be unique. Leave `id` out to number the rows"
            )
        seen[task.id] = number


# -- files ---------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[Any]:
    """The rows of a file, read by what its name ends in. Raises DataError that names file and line."""
    if not path.is_file():
        near = did_you_mean(path.name, (f.name for f in path.parent.glob("*")))
        raise DataError(f"{path} is not a file.{near} Expected one of {', '.join(_READERS)}")
    suffixes = path.name.removesuffix(".gz").rpartition(".")
    reader = _READERS.get(f".{suffixes[2]}")
    if reader is None:
        raise DataError(
            f"{path}: expected a name that ends in one of {', '.join(_READERS)} (or .gz)"
        )
    try:
        yield from reader(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def json_value(line: str, where: str) -> Any:
    """The JSON value of a line. Raises DataError; also for nesting that exhausts the parser."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): expected one object a line") from error


def _open(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def json_lines(path: Path) -> Iterator[Any]:
    """The JSON value of each line of a file; blank lines are left out."""
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield json_value(line, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Any]:
    with _open(path) as file:
        text = file.read()
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): expected a list of objects") from error
    if not isinstance(whole, list):
        raise DataError(f"{path} holds a {type(whole).__name__}, expected a list of objects")
    yield from whole


def _csv(path: Path, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with _open(path, newline="") as file:
        for number, row in enumerate(
            csv.DictReader(file, delimiter=delimiter, strict=True), start=1
        ):
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, row {number} has {'more' if None in row else 'fewer'} values than the "
                    f"header line has columns"
                )
            yield row


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    yield from _csv(path, "\t")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{path} is read with `pyarrow`, which is not installed: pip install pyarrow, or give "
            f"a .jsonl file"
        ) from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
