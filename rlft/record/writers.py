"""Trackers (TensorBoard, W&B, MLflow) behind one small interface, each on a thread of its own.

A tracker gets the rows that `metrics.jsonl` and `eval.jsonl` get. It may be slow or fail, a network
may: then its rows are counted and it is said once, and the run goes on. The files have everything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlft.config import Config
from rlft.errors import ResourceError
from rlft.record.settings import Record

_QUEUED = 10_000
"""Rows that wait for a tracker; further ones are lost to it, and counted."""

_CLOSE_S = 30.0
"""How long the end of a run waits for its trackers, all together."""

_NEEDS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
"""Of each tracker: the module it needs, and the package that has it."""


class Tracker(Protocol):
    """What a tracker does. All three may be slow and may raise; they run on one thread."""

    def open(self, first_step: int) -> None:
        """Starts, or continues after `first_step - 1` steps."""
        ...

    def log(self, row: Mapping[str, float], step: int) -> None:
        """The finite numbers of a row."""
        ...

    def close(self, ok: bool) -> None:
        """Sends what is left; `ok`: whether the run ended well."""
        ...


def wanted(record: Record) -> list[str]:
    """Names of the trackers that are asked for."""
    return [name for name in _NEEDS if getattr(record, name)]


def check_writers(cfg: Config) -> None:
    """Raises ResourceError for a tracker whose package is not installed, saying what to install."""
    for name in wanted(cfg.record):
        module, package = _NEEDS[name]
        if not importlib.util.find_spec(module):
            raise ResourceError(
                f"record.{name} is asked for, but the package {package!r} is not installed: "
                f"pip install {package}, or remove record.{name}"
            )
    if cfg.record.report and not importlib.util.find_spec("plotly"):
        raise ResourceError(
            "report.html is drawn with plotly, which is not installed: pip install plotly, or set "
            "record.report=false"
        )


def trackers(cfg: Config, folder: Path) -> dict[str, Tracker]:
    """The trackers that are asked for, by name; nothing is opened yet."""
    from rlft.record.trackers import MlflowRun, TensorBoard, WandbRun

    makers: dict[str, Callable[[Config, Path], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WandbRun,
        "mlflow": MlflowRun,
    }
    return {name: makers[name](cfg, folder) for name in wanted(cfg.record)}


class Writers:
    """Every tracker of a run. `log` never waits and never raises.

    complain: told once of each tracker that fails, from its thread: (its name, a sentence).
    """

    def __init__(
        self,
        found: Mapping[str, Tracker],
        complain: Callable[[str, str], None],
        close_s: float = _CLOSE_S,
    ) -> None:
        self._close_s = close_s
        self._threads = [_Thread(name, tracker, complain) for name, tracker in found.items()]

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Hands the numbers of a row to every tracker."""
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        finite = {k: v for k, v in numbers.items() if v - v == 0}
        for thread in self._threads:
            thread.put(finite, step)

    def close(self, ok: bool) -> list[str]:
        """Waits a bounded time for what is queued; returns a sentence for each tracker with losses."""
        for thread in self._threads:
            thread.end(ok)
        deadline = time.monotonic() + self._close_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [text for thread in self._threads if (text := thread.losses())]


class _Thread:
    """One tracker on its daemon thread, which starts with its first row."""

    def __init__(self, name: str, tracker: Tracker, complain: Callable[[str, str], None]) -> None:
        self._name, self._tracker, self._complain = name, tracker, complain
        self._rows: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(_QUEUED)
        self._thread: threading.Thread | None = None
        self._given = self._written = 0
        self._closed = self._complained = False
        self._ok = True

    def put(self, row: Mapping[str, float], step: int) -> None:
        self._given += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        try:
            self._rows.put_nowait((row, step))
        except queue.Full:
            self._failed("it is too slow, and its queue is full")

    def end(self, ok: bool) -> None:
        self._ok = ok
        with contextlib.suppress(queue.Full):  # what is lost is counted by `losses`
            self._rows.put_nowait(None)

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)
            self._closed = not self._thread.is_alive()

    def losses(self) -> str:
        """A sentence if rows did not arrive."""
        lost = self._given - self._written
        late = self._thread is not None and not self._closed
        if not (lost or late):
            return ""
        why = "it did not end in time" if late else "it failed"
        return f"{self._name}: {lost} of {self._given} rows were not written ({why})"

    def _work(self) -> None:
        is_open = False
        while (item := self._rows.get()) is not None:
            row, step = item
            try:
                if not is_open:
                    self._tracker.open(step)
                    is_open = True
                self._tracker.log(row, step)
                self._written += 1
            except Exception as error:  # the boundary: a tracker's failure is not the run's
                self._failed(f"{type(error).__name__}: {error}")
        if is_open:
            try:
                self._tracker.close(self._ok)
            except Exception as error:
                self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            lines = why.strip().splitlines() or ["no reason given"]
            self._complain(self._name, f"{lines[0]}; the run goes on, and its files have every row")
