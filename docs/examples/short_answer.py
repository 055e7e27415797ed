"""A reward for answers that end as they were asked to, and come to the point."""

import re

LAST_LINE = re.compile(r"Answer: -?[\d,.]*\d\.?")


def short_answer(completion: str, task, words: int = 60) -> dict[str, float]:
    """Half for a last line `Answer: NUMBER`, half for few words: 0 for `words` or more.

    Whether the number is right is not asked: this is about form.
    """
    lines = completion.strip().splitlines()
    formed = float(bool(lines) and LAST_LINE.fullmatch(lines[-1].strip()) is not None)
    brief = max(0.0, 1 - len(completion.split()) / words)
    return {"reward": 0.5 * formed + 0.5 * formed * brief, "formed": formed, "words": float(len(completion.split()))}
