"""When two paths are the same: `(text) -> str`, equal for the same path. Short names of `algo.key`."""

from __future__ import annotations

import re

from rlft.paths.marks import marks_of

__all__ = ["equations", "marks", "text"]

_NUM = r"[0-9]+(?:\.[0-9]+)?"
_EQUATION = re.compile(rf"{_NUM}(?:\s*[-+*/x×÷]\s*{_NUM})+\s*=\s*-?{_NUM}")
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/"})


def marks(text: str) -> str:
    """The calculation marks in order, without spaces; every text without marks has the same key."""
    return "|".join(marks_of(text)).replace(" ", "")


def equations(text: str) -> str:
    """For texts without marks: the equations `a + b = c` in order, without spaces and with one sign
    for each operation."""
    found = (re.sub(r"\s", "", e).translate(_SIGNS) for e in _EQUATION.findall(text))
    return "|".join(found)


def text(text: str) -> str:
    """The whole text, white space aside."""
    return " ".join(text.split())
