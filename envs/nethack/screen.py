"""Terminal screens as text, as pictures, and as an animated recording.

A recording is an asciicast (asciinema's file format, version 2): a line of JSON for the terminal, then one
for each change, `[seconds, "o", characters]`. Any player of that format shows it.
"""

from __future__ import annotations

import functools
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


_CELL = (11, 6)
"""Pixels of a character: the bitmap font that comes with Pillow."""
_DARK, _BRIGHT = 170, 255


def picture(chars: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The screen as uint8 `[264, 480, 3]`, NetHack's 16 colours on black."""
    seen = np.where((chars >= 32) & (chars < 127), chars, 32)
    masks = _font()[seen]  # [24, 80, 11, 6]
    ink = _palette()[colors.astype(np.int16) & 15]  # [24, 80, 3]
    cells = masks[..., None] * ink[:, :, None, None]
    return cells.swapaxes(1, 2).reshape(ROWS * _CELL[0], COLUMNS * _CELL[1], 3)


@functools.cache
def _font() -> np.ndarray:
    """0 or 1 of each pixel of each character, uint8 `[128, 11, 6]`."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default_imagefont()
    found = np.zeros((128, *_CELL), np.uint8)
    for code in range(33, 127):
        image = Image.new("1", (_CELL[1], _CELL[0]))
        ImageDraw.Draw(image).text((0, 0), chr(code), fill=1, font=font)
        found[code] = np.asarray(image)
    return found


def _palette() -> np.ndarray:
    """uint8 `[16, 3]`: the bits of a colour are red, green, blue and bright. Colour 0 is black, which
    NetHack means to be seen."""
    rgb = [[(_BRIGHT if c & 8 else _DARK) * bool(c & bit) for bit in (1, 2, 4)] for c in range(16)]
    rgb[0], rgb[8] = [80] * 3, [120] * 3
    return np.array(rgb, np.uint8)


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
