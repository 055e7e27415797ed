"""Calculation marks `<<48/2=24>>` of GSM8K's solutions: finding them, and checking their arithmetic.

As in the code of the RFT paper (arXiv 2308.01825), but without Python's `eval` on what a model wrote:
+ - * / and parentheses of decimal numbers, nothing else. So `**` and `//` are wrong here.
"""

from __future__ import annotations

import ast
import re

from rlft.arithmetic import value_of

MARK = re.compile(r"<<([^<>\n]*)>>")
TOLERANCE = 1e-3
LONGEST = 200
"""Characters of a mark; a longer one is wrong. It bounds nesting, the size of numbers, and time."""

_ALLOWED = re.compile(r"[0-9.+\-*/() ]+")
_NUMBER = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\s*")


def marks_of(text: str) -> list[str]:
    """What stands in the marks of a text, in order."""
    return MARK.findall(text)


def all_right(text: str) -> bool:
    """Whether the arithmetic of every mark is right; True where there is none."""
    return all(is_right(mark) for mark in marks_of(text))


def is_right(mark: str) -> bool:
    """Whether `|left - right| < 0.001` around the first `=`; what follows a second `=` is ignored.

    False for anything that is no such equation.
    """
    left, equals, rest = mark.partition("=")
    right = rest.partition("=")[0]
    if len(mark) > LONGEST or not equals or not _NUMBER.fullmatch(right):
        return False
    if not _ALLOWED.fullmatch(left):
        return False
    try:
        value = value_of(ast.parse(left.strip(), mode="eval").body, _decimal)
        return abs(value - float(right)) < TOLERANCE
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return False


def _decimal(value: object) -> float:
    if isinstance(value, int | float):
        return value
    raise ValueError("Constant is not allowed")
