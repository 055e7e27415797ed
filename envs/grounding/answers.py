"""Answers of temporal grounding: how one is written, read back, and how good it is.

Tags are matched whatever their case. Everything here is linear in the length of a completion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from envs.grounding.annotations import CLIP_S, Window

_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_JOINED = re.compile(rf"{_NUMBER}\s{{0,3}}(?:to|and)\s{{0,3}}{_NUMBER}", re.IGNORECASE)
_DASHED = re.compile(rf"{_NUMBER}\s{{0,3}}-\s{{0,3}}{_NUMBER}")
_ANY = re.compile(_NUMBER)
_LISTS = re.compile(r"scores?\b", re.IGNORECASE)
RECALL_WEIGHT, SCORE_WEIGHT = 0.6, 0.4


def written(window: Window, decimals: int) -> str:
    """`<answer> 7.00 to 11.00 </answer>`, with more decimals if the interval would vanish."""
    start, end = (f"{second:.{decimals}f}" for second in window)
    if float(start) >= float(end) and decimals < 6:
        return written(window, decimals + 1)
    return f"<answer> {start} to {end} </answer>"


def written_highlights(scores: Mapping[int, float]) -> str:
    """Timestamps (starts of clips, seconds) with saliency, in the words of the paper's prompt."""
    times = ", ".join(f"{clip * CLIP_S:g}" for clip in scores)
    values = ", ".join(f"{value:.1f}" for value in scores.values())
    return (
        f"<answer> The highlight timestamps are in the {times} seconds. "
        f"Their saliency scores are {values}. </answer>"
    )


def block(text: str, tag: str) -> str | None:
    """What stands in the first `<tag>...</tag>`, or None."""
    low = text.lower()
    if len(low) != len(text):  # a letter whose lower case is longer would shift every index
        low = text
    start = low.find(f"<{tag}>")
    end = low.find(f"</{tag}>", start)
    return None if start < 0 or end < 0 else text[start + len(tag) + 2 : end]


def interval(completion: str) -> Window | None:
    """The interval that a completion answers, or None.

    In the first answer block: the last `X to Y` or `X and Y`, else the last `X - Y`, else the first
    two numbers. As written: it may be empty or reversed.
    """
    inside = block(completion, "answer")
    if inside is None:
        return None
    for pattern in (_JOINED, _DASHED):
        found = pattern.findall(inside)
        if found:
            return float(found[-1][0]), float(found[-1][1])
    numbers = _ANY.findall(inside)
    return (float(numbers[0]), float(numbers[1])) if len(numbers) > 1 else None


def iou(a: Window | None, b: Window) -> float:
    """Overlap over hull, in [0, 1]: the intersection over union wherever they overlap.

    None, and an empty or reversed interval, have 0.
    """
    if a is None or not a[0] < a[1] or not b[0] < b[1]:
        return 0.0
    overlap = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, overlap) / (max(a[1], b[1]) - min(a[0], b[0]))


def well_formed(completion: str, mode: str, strict: bool = False) -> bool:
    """Whether the completion has the form that its mode asks for.

    answer: an answer block with `X to Y`, `X and Y` or `X - Y`; think: a think block before it. strict:
    exactly one answer block, without a line break in it and with nothing after it.
    """
    inside = block(completion, "answer")
    if inside is None or not (_JOINED.search(inside) or _DASHED.search(inside)):
        return False
    low = completion.lower()
    if mode == "think":
        opened, closed = low.find("<think>"), low.find("</think>")
        if not (0 <= opened < closed < low.find("<answer>")):
            return False
    if not strict:
        return True
    ends = low.rstrip().endswith("</answer>")
    return ends and low.count("<answer>") == low.count("</answer>") == 1 and "\n" not in inside


def highlights(completion: str) -> dict[int, float] | None:
    """Saliency by clip index of a highlight answer, or None if it has none.

    Two lists of numbers parted by the word `scores`; a timestamp off the 2-second grid is left out,
    and so is one without a score.
    """
    inside = block(completion, "answer")
    split = _LISTS.search(inside) if inside is not None else None
    if inside is None or split is None:
        return None
    times = [float(x) for x in _ANY.findall(inside[: split.start()])]
    scores = [float(x) for x in _ANY.findall(inside[split.end() :])]
    found: dict[int, float] = {}
    for second, score in zip(times, scores, strict=False):
        if second % CLIP_S == 0:
            found.setdefault(int(second // CLIP_S), score)
    return found or None


def timestamp_score(predicted: Mapping[int, float] | None, truth: Mapping[int, float]) -> float:
    """`0.6 F2 + 0.4 / (1 + WMSE)` of TempSamp-R1 (section 3.4), in [0, 1].

    F2 weighs recall of the right clips over precision. The paper says neither when a timestamp matches
    nor how WMSE is normalised: here the clip must be the same, and the mean is weighted by the
    squared true score, a missed clip counting as predicted 0.
    """
    if not predicted or not truth:
        return 0.0
    hit = len(predicted.keys() & truth.keys())
    if hit == 0:
        return 0.0
    precision, recall = hit / len(predicted), hit / len(truth)
    f2 = 5 * precision * recall / (4 * precision + recall)
    weight = sum(g * g for g in truth.values())
    error = sum(g * g * (predicted.get(c, 0.0) - g) ** 2 for c, g in truth.items())
    return RECALL_WEIGHT * f2 + SCORE_WEIGHT / (1 + (error / weight if weight else math.inf))


def windows_of(scores: Mapping[int, float]) -> list[tuple[Window, float]]:
    """Runs of neighbouring clips as intervals, each with its mean score, the best first."""
    runs: list[list[int]] = []
    for clip in sorted(scores):
        if runs and clip == runs[-1][-1] + 1:
            runs[-1].append(clip)
        else:
            runs.append([clip])
    ranked = [
        ((run[0] * CLIP_S, (run[-1] + 1) * CLIP_S), sum(scores[c] for c in run) / len(run))
        for run in runs
    ]
    return sorted(ranked, key=lambda pair: (-pair[1], pair[0]))


def best_iou(answer: Window | None, windows: Sequence[Window]) -> float:
    """The largest IoU with any of the true windows."""
    return max((iou(answer, window) for window in windows), default=0.0)
