"""From metric rows to charts, as the plain data that plotly draws. Pure.

Every metric of the run is in some chart: the known ones in the chart where one looks for them, the others
by the part of their name before the slash.
"""

from __future__ import annotations

import html
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

_POINTS = 1000
"""Longest curve; of a longer run each point is the mean of neighbours."""

_SMOOTH_FROM = 80
"""Curves with more points get a running mean over a twentieth of them."""

_MARKED_TO = 40
COLOURS = ("#1f6feb", "#d9730d", "#1a7f5a", "#a3378f", "#8a6d00", "#c0392b", "#3f4f8c", "#5b6770")
_PHASES = ("rollout", "reward", "learn", "publish")
_NOT_DRAWN = {"step", "version", "rows", "reward/std", "time/eval_s"}
"""Not curves of their own: `reward/std` is the band around the mean."""


@dataclass(frozen=True, slots=True)
class Chart:
    """title, note: text, not HTML; traces and layout: plotly's."""

    title: str
    note: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    wide: bool = False


@dataclass(frozen=True, slots=True)
class _Family:
    """Which metrics share a chart. log: a logarithmic axis."""

    title: str
    note: str
    holds: Callable[[str], bool]
    log: bool = False
    share: bool = False


def charts(metrics: Sequence[Row], evals: Sequence[Row], parts: Iterable[str]) -> list[Chart]:
    """The charts of a run in the order in which one reads them. parts: names of reward parts."""
    rewards = {"reward/mean", *(f"reward/{p}" for p in parts)}
    train = _names(metrics) - _NOT_DRAWN
    found = []
    for family in _families(rewards):
        names = sorted(n for n in train if family.holds(n))
        names.sort(key=lambda n: n != "reward/mean")
        train -= set(names)
        if names:
            found.append(_drawn(family, names, metrics))
    if reward := next((c for c in found if c.title == "Reward"), None):
        reward.traces[:0] = _spread(metrics)
    for prefix in sorted({_prefix(n) for n in train if not n.startswith("time/")}):
        names = sorted(n for n in train if _prefix(n) == prefix and not n.startswith("time/"))
        found.append(_drawn(_Family(f"Other: {prefix}", "", bool), names, metrics))
    held_out = sorted(n for n in _names(evals) if n.startswith("eval/reward/"))
    held_out.sort(key=lambda n: n != "eval/reward/mean")
    held_out = [n for n in held_out if n.rsplit("/", 1)[1] not in ("std", "invalid", "errors")]
    if held_out:
        note = "greedy answers to held-out tasks"
        found.insert(1 if reward else 0, _drawn(_Family("Held out", note, bool), held_out, evals))
    return [*found, *_time(metrics)]


def drawn(title: str, note: str, names: Sequence[str], rows: Sequence[Row]) -> Chart:
    """A chart of these numbers of `rows`, each of which has a `step`."""
    return _drawn(_Family(title, note, bool), names, rows)


def _families(rewards: set[str]) -> tuple[_Family, ...]:
    shares = {"groups/flat", "completion/truncated", "reward/invalid", "reward/errors"}
    return (
        _Family("Reward", "mean over the step's answers, with one deviation", rewards.__contains__),
        _Family("Losses", "each term before its coefficient", lambda n: n.startswith("loss/")),
        _Family("Entropy", "nats, mean over decisions", lambda n: n == "entropy"),
        _Family(
            "Engine against learner",
            "gap of their log-probs in nats: rising is trouble, steady is rounding",
            lambda n: n.endswith("_logp_gap") or n == "publish/canary_gap",
            log=True,
        ),
        _Family("KL from engine to learner", "nats", lambda n: n == "mismatch/kl", log=True),
        _Family("Length of answers", "tokens", lambda n: n == "completion/mean_tokens"),
        _Family(
            "Shares",
            "of groups or answers, and of decisions that are clipped",
            lambda n: n in shares or n.endswith(("_fraction", "_share")),
            share=True,
        ),
        _Family("Staleness", "updates between sampling and learning", lambda n: "staleness" in n),
        _Family("Gradient norm", "before clipping", lambda n: n == "grad_norm"),
        _Family("Learning rate", "", lambda n: n == "lr"),
        _Family("Importance", "probability ratios", lambda n: n in ("ratio", "is_weight")),
        _Family("Tokens of a step", "", lambda n: n.startswith("tokens/")),
    )


def _names(rows: Sequence[Row]) -> set[str]:
    """Metrics that have a number in some row."""
    return {k for row in rows for k, v in row.items() if isinstance(v, int | float)}


def _prefix(name: str) -> str:
    return name.split("/")[0] if "/" in name else "counts"


def _drawn(family: _Family, names: Sequence[str], rows: Sequence[Row]) -> Chart:
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        traces += _curve(name, rows, COLOURS[index % len(COLOURS)], smooth=name != "lr")
    axis: dict[str, Any] = {}
    values = [y for t in traces for y in t["y"]]
    low, high = min(values), max(values)
    if high - low <= 1e-9 * abs(high):  # plotly would draw a constant 0.001 on an axis from -1 to 1
        half = abs(high) / 2 or 1.0
        axis = {"range": [high - half, high + half]}
    elif family.log and low > 0 and (decades := math.log10(high / low)) > 2:
        axis = {"type": "log", "dtick": max(1, round(decades / 5))}
    axis["exponentformat"] = "SI" if high >= 1000 else "e"
    if family.share:
        axis = {"range": [-0.03, 1.03]}
    return Chart(family.title, family.note, traces, {"yaxis": axis, "xaxis": _steps_axis(traces)})


def _steps_axis(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whole numbers, also where there are few."""
    steps = {x for t in traces for x in t["x"]}
    if max(steps) - min(steps) > 10:
        return {}
    return {"dtick": 1, "range": [min(steps) - 0.5, max(steps) + 0.5]}


def _curve(
    name: str, rows: Sequence[Row], colour: str, smooth: bool = True
) -> list[dict[str, Any]]:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    xs, ys = binned([p[0] for p in points], [p[1] for p in points])
    line: dict[str, Any] = {
        "x": xs,
        "y": ys,
        # plotly reads a little HTML in names, so names are escaped for it.
        "name": html.escape(name),
        "mode": "lines+markers" if len(xs) <= _MARKED_TO else "lines",
        "line": {"color": colour, "width": 2},
        "marker": {"size": 5},
        "legendgroup": html.escape(name),
        "hovertemplate": "%{y:.4g}",
    }
    if not smooth or len(xs) < _SMOOTH_FROM:
        return [line]
    raw = {**line, "opacity": 0.3, "showlegend": False, "hoverinfo": "skip"}
    raw["line"] = {"color": colour, "width": 1}
    del raw["hovertemplate"]
    return [raw, {**line, "y": running_mean(ys, max(3, len(ys) // 20))}]


def _spread(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A band of one standard deviation around the mean reward."""
    known = [
        r for r in rows if r.get("reward/mean") is not None and r.get("reward/std") is not None
    ]
    steps = [r["step"] for r in known]
    xs, low = binned(steps, [r["reward/mean"] - r["reward/std"] for r in known])
    _, high = binned(steps, [r["reward/mean"] + r["reward/std"] for r in known])
    bare = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": "rgba(31,111,235,0.10)"}
    return [{**bare, "x": xs, "y": low}, {**bare, **fill, "x": xs, "y": high}]


def _time(rows: Sequence[Row]) -> list[Chart]:
    """Where each step's seconds went, stacked, and the speed."""
    timed = [r for r in rows if r.get("time/step_s")]
    if not timed:
        return []
    steps = [r["step"] for r in timed]
    phases = [p for p in _PHASES if any(r.get(f"time/{p}_s") for r in timed)]
    seconds = {p: [r.get(f"time/{p}_s") or 0.0 for r in timed] for p in phases}
    known = [sum(column) for column in zip(*seconds.values(), strict=True)] or [0.0] * len(timed)
    whole = [r["time/step_s"] for r in timed]
    seconds["the rest"] = [max(0.0, w - k) for w, k in zip(whole, known, strict=True)]
    stacked, total = [], sum(map(sum, seconds.values()))
    for index, (phase, values) in enumerate(seconds.items()):
        xs, ys = binned(steps, values, 300)
        colour = "#c5ccd3" if phase == "the rest" else COLOURS[index]
        look = {"type": "bar", "marker": {"color": colour}, "hovertemplate": "%{y:.3g} s"}
        stacked.append({"x": xs, "y": ys, "name": phase, **look})
    note = ", ".join(f"{p} {sum(v) / max(total, 1e-9):.0%}" for p, v in seconds.items())
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0.1 if len(steps) < 60 else 0}
    layout["xaxis"] = _steps_axis(stacked)
    speed = [
        {
            "step": r["step"],
            "tokens/s": ((r.get("tokens/prompt") or 0) + (r.get("tokens/completion") or 0))
            / r["time/step_s"],
        }
        for r in timed
    ]
    median = statistics.median(r["tokens/s"] for r in speed)
    return [
        _drawn(
            _Family("Speed", f"prompt and answer tokens a second, median {median:,.0f}", bool),
            ["tokens/s"],
            speed,
        ),
        Chart("Where the time went", f"seconds of each step: {note}", stacked, layout, wide=True),
    ]


def binned(
    xs: Sequence[float], ys: Sequence[float], most: int = _POINTS
) -> tuple[list[float], list[float]]:
    """At most `most` points: means of neighbours, each at the last x of its bin."""
    size = -(-len(xs) // most) if xs else 1
    starts = range(0, len(xs), size)
    means = [statistics.fmean(ys[i : i + size]) for i in starts] if size > 1 else list(ys)
    return [xs[min(i + size, len(xs)) - 1] for i in starts], means


def running_mean(ys: Sequence[float], window: int) -> list[float]:
    """The mean of each value and its neighbours, `window // 2` to either side where there are so many."""
    half = window // 2
    sums = [0.0, *itertools.accumulate(ys)]
    edges = [(max(0, i - half), min(len(ys), i + half + 1)) for i in range(len(ys))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in edges]
