"""A reward for the form of an answer: a last line `Answer: NUMBER`, and few words before it."""

import re

NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
ASKED = re.compile(rf"Answer: ({NUMBER})\.?")
CLOSE = re.compile(rf".*?({NUMBER})\.?")


def short_answer(completion: str, task, words: int = 40) -> dict[str, float]:
    """1 for a last line as asked, 0.5 for one that at least ends in a number, each less up to half of
    itself for length (all of that from `words` words on).

    Whether the number is right is not asked, but told (`right`).
    """
    last = (completion.strip().splitlines() or [""])[-1].strip()
    formed, close = ASKED.fullmatch(last), CLOSE.fullmatch(last)
    count = len(completion.split())
    found = formed or close
    said = found.group(1).replace(",", "").replace("$", "") if found else None
    gold = task.target.rpartition("####")[2].strip().replace(",", "")
    value = 1.0 if formed else 0.5 if close else 0.0
    return {
        "reward": value * (1 - 0.5 * min(1.0, count / words)),
        "formed": float(formed is not None),
        "words": float(count),
        "right": float(said == gold),
    }
