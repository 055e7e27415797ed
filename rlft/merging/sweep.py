"""A sweep of the mixing weight: models merged and scored on what was learnt and what was to be kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.errors import ConfigError
from rlft.merging.merge import Recipe, merge, recipe, refuse_existing
from rlft.merging.pareto import front, picture
from rlft.merging.scores import Score, scorer


@dataclass(frozen=True, slots=True)
class Point:
    """A mixing weight and both scores, of which more is better."""

    weight: float
    target: float
    retention: float


def points_of(text: str) -> list[float]:
    """The values of first:last:step, the last included. Raises ConfigError for anything else."""
    try:
        first, last, step = (float(part) for part in text.split(":"))
        count = round((last - first) / step)
        if count < 0 or abs(first + count * step - last) > 1e-9 * max(1.0, abs(last)):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--sweep {text}: expected first:last:step that divides evenly, e.g. 0:1:0.1"
        ) from None
    return [round(first + i * step, 10) for i in range(count + 1)]


def swept(
    spec: Mapping[str, Any],
    models: Sequence[str],
    roles: Mapping[str, str | None],
    values: Sequence[float],
    out: Path,
    scored: tuple[str, str],
    *,
    dtype: str | None,
    samples: int,
    keep: bool,
    say: Callable[[str], None],
) -> Iterator[str]:
    """Merges at each of `values`, scores, writes sweep.json and pareto.svg into `out`; yields the table.

    Everything is checked before the first merge. Raises ConfigError: a method without a mixing weight,
    or what `recipe` and `scorer` raise.
    """
    name = spec["name"]
    key = registry.resolve("merge", name).swept
    if key is None:
        raise ConfigError(f"merge {name} has no mixing weight to sweep")
    if key in spec:
        raise ConfigError(f"merge {name}: {key}={spec[key]} is what --sweep varies; leave it out")
    refuse_existing(out)
    target, retention = (scorer(what, samples, say) for what in scored)
    recipes = [recipe({**spec, key: value}, models, **roles) for value in values]
    out.mkdir(parents=True)
    points = []
    for value, made in zip(values, recipes, strict=True):
        points.append(_point(value, made, out, target, retention, dtype, keep))
        say(
            f"{key} {value:g}: target {points[-1].target:.4f}, retention {points[-1].retention:.4f}"
        )
        _write(out, spec, key, scored, points)
    best = front(points)
    yield f"{key:>8}{'target':>12}{'retention':>12}  not dominated"
    for point in points:
        mark = "  *" if point in best else ""
        yield f"{point.weight:>8g}{point.target:>12.4f}{point.retention:>12.4f}{mark}"
    yield f"plot: {out / 'pareto.svg'}"


def _point(
    value: float,
    made: Recipe,
    out: Path,
    target: Score,
    retention: Score,
    dtype: str | None,
    keep: bool,
) -> Point:
    folder = merge(made, out / f"{made.method.swept}_{value:g}", dtype)
    point = Point(value, target(folder), retention(folder))
    if not keep:
        shutil.rmtree(folder)
    return point


def _write(
    out: Path, spec: Mapping[str, Any], key: str, scored: tuple[str, str], points: Sequence[Point]
) -> None:
    whole = {
        "method": dict(spec),
        "swept": key,
        "target": scored[0],
        "retention": scored[1],
        "points": [asdict(p) for p in points],
    }
    (out / "sweep.json").write_text(json.dumps(whole, indent=1) + "\n")
    labels = [f"{key}={p.weight:g}" for p in points]
    (out / "pareto.svg").write_text(picture(points, labels), "utf-8")
