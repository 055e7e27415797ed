"""The parts of the report about policies that act: films of episodes, and where episodes went."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlft.record.charts import Chart

Row = Mapping[str, Any]

MOST_BYTES = 3 * 2**20
"""Of films in a page; those of the last evaluation come first."""

_STEPS_SHARE = 5
"""The first and the last fifth of the steps are drawn."""

_CELLS = 200
"""Positions to a side of a map, at most."""

_SHADES = [[0, "#f4f6f8"], [0.02, "#d6e4fb"], [0.3, "#6ea0f2"], [1, "#123f8c"]]


def films_html(folder: Path) -> Iterator[str]:
    """The films of the first and the last evaluation that has some."""
    found = sorted(folder.glob("films/step_*.gif"))
    steps = sorted({path.name.split(".")[0] for path in found})
    if not steps:
        return
    yield '<h2>Episodes</h2><div class="films">'
    left, dropped = MOST_BYTES, 0
    for step in dict.fromkeys((steps[-1], steps[0])):
        for path in [p for p in found if p.name.startswith(f"{step}.")]:
            data = path.read_bytes()
            if len(data) > left:
                dropped += 1
                continue
            left -= len(data)
            title = escape(f"after step {int(step.removeprefix('step_'))}")
            source = base64.b64encode(data).decode()
            yield f'<figure><img alt="an episode {title}" src="data:image/gif;base64,{source}">'
            yield f'<figcaption class="note">{title}</figcaption></figure>'
    yield "</div>"
    if dropped:
        yield f'<p class="note">{dropped} more films are too large for this page: see films/.</p>'


def maps(samples: Sequence[Row]) -> list[Chart]:
    """How much of their time episodes of the first and the last steps spent where, and those of the
    last evaluation. Of a trace of one or two whole numbers, `position` if there is one."""
    name = _trace(samples)
    if name is None:
        return []
    found = []
    for title, rows in _parts([s for s in samples if s.get("traces", {}).get(name)]):
        places = [tuple(place) for row in rows for place in row["traces"][name]]
        if chart := _map(title, f"share of time by {name}, {len(rows)} episodes", places):
            found.append(chart)
    return found


def _trace(samples: Sequence[Row]) -> str | None:
    traces: Mapping[str, Any] = next((s["traces"] for s in samples if s.get("traces")), {})
    fit = [
        n
        for n, rows in traces.items()
        if rows and len(rows[0]) in (1, 2) and all(isinstance(x, int) for x in rows[0])
    ]
    return "position" if "position" in fit else next(iter(fit), None)


def _parts(samples: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    train = [s for s in samples if s["kind"] == "train"]
    if train:
        last = train[-1]["step"]
        few = max(1, last // _STEPS_SHARE)
        first = [s for s in train if s["step"] <= few]
        late = [s for s in train if s["step"] > max(few, last - few)]
        for words, rows in ((_span(1, few), first), (_span(last - few + 1, last), late)):
            if rows:
                yield f"Where episodes went, {words}", rows
    held_out = [s for s in samples if s["kind"] == "eval"]
    if held_out:
        last = held_out[-1]["step"]
        yield (
            f"Where episodes went, evaluation after step {last}",
            [s for s in held_out if s["step"] == last],
        )


def _span(first: int, last: int) -> str:
    return f"step {last}" if first >= last else f"steps {first} to {last}"


def _map(title: str, note: str, places: Sequence[tuple[int, ...]]) -> Chart | None:
    counts = Counter((p[0], p[1] if len(p) > 1 else 0) for p in places)
    xs, ys = ([at[i] for at in counts] for i in (0, 1))
    left, top = min(xs), min(ys)
    width, height = max(xs) - left + 1, max(ys) - top + 1
    if max(width, height) > _CELLS:
        return None
    shares = [
        [counts[left + x, top + y] / len(places) for x in range(width)] for y in range(height)
    ]
    look: dict[str, Any] = {
        "type": "heatmap",
        "colorscale": _SHADES,
        "zmin": 0,
        "xgap": 1,
        "ygap": 1,
    }
    look["colorbar"] = {"tickformat": ".1~%", "thickness": 12, "outlinewidth": 0}
    hover = {"hovertemplate": "(%{x}, %{y}): %{z:.1%}<extra></extra>"}
    where = {"x0": left, "dx": 1, "y0": top, "dy": 1, "z": shares}
    square = {
        "scaleanchor": "x",
        "autorange": "reversed",
        "constrain": "domain",
        "dtick": _tick(height),
    }
    across = {"title": {"text": ""}, "constrain": "domain", "dtick": _tick(width)}
    layout = {"hovermode": "closest", "yaxis": square, "xaxis": across}
    return Chart(title, note, [{**look, **hover, **where}], layout)


def _tick(count: int) -> int:
    return max(1, -(-count // 5))
