"""A reward for answers that end as they were asked to, and come to the point."""

import re

LAST_LINE = re.compile(r"Answer: -?[\d,.]*\d\.?")


def short_answer(completion: str, task, words: int = 60) -> dict[str, float]:
    """Half for a last line `Answer: NUMBER`, up to 1 for few words with it; 0 without that line.

    Whether the number is right is not asked: this is about form.
    """
    lines = completion.strip().splitlines()
    formed = float(bool(lines) and LAST_LINE.fullmatch(lines[-1].strip()) is not None)
    count = len(completion.split())
    brief = max(0.0, 1 - count / words)
    return {"reward": formed * (0.5 + 0.5 * brief), "formed": formed, "words": float(count)}
