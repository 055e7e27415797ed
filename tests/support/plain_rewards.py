"""Rewards of small runs. Nothing heavy is imported here: each reward process imports this file."""

from typing import Any


def vowels(completion: str, task: Any) -> dict[str, float]:
    """A reward that differs between random completions: the share of even digits, and the length."""
    even = sum(c in "02468" for c in completion)
    return {"reward": even / 10 + len(completion) / 100, "even": float(even)}


def failing(completion: str, task: Any) -> dict[str, float]:
    """Fails for answers of some members, whenever it is asked."""
    if completion.startswith(("2", "3")):
        raise ZeroDivisionError("planned")
    return vowels(completion, task)
