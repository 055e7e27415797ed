"""`rlft reward test`: a reward on rows of a file, exactly as a run would call it, without a model.

The same process, limits, environment and outcomes as in a run; what is scored is the column
`completion` of the rows, or without one the target itself, to which a reward should give full marks.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from rlft.config import parse_rewards
from rlft.errors import ConfigError, DataError, PluginError
from rlft.types import Attempt, Outcome, Task

app = typer.Typer(no_args_is_help=True, help="Try rewards without a run.")

_SHOWN_ERRORS = 3
_SLOWEST = 3
_HEAD = 60
"""Characters of a completion in the list of the slowest."""


@app.callback()
def group() -> None:
    """Try rewards without a run."""


@app.command("test")
def on_rows(
    fn: Annotated[str, typer.Argument(help="file.py:attr, module:attr or a short name")],
    data: Annotated[Path, typer.Option(help="rows: .jsonl, .json, .csv, .tsv or .parquet")],
    timeout: Annotated[float, typer.Option(help="seconds for a completion")] = 10.0,
    arg: Annotated[
        list[str] | None, typer.Option(help="key=value, an argument of the reward")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the section `rewards`, e.g. memory_gb=8"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="column of the prompt")] = "prompt",
    target: Annotated[str, typer.Option(help="column of the target; empty: none")] = "target",
    completion: Annotated[str, typer.Option(help="column of what is scored")] = "completion",
    limit: Annotated[int | None, typer.Option(help="the first so many rows")] = None,
    start: Annotated[float, typer.Option(help="seconds for the import")] = 120.0,
) -> None:
    """Run a reward on rows of a file, as a run would; exit code 2 if it cannot be used or a call failed."""
    from rlft import registry
    from rlft.rewards.scorer import Scorer

    keys = {"fns": [{"fn": fn, "args": _pairs(arg)}], "timeout": timeout, **_pairs(set_)}
    rewards = parse_rewards(keys)
    columns = {"prompt": prompt, "target": target or None, "limit": limit}
    tasks = registry.build("env", {"name": "jsonl", "path": str(data), **columns}).train()
    found = any(completion in task.info for task in tasks)
    attempts = attempts_of(tasks, completion if found else None, data)
    scorer = Scorer(rewards, [str(Path.cwd())], start)
    try:
        scorer.start()
        scored = scorer.score([pickle.dumps(pair) for pair in zip(attempts, tasks, strict=True)])
    finally:
        scorer.close()
    out = Console(soft_wrap=True, highlight=False, emoji=False, markup=False)
    if not found and completion != target:
        out.print(f"{data} has no column {completion!r}: the targets themselves were scored")
    report(out, attempts, scored.outcomes, scored.restarts, scored.printed)
    failed = sum(o.kind == "error" for o in scored.outcomes)
    if failed:
        raise PluginError(
            f"{failed} of {len(attempts)} calls of {fn} failed; correct it, or raise rlft.Invalid for "
            f"what cannot be judged. In a run such answers are left out, never counted as 0."
        )


def attempts_of(tasks: Sequence[Task], column: str | None, data: Path) -> list[Attempt]:
    """What is scored for each row: its `column`, None: its target. Raises DataError if it has none."""
    made = []
    for number, task in enumerate(tasks, start=1):
        text = task.target if column is None else task.info.get(column)
        if text is None:
            raise DataError(
                f"{data}, row {number} has no {column or 'completion and no target'}: there is nothing to "
                f"score. Name the column with --completion"
            )
        prompt = task.prompt
        before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        messages = (*before, {"role": "assistant", "content": str(text)})
        made.append(Attempt(task.id, "policy", str(text), messages))
    return made


def report(
    out: Console,
    attempts: Sequence[Attempt],
    outcomes: Sequence[Outcome],
    restarts: int,
    printed: str,
) -> None:
    """Prints outcomes, parts, latency, reasons of invalid answers, first errors and slowest answers."""
    out.print(_kinds(outcomes))
    import numpy as np  # here: naming a command must not import it

    seconds = [o.seconds for o in outcomes]
    p50, p99 = np.percentile(seconds, [50, 99])
    out.print(
        f"\nlatency: p50 {_time(p50)}, p99 {_time(p99)}, longest {_time(max(seconds))}; "
        f"{restarts} process{'es' * (restarts != 1)} replaced"
    )
    for place in sorted(range(len(seconds)), key=lambda i: -seconds[i])[:_SLOWEST]:
        text = attempts[place].text
        shown = repr(text[:_HEAD]) + (f" (of {len(text)} characters)" if len(text) > _HEAD else "")
        out.print(f"  {_time(seconds[place])}  row {attempts[place].id}  {shown}")
    reasons = Counter(o.reason for o in outcomes if o.kind == "invalid")
    if reasons:
        out.print("\ninvalid, by reason:")
        for reason, count in reasons.most_common(10):
            out.print(f"  {count}  {reason}")
    first: dict[str, tuple[str, int]] = {}
    for attempt, outcome in zip(attempts, outcomes, strict=True):
        if outcome.kind == "error":
            first.setdefault(outcome.reason, (attempt.id, len(first)))
    for reason, (row, _) in list(first.items())[:_SHOWN_ERRORS]:
        out.print(f"\nrow {row} failed: {reason.strip()}")
    if printed.strip():
        out.print(f"\nit printed last:\n{printed[-1000:].strip()}")


def _kinds(outcomes: Sequence[Outcome]) -> Table:
    table = Table("outcome", "rows", "share", "reward", box=None, pad_edge=False)
    groups = {
        "value": [o for o in outcomes if o.kind == "value"],
        "invalid": [o for o in outcomes if o.kind == "invalid"],
        "error": [o for o in outcomes if o.fault == "raised"],
        "timeout": [o for o in outcomes if o.fault == "timeout"],
        "died": [o for o in outcomes if o.fault == "died"],
    }
    for name, those in groups.items():
        rewards = [o.reward for o in those if o.reward is not None]
        table.add_row(name, str(len(those)), f"{len(those) / len(outcomes):.0%}", _spread(rewards))
    parts: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.parts.items():
            parts.setdefault(name, []).append(value)
    for name, values in parts.items():
        table.add_row(f"  {name}", str(len(values)), "", _spread(values))
    return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{math.fsum(values) / len(values):.3f} (from {min(values):g} to {max(values):g})"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.2f} ms"


def _pairs(given: Sequence[str] | None) -> dict[str, Any]:
    """`key=value` words as a mapping, values read as YAML. Raises ConfigError."""
    found: dict[str, Any] = {}
    for word in given or ():
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r}: expected key=value, e.g. limit=10")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word!r}: not a YAML value: {error}") from None
    return found
