"""A reward for answers that come to the point."""

import re

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def short_answer(completion: str, task, enough: int = 10, words: int = 80) -> dict[str, float]:
    """1 for an answer with a number in at most `enough` words, falling to 0 at `words`.

    Whether the number is right is not asked, but told (`right`): brevity has a price.
    """
    count = len(completion.split())
    brief = min(1.0, max(0.0, (words - count) / (words - enough)))
    numbers = NUMBER.findall(completion.replace("$", ""))
    gold = task.target.rpartition("####")[2].strip() if task.target else None
    return {
        "reward": brief if numbers else 0.0,
        "words": float(count),
        "right": float(bool(numbers) and numbers[-1].rstrip(",").replace(",", "") == gold),
    }
