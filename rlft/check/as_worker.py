"""Plug-ins as a worker gets them: in a process of its own, resolved by name or unpickled, and tried.

`in_worker` starts that process, which runs this file. It is killed when it stays
at one thing too long, so a reward that hangs, forks or prints without end harms nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config
from rlft.errors import DataError, PluginError, UserError, did_you_mean
from rlft.types import Attempt, Task

PATIENCE_S = 40.0
"""For each thing that the worker does: importing a plug-in, scoring one answer."""

_STARTING_S = 120.0
"""For Python and this package to come up, of which a plug-in is not guilty: 3 s, on a busy machine many
times that."""


def in_worker(cfg: Config, algo: Algo, tasks: Sequence[Task]) -> list[str]:
    """Resolves what workers resolve, and scores each task's demonstration and an empty answer.

    Returns a line about the rewards. Raises PluginError, or DataError for a reward that the tasks do
    not suit.
    """
    import ray

    job = ray.cloudpickle.dumps((cfg, tuple(algo.terms), list(tasks)))
    with tempfile.TemporaryDirectory(prefix="rlft-check-") as folder:
        (Path(folder) / "job").write_bytes(job)
        _run(Path(folder))
        answer = json.loads((Path(folder) / "answer").read_text())
    if answer["kind"] == "plugin":
        raise PluginError(f"in a worker's process: {answer['text']}")
    if answer["kind"] == "data":
        raise DataError(answer["text"])
    return answer["lines"]


def _run(folder: Path) -> None:
    here = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    here.append(str(Path(registry.__file__).parents[1]))  # the rlft that asks, last
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "1"}
    noise = subprocess.DEVNULL
    with open(folder / "errors", "wb") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "rlft.check.as_worker", str(folder)],
            env=env,
            stdin=noise,
            stdout=noise,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _wait(worker, folder / "at")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # and what a plug-in started
            worker.wait()
    if not (folder / "answer").exists():
        said = (folder / "errors").read_text(errors="replace")[-2000:]
        raise PluginError(
            f"in a worker's process: it ended with code {worker.returncode} before it was done.\n{said}"
        )


def _wait(worker: subprocess.Popen, at: Path) -> None:
    """Returns when the worker has ended; raises PluginError when it stays at one thing too long."""
    what, since, limit = "starting", time.monotonic(), _STARTING_S
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(0.1)
            return
        now = at.read_text() if at.exists() else what
        if now != what:
            what, since, limit = now, time.monotonic(), PATIENCE_S
        elif time.monotonic() - since > limit:
            raise PluginError(
                f"in a worker's process: {what} took more than {limit:g} s. Give a call to a "
                f"service a timeout of its own, and look for a loop"
            )


# -- in the worker --------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Does the job in `folder` and writes the answer there."""
    try:
        cfg, _terms, tasks = pickle.loads((folder / "job").read_bytes())
        _note(folder, "resolving the engine and the transport")
        registry.resolve("engine", cfg.sampler.engine)
        registry.resolve("transport", cfg.publish.transport)
        lines = [*rewards(cfg, tasks, folder), *turns(cfg, tasks, folder)]
        answer = {"kind": "fine", "lines": lines}
    except DataError as error:
        answer = {"kind": "data", "text": str(error)}
    except (UserError, ImportError, AttributeError) as error:
        answer = {"kind": "plugin", "text": str(error)}
    (folder / "answer.part").write_text(json.dumps(answer))
    os.replace(folder / "answer.part", folder / "answer")


def rewards(cfg: Config, tasks: Sequence[Task], folder: Path) -> Iterable[str]:
    """Scores each task's demonstration and an empty answer. Raises DataError for what a reward raises."""
    from rlft.rewards.functions import is_async
    from rlft.rewards.outcome import score_one

    for spec in cfg.rewards.fns:
        _note(folder, f"importing reward {spec.fn}")
        fn = registry.build("reward", {"name": spec.fn, **spec.args})
        _check_needs(spec.fn, fn, tasks)
        if is_async(fn):
            yield f"reward {spec.fn}: not tried, it waits for a model or a service"
            continue
        means = []
        for kind in ("demonstrations", "empty answers"):
            values = []
            for task in tasks:
                text = task_answer(task) if kind == "demonstrations" else ""
                if text is None:
                    continue
                _note(folder, f"reward {spec.fn} on task {task.id!r}")
                outcome = score_one([(spec.fn, fn, 1.0)], text, task, cfg.rewards.invalid_score)
                if outcome.kind == "error":
                    raise DataError(_failed(spec.fn, kind, text, task, outcome.reason))
                values.append(outcome.reward or 0.0)
            if values:
                means.append(f"{sum(values) / len(values):.2f} on {len(values)} {kind}")
        yield f"reward {spec.fn}: {', '.join(means) or 'not tried, there is no task'}"


def turns(cfg: Config, tasks: Sequence[Task], folder: Path) -> Iterable[str]:
    """Plays the first turn of each task with an environment that answers back: of its demonstration, and
    an empty one. Raises DataError for what the environment raises."""
    from rlft.rewards.dialogues import Dialogues
    from rlft.rewards.item import conversation
    from rlft.rewards.outcome import score_one
    from rlft.rewards.places import host

    if host(cfg) is None:
        return
    name = cfg.env if isinstance(cfg.env, str) else cfg.env["name"]
    _note(folder, f"making environment {name}")
    asked = Dialogues(cfg.env)
    asked.load()
    shown = 0
    for task in tasks:
        said = [d[0] for d in task.dialogues[:1]] or [*task.demos[:1]]
        for number, text in enumerate([*said, ""]):
            _note(folder, f"environment {name} on task {task.id!r}")
            messages = conversation(task.prompt, (text,), cfg.turns.role)
            attempt = Attempt(f"{task.id}.{number}", "policy", text, messages)
            outcome = score_one([(name, asked, 1.0)], attempt, task, 0.0)
            if outcome.kind == "error":
                raise DataError(
                    f"environment {name} fails on the turn {text[:80]!r} of task {task.id!r}, so it would "
                    f"fail in the run. {_columns(task)} Correct the environment.\n{outcome.reason}"
                )
            shown += 1
    yield f"environment {name}: answered {shown} first turns"


def task_answer(task: Task) -> str | None:
    """A right answer of a task as far as its data hold one: a demonstration, or a target of text."""
    if task.demos:
        return task.demos[0]
    return task.target if isinstance(task.target, str) else None


def _check_needs(name: str, fn: Any, tasks: Sequence[Task]) -> None:
    """A reward may declare what it reads: `reward.needs = ("target", "info.answer")`."""
    for need in getattr(getattr(fn, "func", fn), "needs", ()):
        field, _, column = need.partition(".")
        for task in tasks:
            held = getattr(task, field, None)
            if column and column not in (held or {}):
                near = did_you_mean(column, map(str, held or {}))
                raise DataError(
                    f"reward {name} needs task.{field}[{column!r}], and task {task.id!r} has none.{near} "
                    f"{_columns(task)}"
                )
            if not column and (held is None or held == ()):
                raise DataError(
                    f"reward {name} needs task.{field}, and task {task.id!r} has none. {_columns(task)}"
                )


def _failed(name: str, kind: str, text: str, task: Task, reason: str) -> str:
    what = f"{text[:80]!r}" if text else "an empty answer"
    return (
        f"reward {name} fails on {what} to task {task.id!r} (of the {kind}), so it would fail in the "
        f"run. {_columns(task)} Correct the reward, or the columns of the environment.\n{reason}"
    )


def _columns(task: Task) -> str:
    info: Mapping[str, Any] = task.info
    target = "no target" if task.target is None else f"a {type(task.target).__name__} as target"
    return (
        f"The task has {target}, {len(task.demos)} demonstrations, and in info: "
        f"{', '.join(map(str, info)) or 'nothing'}."
    )


def _note(folder: Path, what: str) -> None:
    (folder / "at").write_text(what)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
