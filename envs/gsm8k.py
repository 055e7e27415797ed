"""GSM8K: grade-school maths word problems (Cobbe et al. 2021, arXiv:2110.14168).

The reward is 1 for a right final answer and 0 otherwise, compared by value with `math-verify`, so
that `18`, `$18.00` and `36/2` are all right where 18 is expected. Departures from the usual exact
match of what follows `####`: a `\\boxed{...}` answer counts too, and without either marker the last
number of the text is taken. The part `format` says whether a marker was
used.

The calculator annotations of the published solutions (`<<48/2=24>>`) are removed from the
demonstrations unless `annotations` is set: they were made for a model that calls a calculator.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from envs.jsonl import json_lines
from rlft.errors import ConfigError, DataError, did_you_mean
from rlft.types import Prompt, Task

HUB = "openai/gsm8k"
MARKER = "####"
BOXED = "\\boxed{"
TEMPLATE = (
    "{question}\n\nThink step by step, then write the final answer as a number on a line of its "
    "own, after ####."
)
COLUMNS = ("question", "answer")

MAX_CANDIDATE = 60
TAIL = 2_000
# A minus after a digit or a parenthesis subtracts: `10-5` ends in 5.
NUMBER = r"(?:(?<![0-9)])-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
ANSWER = re.compile(rf"(?P<top>{NUMBER})(?:\s*/\s*(?P<bottom>[1-9][0-9]*))?(?P<percent>\s*%)?")
# A number that goes on like this is a part of an unfinished calculation, not an answer.
CALCULATION = re.compile(r"\s*(?:[*^×·÷]|[-+/xX]\s*[0-9(])|[eE][-+]?[0-9]")
ANNOTATION = re.compile(r"<<[^<>\n]*>>")
REWRITES = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\times|\\cdot"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile("\u2212"), "-"),
    (re.compile(r"\\[!,]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?=[$%])"), ""),
    # Bold marks and currency signs, but not the power in 2**3.
    (re.compile(r"(?<![0-9)])\*\*|\*\*(?![0-9(])"), ""),
    (re.compile(r"(?<![0-9])[$€£]\s*"), ""),
)
"""What `plain` replaces, in this order."""


@dataclass(frozen=True)
class GSM8K:
    """GSM8K from the Hugging Face hub, or from local files.

    path, held_out_path: `.jsonl` or `.jsonl.gz` files with the columns `question` and `answer`, in
    place of the hub's train and test split; template: the prompt, with `{question}` in it; chat:
    make it a user message, else raw text; system: a system message before it, if any; limit,
    held_out_limit: take only the first so many rows; annotations: keep the calculator annotations
    in the demonstrations.
    """

    path: str | None = None
    held_out_path: str | None = None
    template: str = TEMPLATE
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    held_out_limit: int | None = None
    annotations: bool = False

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError(f"template={self.template!r} must contain {{question}}")
        if self.system is not None and not self.chat:
            raise ConfigError("system needs chat: true; put the text into template instead")
        for name in ("limit", "held_out_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or null for all rows")

    def train(self) -> Sequence[Task]:
        """The training problems, with the published solution as demonstration."""
        return self._tasks("train", self.path, self.limit)

    def held_out(self) -> Sequence[Task]:
        """The test problems. Raises `ConfigError` if `path` is set and `held_out_path` is not."""
        if self.path is not None and self.held_out_path is None:
            # Falling back to the hub would score a run on data that its own files may overlap.
            raise ConfigError(
                "path is set but held_out_path is not: name a file of held-out problems"
            )
        return self._tasks("test", self.held_out_path, self.held_out_limit)

    def answer(self, completion: str, task: Task) -> str | None:
        """What a completion answers, to count votes by: `18`, `18.0` and `36/2` vote together."""
        text, has_marker = candidate(completion)
        found = only_number(text) if has_marker else last_number(text)
        if found is None:
            return None
        number = Fraction(found.removesuffix("%"))
        return str(number / 100 if found.endswith("%") else number)

    def _tasks(self, split: str, path: str | None, limit: int | None) -> list[Task]:
        where = f"{HUB} ({split})" if path is None else path
        rows = hub_rows(split) if path is None else file_rows(Path(path).expanduser())
        tasks = [
            self._task(f"{split}-{i}", row, f"{where}, row {i + 1}")
            for i, row in enumerate(islice(rows, limit))
        ]
        if not tasks:
            raise DataError(f"{where} has no rows: expected one JSON object a line")
        return tasks

    def _task(self, task_id: str, row: Any, where: str) -> Task:
        question, answer = columns(row, where)
        target = final_answer(answer, where)
        demo = answer if self.annotations else ANNOTATION.sub("", answer)
        return Task(id=task_id, prompt=self._prompt(question), target=target, demos=(demo,))

    def _prompt(self, question: str) -> Prompt:
        # Not str.format: a question or a template may hold other braces.
        text = self.template.replace("{question}", question)
        if not self.chat:
            return text
        user = {"role": "user", "content": text}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


def hub_rows(split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a split of `openai/gsm8k`. Raises DataError if the hub does not give them."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{HUB} is read with `datasets`, which is not installed: pip install datasets, or set "
            "path and held_out_path to local .jsonl files"
        ) from error
    try:
        return load_dataset(HUB, "main", split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the Hugging Face hub did not give {HUB} ({type(error).__name__}: {error}). Without a "
            "network, set path and held_out_path to local .jsonl or .jsonl.gz files"
        ) from error


def file_rows(path: Path) -> Iterator[Any]:
    """The JSON value of each line of a `.jsonl` or `.jsonl.gz` file; blank lines are left out."""
    if not path.is_file():
        near = did_you_mean(path.name, (f.name for f in path.parent.glob("*")))
        raise DataError(f"{path} is not a file.{near} Expected a .jsonl or .jsonl.gz file")
    try:
        yield from json_lines(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def columns(row: Any, where: str) -> tuple[str, str]:
    """(question, answer) of a row. Raises DataError that names the row and the columns found."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is a {type(row).__name__}, expected an object with {COLUMNS}")
    for name in COLUMNS:
        if name not in row:
            raise DataError(
                f"{where} has no column {name!r}. Found: {', '.join(map(repr, row)) or 'none'}."
                f"{did_you_mean(name, map(str, row))}"
            )
        if not isinstance(row[name], str):
            raise DataError(f"{where}: {name!r} is a {type(row[name]).__name__}, expected a string")
    return row["question"], row["answer"]


def final_answer(solution: str, where: str) -> str:
    """What follows `####`, without commas. Raises DataError if that is not a number."""
    _, found, text = solution.rpartition(MARKER)
    target = text.strip().replace(",", "")
    if not found or not re.fullmatch(NUMBER, target) or len(target) > MAX_CANDIDATE:
        raise DataError(
            f"{where}: 'answer' must end in `#### <number>`, got {solution[-MAX_CANDIDATE:]!r}"
        )
    return target


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward` and `answer`: 1.0 if the final answer equals the target.

    `format`, for information only: 1.0 if a marker (`####` or a box) announces a number.
    """
    text, has_marker = candidate(completion)
    found = only_number(text) if has_marker else last_number(text)
    answer = float(found is not None and equal(task.target, found))
    return {
        "reward": answer,
        "answer": answer,
        "format": float(has_marker and found is not None),
    }


def candidate(completion: str) -> tuple[str, bool]:
    """(text that holds the answer, whether a marker announced it).

    After the last `####` the rest of its line, after a later `\\boxed{` the rest up to the
    matching brace, each cut at 60 characters; without a marker, the end of the completion.
    """
    hashes, boxed = completion.rfind(MARKER), completion.rfind(BOXED)
    if max(hashes, boxed) < 0:
        return completion[-TAIL:], False
    if hashes > boxed:
        start = hashes + len(MARKER)
        return completion[start : start + MAX_CANDIDATE].lstrip().partition("\n")[0], True
    start = boxed + len(BOXED)
    text, depth = completion[start : start + MAX_CANDIDATE], 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i], True
    return text, True


def plain(text: str) -> str:
    """The text with `\\frac{a}{b}` as a/b, and without currency, bold marks and LaTeX spacing."""
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text


def only_number(text: str) -> str | None:
    """The first number after the last `=`; None if there is none, or if a calculation goes on."""
    text = plain(text.rpartition("=")[2])
    match = ANSWER.search(text)
    if match is None or CALCULATION.match(text, match.end()):
        return None
    return normal(match)


def last_number(text: str) -> str | None:
    """The last number of a text; None if there is none."""
    matches = list(ANSWER.finditer(plain(text)))
    return normal(matches[-1]) if matches else None


def normal(match: re.Match[str]) -> str | None:
    """A number as `-1250`, `0.5`, `3/4` or `12%`; None if it is longer than 60 characters."""
    top, bottom = match["top"].replace(",", ""), match["bottom"]
    text = (f"{top}/{bottom}" if bottom else top) + ("%" if match["percent"] else "")
    return text if len(text) <= MAX_CANDIDATE else None


def equal(target: str, found: str) -> bool:
    """Whether two numbers have the same value, by `math-verify`.

    `math-verify` guards itself against endless evaluation (`9^{9^{9}}`) with signals, which work in
    the main thread only, and rewards do not run there. So its timeouts are off, and it is given
    nothing that takes long: never model output as such, only a number, a fraction or a percentage
    of at most 60 characters that `normal` has put together.
    """
    from math_verify import ExprExtractionConfig, parse, verify

    # It warns, once a process, that its timeouts are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold, answer = (
        parse(text, [ExprExtractionConfig()], parsing_timeout=None) for text in (target, found)
    )
    return bool(verify(gold, answer, timeout_seconds=None))
