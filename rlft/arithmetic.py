"""The value of arithmetic that a model wrote, without Python's `eval`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

N = TypeVar("N", float, Fraction)


def value_of(node: ast.expr, constant: Callable[[object], N]) -> N:
    """The value of a parsed expression of + - * / (also as signs) and what `constant` makes of its
    constants. Raises ValueError for anything else, and ZeroDivisionError.

    The caller bounds the length of the text, and so the depth of the recursion.
    """
    match node:
        case ast.Constant(value=value):
            return constant(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return value_of(inner, constant)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -value_of(inner, constant)
        case ast.BinOp(left=left, op=op, right=right):
            one, other = value_of(left, constant), value_of(right, constant)
            match op:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return one / other
    raise ValueError(f"{type(node).__name__} is not allowed")
