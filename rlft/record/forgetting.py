"""The report's part on forgetting: what the probes of a run say, as curves and as a table. Pure.

The table's column `change` is the backward transfer of each number, its end less its start. Forward
transfer needs a run from scratch beside it: `probes.scratch`, or `rlft forgetting RUN --scratch RUN`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rlft.errors import ConfigError, did_you_mean
from rlft.record.charts import Chart, drawn
from rlft.record.metrics import JsonLines
from rlft.record.transfer import area, backward_transfer, forward_transfer

Row = Mapping[str, Any]


def probe_charts(rows: Sequence[Row]) -> list[Chart]:
    """One chart a probe."""
    return [
        drawn(f"Probe: {probe}", "of the policy after so many steps", names, rows)
        for probe, names in _by_probe(rows).items()
    ]


def forgetting_html(
    rows: Sequence[Row], scratch: Sequence[Row] | None = None, whose: Path | None = None
) -> Iterator[str]:
    """The table, and which probes failed. scratch: the probes of a run from nothing; whose: its folder."""
    if not rows:
        return
    yield "<h2>Forgetting</h2>"
    yield '<table class="numbers"><tr><th>number</th><th>start</th><th>least</th><th>largest</th>'
    gained = {} if scratch is None else _gained(rows, scratch)
    more = "<th>forward transfer</th>" if gained else ""
    yield f"<th>end</th><th>change</th>{more}</tr>"
    for names in _by_probe(rows).values():
        for name in names:
            y = curve(rows, name)[1]
            cells = (y[0], y.min(), y.max(), y[-1])
            shown = "".join(f"<td>{x:.3f}</td>" for x in cells)
            if gained:
                more = f"<td>{gained[name]:+.3f}</td>" if name in gained else "<td></td>"
            yield f"<tr><td>{escape(name)}</td>{shown}"
            yield f"<td>{backward_transfer(float(y[0]), float(y[-1])):+.3f}</td>{more}</tr>"
    yield "</table>"
    if scratch is not None and not gained:
        lacks = "success probed up to the same step" if scratch else "probes.jsonl here"
        yield f'<p class="note">No forward transfer: {escape(str(whose))} has no {lacks}.</p>'
    for row in rows:
        if "failed" in row:
            yield f'<p class="note">step {row["step"]} failed: {escape(str(row["failed"]))}</p>'


def _gained(rows: Sequence[Row], scratch: Sequence[Row]) -> dict[str, float]:
    """The forward transfer of each success that both were probed for, up to the same step."""
    found = {}
    for names in _by_probe(rows).values():
        for name in names:
            if name.rpartition("/")[2] != "success" and "/stage_" not in name:
                continue
            both = _areas(rows, scratch, name)
            if not isinstance(both, str):
                found[name] = forward_transfer(*both)
    return found


def _areas(rows: Sequence[Row], scratch: Sequence[Row], name: str) -> tuple[float, float] | str:
    """The areas below the curve of a success with and without a start; or why they do not compare."""
    (steps, values), (others, theirs) = (curve(some, name) for some in (rows, scratch))
    if not len(steps) or not len(others):
        return f"{'the run' if not len(steps) else 'the other'} has no {name} in its probes.jsonl"
    if steps[-1] != others[-1]:
        return (
            f"the run was probed up to step {steps[-1]}, the other up to step {others[-1]}; areas are "
            f"compared over equal training, so train the shorter one further"
        )
    found = area(steps, values), area(others, theirs)
    if not 0 <= min(found) <= max(found) <= 1:
        return f"{name} is no success: its areas are {found[0]:.3f} and {found[1]:.3f}"
    return found


def curve(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a number. A `stage_k` that no episode reached is 0; other gaps are left out, such
    as a step at which every episode of the probe failed."""
    probe, _, last = name.rpartition("/")
    stage = last.startswith("stage_")
    points = [
        (row["step"], float(row.get(name, 0.0)))
        for row in rows
        if isinstance(row.get(name), int | float) or (stage and _measured(row, probe))
    ]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


def _measured(row: Row, probe: str) -> bool:
    """Whether a row says more of a probe than that its episodes failed."""
    nothing = (f"{probe}/failed", f"{probe}/unreachable")
    return any(key.startswith(f"{probe}/") and key not in nothing for key in row)


def lines(folder: Path, metric: str | None, scratch: Path | None) -> Iterator[str]:
    """What `rlft forgetting` prints of a run. Raises ConfigError: no probes, or no such number."""
    rows = _rows(folder)
    names = [name for found in _by_probe(rows).values() for name in found]
    yield f"{'':32}{'start':>10}{'least':>10}{'end':>10}{'backward':>10}"
    for name in names:
        y = curve(rows, name)[1]
        yield f"{name:32}{y[0]:>10.3f}{y.min():>10.3f}{y[-1]:>10.3f}{y[-1] - y[0]:>+10.3f}"
    if scratch is None:
        return
    if metric is None or metric not in names:
        raise ConfigError(
            f"--scratch needs --metric, a success in [0, 1] of the task; got {metric!r}."
            f"{did_you_mean(str(metric), names)} There are: {', '.join(names)}"
        )
    both = _areas(rows, _rows(scratch), metric)
    if isinstance(both, str):
        raise ConfigError(f"{folder} --scratch {scratch}: {both}")
    gained, (ours, theirs) = forward_transfer(*both), both
    yield f"forward transfer of {metric}: {gained:.3f} (area {ours:.3f}, from scratch {theirs:.3f})"


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = JsonLines(folder / "probes.jsonl").rows()
    if not rows:
        raise ConfigError(
            f"{folder} has no probes.jsonl with a row; name probes in the run's configuration, `probes.fns`"
        )
    return rows


def _by_probe(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Names of numbers by probe, in order."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            probe, slash, _ = name.partition("/")
            if slash and probe != "time" and isinstance(value, int | float):
                found.setdefault(probe, set()).add(name)
    return {probe: sorted(names) for probe, names in found.items()}
