"""`rlft compare`: runs of any method side by side, on the axes that cost something. Pure but for reading.

A metric against what was spent up to then: tokens sampled, tokens trained on, seconds of steps, and answers
scored. Each is summed over the rows of `metrics.jsonl`; a resumed run drops the rows that it takes again,
so nothing counts twice. Evaluations cost nothing here. Runs that differ in the seed alone are one line.
"""

from __future__ import annotations

import html
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlft.errors import ConfigError, did_you_mean
from rlft.record.charts import COLOURS, Chart
from rlft.record.report import RunFiles, html_page, read_run

AXES = {
    "tokens/sampled": "sampled tokens",
    "tokens/trained": "trained tokens",
    "time/step_s": "seconds of steps",
    "reward/calls": "answers scored",
}
"""Metrics of a step that add up to a cost, and what the sum is called."""

_USUAL = ("eval/reward/mean", "reward/mean", "loss/nll")
_NOT_THE_METHOD = (
    *("seed", "run_root", "warm_start", "record", "probes", "cluster", "deadlines", "recovery"),
)
JOIN = "+"


@dataclass(frozen=True, slots=True)
class Point:
    """The metric after a step, and what was spent until then, by axis; an axis that the run did not
    write down is missing."""

    step: int
    value: float
    spent: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A run, or several of which each began where the one before ended."""

    name: str
    folder: Path
    method: str
    points: tuple[Point, ...]
    total: Mapping[str, float]

    def at(self, axis: str, budget: float) -> float | None:
        """The metric when at most `budget` was spent; None before the first value."""
        found = [p.value for p in self.points if p.spent.get(axis, 0.0) <= budget]
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Line:
    """A method: its runs, which differ in the seed."""

    label: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """metric: what is compared; budgets: by axis, what every line that spends any has spent; warnings:
    sentences about what is not comparable."""

    metric: str
    lines: tuple[Line, ...]
    budgets: Mapping[str, float]
    warnings: tuple[str, ...]


def compare(targets: Sequence[str], metric: str | None = None) -> Comparison:
    """Reads the runs. A target is a run folder, or several joined by `+`: what the first ones spent is
    counted before the last, whose metric is shown.

    Raises ConfigError: a folder that is no run, a run without a step, no common metric.
    """
    chains = [[_run(Path(part)) for part in target.split(JOIN)] for target in targets]
    chosen = _metric([chain[-1] for chain in chains], metric)
    curves = [_curve(chain, chosen) for chain in chains]
    lines = _lines(curves)
    budgets = {}
    for axis in AXES:
        spent = [c.total.get(axis, 0.0) for c in curves]
        if any(spent):
            budgets[axis] = min(s for s in spent if s)
    envs = {json.dumps(chain[-1].config["env"], sort_keys=True, default=str) for chain in chains}
    warnings = [f"the runs have {len(envs)} different environments or keys of them"] * (
        len(envs) > 1
    )
    for axis, what in AXES.items():
        silent = sorted({c.name for c in curves if axis not in c.total})
        if silent:
            warnings.append(f"no {what} in {', '.join(silent)}: an earlier version wrote them")
    return Comparison(chosen, tuple(lines), budgets, tuple(warnings))


def _run(folder: Path) -> RunFiles:
    run = read_run(folder.expanduser())
    if not run.metrics:
        raise ConfigError(f"{folder} has no step yet: there is nothing to compare")
    return run


def _known(run: RunFiles) -> set[str]:
    return {k for row in (*run.metrics, *run.evals) for k, v in row.items() if _number(v)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(runs: Sequence[RunFiles], asked: str | None) -> str:
    common = set.intersection(*map(_known, runs)) - {"step", "version"}
    if asked is None:
        found = next((name for name in _USUAL if name in common), None)
        if found is None:
            raise ConfigError(
                f"the runs have none of {', '.join(_USUAL)} in common. All have: "
                f"{', '.join(sorted(common)) or 'nothing'}; name one with --metric"
            )
        return found
    for run in runs:
        if asked not in _known(run):
            raise ConfigError(
                f"{run.folder} has no metric {asked!r}.{did_you_mean(asked, _known(run))} All runs have: "
                f"{', '.join(sorted(common)) or 'nothing in common'}"
            )
    return asked


def _curve(chain: Sequence[RunFiles], metric: str) -> Curve:
    *before, run = chain
    start = _sum(_total(r) for r in before)
    spent = {0: start} if before else {0: dict.fromkeys(_total(run), 0.0)}
    for row in run.metrics:
        step = {axis: float(row[axis]) for axis in AXES if _number(row.get(axis))}
        last = spent[max(spent)]
        spent[int(row["step"])] = {a: last[a] + step.get(a, 0.0) for a in last}
    rows = run.evals if any(_number(r.get(metric)) for r in run.evals) else run.metrics
    points = [
        Point(int(r["step"]), float(r[metric]), spent[int(r["step"])])
        for r in rows
        if _number(r.get(metric)) and int(r["step"]) in spent
    ]
    config = dict(run.config)
    kept = {k: v for k, v in config.items() if k not in _NOT_THE_METHOD}
    kept["model"] = {k: v for k, v in dict(kept.get("model") or {}).items() if k != "path"}
    if isinstance(kept.get("algo"), dict):  # where a run's rows lie is not its method
        kept["algo"] = {k: v for k, v in kept["algo"].items() if k not in ("rows", "combine")}
    method = json.dumps(kept, sort_keys=True, default=str) + str(len(chain))
    return Curve(str(config["name"]), run.folder, method, tuple(points), spent[max(spent)])


def _total(run: RunFiles) -> dict[str, float]:
    """What a run spent, by the axes that it wrote down."""
    written = [axis for axis in AXES if any(_number(row.get(axis)) for row in run.metrics)]
    return {a: sum(float(row.get(a) or 0.0) for row in run.metrics) for a in written}


def _sum(totals: Iterable[Mapping[str, float]]) -> dict[str, float]:
    whole: dict[str, float] = {}
    for total in totals:
        for axis, value in total.items():
            whole[axis] = whole.get(axis, 0.0) + value
    return whole


def _lines(curves: Sequence[Curve]) -> list[Line]:
    methods: dict[str, list[Curve]] = {}
    for curve in curves:
        methods.setdefault(curve.method, []).append(curve)
    names = [group[0].name for group in methods.values()]
    return [
        Line(name if names.count(name) == 1 else f"{name} ({group[0].folder.name})", tuple(group))
        for name, group in zip(names, methods.values(), strict=True)
    ]


# -- tables --------------------------------------------------------------------------------------


def totals(found: Comparison) -> list[list[str]]:
    """What came out and what it cost, heading first."""
    head = ["run", "seeds", "steps", f"{found.metric}: first", "last", "best", *AXES.values()]
    rows = [head]
    for line in found.lines:
        curves = line.curves
        costs = [_spread([c.total[a] for c in curves if a in c.total], _count) for a in AXES]
        values: list[Callable[[Curve], float | None]] = [
            lambda c: c.points[0].value if c.points else None,
            lambda c: c.points[-1].value if c.points else None,
            lambda c: _best(c, found.metric),
        ]
        figures = [_spread([v for c in curves if (v := f(c)) is not None], _value) for f in values]
        steps = max((c.points[-1].step for c in curves if c.points), default=0)
        rows.append([line.label, str(len(curves)), str(steps), *figures, *costs])
    return rows


def at_equal_cost(found: Comparison) -> list[list[str]]:
    """The metric of each line when as much was spent as every line spends, axis by axis."""
    head = [f"{found.metric} at", *(f"{_count(b)} {AXES[a]}" for a, b in found.budgets.items())]
    rows = [head]
    for line in found.lines:
        cells = [line.label]
        for axis, budget in found.budgets.items():
            spends = [c for c in line.curves if c.total.get(axis)]
            values = [v for c in spends if (v := c.at(axis, budget)) is not None]
            cells.append(_spread(values, _value))
        rows.append(cells)
    return rows


def _best(curve: Curve, metric: str) -> float | None:
    values = [p.value for p in curve.points]
    if not values:
        return None
    return min(values) if metric.startswith("loss/") else max(values)


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    if not values:
        return "-"
    low, high, mean = shown(min(values)), shown(max(values)), shown(statistics.fmean(values))
    return mean if low == high else f"{mean} [{low}, {high}]"


def _value(number: float) -> str:
    return f"{number:.3f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a page."""
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal."""
    head, *rest = rows
    shown = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rest:
        shown.add_row(*row)
    return shown


_MANY = 6
"""Runs from which on each chart has the page's whole width, with the names beside it."""

_DASHES = ("solid", "dash", "dot")
"""Lines of one colour are told apart by these."""


# -- the page ------------------------------------------------------------------------------------


def write_page(found: Comparison, path: Path) -> None:
    """The tables and a chart for each axis, in one file that opens offline."""
    drawn = [_chart(found, axis) for axis in AXES if axis in found.budgets]
    names = ", ".join(line.label for line in found.lines)
    body = [f"<h1>{html.escape(found.metric)}</h1>", f'<p class="soft">{html.escape(names)}</p>']
    body += [f'<p class="note">{html.escape(w)}</p>' for w in found.warnings]
    body += [_table(totals(found)), _table(at_equal_cost(found))]
    path.write_text(html_page(f"compare {found.metric}", body, drawn), "utf-8")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    cells = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rest)
    return f'<table class="compare"><tr>{cells}</tr>{body}</table>'


def _chart(found: Comparison, axis: str) -> Chart:
    traces: list[dict[str, Any]] = []
    for line, (dash, colour) in zip(
        found.lines, itertools.cycle(itertools.product(_DASHES, COLOURS))
    ):
        for place, curve in enumerate(c for c in line.curves if c.total.get(axis)):
            trace: dict[str, Any] = {
                "x": [p.spent[axis] for p in curve.points],
                "y": [p.value for p in curve.points],
                # plotly reads a little HTML in names, so names are escaped for it.
                "name": html.escape(line.label),
                "legendgroup": html.escape(line.label),
                "showlegend": place == 0,
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2, "dash": dash},
                "marker": {"size": 5},
                "hovertemplate": "%{y:.4g}",
            }
            traces.append(trace)
    layout: dict[str, Any] = {"xaxis": {"title": {"text": AXES[axis], "standoff": 4}}}
    layout["hovermode"] = "closest"
    many = len(found.lines) > _MANY
    if many:  # below the chart the names would take more room than the curves
        legend = {"orientation": "v", "x": 1.01, "y": 1, "font": {"size": 11}}
        layout |= {"legend": legend, "height": max(320, 60 + 29 * len(found.lines))}
    return Chart(f"By {AXES[axis]}", "a curve for each run", traces, layout, wide=many)
