"""Which mixes no other beats on both scores, and the plot of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

_WIDTH, _HEIGHT, _MARGIN = 640, 420, 70


class Scored(Protocol):
    """Two scores, of which more is better."""

    @property
    def target(self) -> float: ...
    @property
    def retention(self) -> float: ...


P = TypeVar("P", bound=Scored)


def front(points: Sequence[P]) -> list[P]:
    """The points that no other is at least as good as in both scores and better in one; in order."""
    return [p for p in points if not any(_beats(q, p) for q in points)]


def _beats(one: Scored, other: Scored) -> bool:
    pairs = ((one.target, other.target), (one.retention, other.retention))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def picture(points: Sequence[Scored], labels: Sequence[str]) -> str:
    """An SVG: target upwards, retention to the right, each point with its label; the front is joined, what
    is dominated is hollow."""
    x = _scale([p.retention for p in points], _MARGIN, _WIDTH - 30)
    y = _scale([p.target for p in points], _HEIGHT - _MARGIN, 30)
    best = front(points)
    line = " ".join(
        f"{x(p.retention):.1f},{y(p.target):.1f}" for p in sorted(best, key=lambda p: p.retention)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_MARGIN} 30V{_HEIGHT - _MARGIN}H{_WIDTH - 30}" fill="none" stroke="#888"/>',
        f'<polyline points="{line}" fill="none" stroke="#4477aa" stroke-width="1.5"/>',
        *_ticks(points),
    ]
    taken: list[tuple[float, float, float]] = []
    for point, label in zip(points, labels, strict=True):
        cx, cy = x(point.retention), y(point.target)
        fill = "#4477aa" if point in best else "white"
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{fill}" stroke="#4477aa"/>')
        parts.append(_label(cx, cy, label, taken))
    return "\n".join([*parts, "</svg>\n"])


def _label(cx: float, cy: float, label: str, taken: list[tuple[float, float, float]]) -> str:
    """Beside its point, on the side with more room, as near as labels already there allow; from afar
    with a line to it. Where the page is full it lies over another."""
    right, width = cx < _WIDTH / 2, 7.0 * len(label)
    x = cx + (8 if right else -8)
    left = x if right else x - width
    above, below = int(cy // 13), int((_HEIGHT - cy) // 13)
    lines = sorted(range(1 - above, below), key=lambda n: (abs(n), -n))  # below rather than above
    free = (
        y
        for y in (cy + 4 + 13 * n for n in lines)
        if not any(a < left + width and left < b and abs(y - c) < 13 for a, b, c in taken)
    )
    y = next(free, cy + 4)
    taken.append((left, left + width, y))
    anchor = "" if right else ' text-anchor="end"'
    text = f'<text x="{x:.1f}" y="{y:.1f}"{anchor}>{label}</text>'
    if abs(y - cy) < 25:
        return text
    return f'<path d="M{cx:.1f} {cy:.1f}L{x:.1f} {y - 8:.1f}" stroke="#bbb"/>{text}'


def _ticks(points: Sequence[Scored]) -> list[str]:
    low = _HEIGHT - _MARGIN
    retention, target = [p.retention for p in points], [p.target for p in points]
    return [
        f'<text x="{_MARGIN}" y="{low + 18}">{min(retention):.4g}</text>',
        f'<text x="{_WIDTH - 30}" y="{low + 18}" text-anchor="end">{max(retention):.4g}</text>',
        f'<text x="{_MARGIN - 6}" y="{low}" text-anchor="end">{min(target):.4g}</text>',
        f'<text x="{_MARGIN - 6}" y="36" text-anchor="end">{max(target):.4g}</text>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 20}" text-anchor="middle">retention</text>',
        f'<text x="20" y="{_HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 20 {_HEIGHT / 2})">target</text>',
    ]


class _scale:
    """From values to places on the page; equal values lie in the middle."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self._low, self._span = min(values), max(values) - min(values)
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._span if self._span else 0.5
        return self._first + share * (self._last - self._first)
