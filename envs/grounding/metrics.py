"""Figures that the field reports, each over all queries, failures included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envs.grounding.annotations import Window
from envs.grounding.answers import iou

THRESHOLDS = (0.3, 0.5, 0.7)
AVERAGED = tuple(0.5 + 0.05 * i for i in range(10))
VERY_GOOD = 4


def recall_at(ious: Sequence[float], threshold: float) -> float:
    """R1@threshold: the share of queries whose answer has at least this IoU."""
    return sum(value >= threshold for value in ious) / max(1, len(ious))


def mean_iou(ious: Sequence[float]) -> float:
    """mIoU over queries; an answer that cannot be read counts 0."""
    return sum(ious) / max(1, len(ious))


def average_precision(ranked: Sequence[Window], truth: Sequence[Window], threshold: float) -> float:
    """AP of one query's intervals, best first: area under the interpolated precision-recall curve.

    Each true interval is matched once, by the best-ranked prediction that overlaps it enough; mAP is
    the mean over queries. As in QVHighlights' evaluation.
    """
    if not truth:
        return 0.0
    free = set(range(len(truth)))
    hits: list[bool] = []
    for window in ranked:
        near = sorted(free, key=lambda i: (-iou(window, truth[i]), i))
        hits.append(bool(near) and iou(window, truth[near[0]]) >= threshold)
        if hits[-1]:
            free.remove(near[0])
    precisions, found = [], 0
    for place, hit in enumerate(hits, start=1):
        found += hit
        precisions.append(found / place)
    area = 0.0
    for place, hit in enumerate(hits):
        if hit:
            area += max(precisions[place:]) / len(truth)
    return area


def mean_average_precision(ranked: Sequence[Window], truth: Sequence[Window]) -> float:
    """AP of one query, averaged over IoU thresholds 0.5, 0.55, ..., 0.95."""
    return sum(average_precision(ranked, truth, t) for t in AVERAGED) / len(AVERAGED)


def hit_at_1(predicted: Mapping[int, float] | None, scores: Mapping[int, Sequence[int]]) -> float:
    """1.0 if the clip with the highest predicted saliency was Very Good (4) to any annotator.

    The earliest of several highest; a clip without scores is not relevant. HIT@1 is the mean.
    """
    if not predicted:
        return 0.0
    top = min(predicted, key=lambda clip: (-predicted[clip], clip))
    return float(max(scores.get(top, (0,))) >= VERY_GOOD)
