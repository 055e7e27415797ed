"""Terminal screens as text, and as an animated recording.

A recording is an asciicast (asciinema's file format, version 2): a line of JSON for the terminal, then one
for each change, `[seconds, "o", characters]`. Any player of that format shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 24, 80
_RESET = "\033[0m"


def text(chars: np.ndarray) -> str:
    """uint8 `[24, 80]` as lines without trailing blanks; what is not printable is a blank."""
    seen = np.where((chars >= 32) & (chars < 127), chars, 32).astype(np.uint8)
    return "\n".join(bytes(row).decode("ascii").rstrip() for row in seen)


def ansi(chars: np.ndarray, colors: np.ndarray) -> str:
    """The same with NetHack's 16 colours as escape sequences."""
    return "\n".join(_line(c, k) for c, k in zip(chars, colors, strict=True))


def _line(chars: np.ndarray, colors: np.ndarray) -> str:
    seen = np.where((chars >= 32) & (chars < 127), chars, 32).astype(np.uint8)
    shown = np.where(seen == 32, 0, colors.astype(np.int16) & 15)  # a blank has no colour
    found: list[str] = []
    first = 0
    for end in [*(np.flatnonzero(np.diff(shown)) + 1).tolist(), len(seen)]:
        color, part = int(shown[first]), bytes(seen[first:end]).decode("ascii")
        found.append(f"\033[{color >> 3};{30 + (color & 7)}m{part}{_RESET}" if color else part)
        first = end
    return "".join(found).rstrip()


def write_cast(
    path: Path,
    screens: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    rate: float = 15.0,
    title: str = "",
) -> int:
    """Writes screens `(chars, colors)`, `rate` of them a second, and returns how many. Only lines that
    changed are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before: list[str] = [""] * ROWS
    count = 0
    with path.open("w", encoding="utf-8") as file:
        head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": title}
        file.write(json.dumps(head) + "\n")
        for count, (chars, colors) in enumerate(screens, start=1):
            lines = [_line(c, k) for c, k in zip(chars, colors, strict=True)]
            changed = "".join(
                f"\033[{row};1H\033[2K{line}"
                for row, (line, was) in enumerate(zip(lines, before, strict=True), start=1)
                if line != was or count == 1
            )
            if changed:
                file.write(json.dumps([round((count - 1) / rate, 3), "o", changed]) + "\n")
            before = lines
    return count
