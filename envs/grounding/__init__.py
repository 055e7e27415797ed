"""Temporal grounding: when does what a sentence says happen in a video?

ActivityNet Captions, QVHighlights or Charades-STA from local annotation files, with the rewards of
TempSamp-R1 (arXiv 2509.18056). Text only: the policy reads the query and the clip's duration, a prior
that is known to be strong on these data sets. Frames are not read yet; `info` holds the video's
name and duration, from which a loader of frames can find them.

Each task has two modes (`info["modes"]`): `answer` asks for the interval alone, `think` for reasoning
before it, for which the data sets have no ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from envs.grounding.annotations import Moment, load
from envs.grounding.answers import (
    best_iou,
    highlights,
    interval,
    timestamp_score,
    well_formed,
    windows_of,
    written,
    written_highlights,
)
from envs.grounding.metrics import (
    THRESHOLDS,
    average_precision,
    hit_at_1,
    mean_average_precision,
)
from rlft.errors import ConfigError
from rlft.seeding import Key
from rlft.tasks import in_mode
from rlft.types import Prompt, Task

Mode = Literal["answer", "think"]

MOMENT = (
    'A video of {duration} seconds shows this event: "{query}". Estimate when it happens. Answer '
    "with its start and end in seconds within <answer> </answer> tags, for example "
    "<answer> 12.54 to 17.83 </answer>."
)
HIGHLIGHTS = (
    'A video of {duration} seconds has clips of 2 seconds. Which of them are highlights for "{query}", '
    "and how salient are they, from 1 to 5? Answer in this form: <answer> The highlight timestamps "
    "are in the 82, 84 seconds. Their saliency scores are 1.3, 1.7. </answer>"
)
THINK = "{ask} First reason about it within <think> </think> tags."


@dataclass(frozen=True)
class Grounding:
    """Queries of an annotation file.

    source: activitynet, qvhighlights or charades; path, held_out_path: its files; durations: Charades'
    clip lengths; task: find the moment, or score the highlights (qvhighlights); mode: how tasks
    are posed; held_out_modes: in which modes held-out ones are, null for `mode` alone; think_demos:
    give the answer alone as demonstration of think, too; demos: the annotated interval, or a random
    one, which shows the form only; template: in place of the prompt, with {query} and {duration}
    in it; chat: make it a user message; decimals: of demonstrated seconds; limit, held_out_limit: take
    that many queries, picked by seed.
    """

    path: str
    held_out_path: str
    source: str = "activitynet"
    durations: str | None = None
    task: Literal["moment", "highlights"] = "moment"
    mode: Mode = "answer"
    held_out_modes: tuple[Mode, ...] | None = None
    think_demos: bool = False
    demos: Literal["annotated", "random"] = "annotated"
    template: str | None = None
    chat: bool = True
    decimals: int = 2
    limit: int | None = None
    held_out_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task == "highlights" and self.source != "qvhighlights":
            raise ConfigError(
                f"task: highlights needs source: qvhighlights, got source: {self.source}"
            )
        if self.template is not None and "{query}" not in self.template:
            raise ConfigError(f"template={self.template!r} must contain {{query}}")
        if not 0 <= self.decimals <= 6:
            raise ConfigError(f"decimals={self.decimals} must be from 0 to 6")
        for name in ("limit", "held_out_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or null for all rows")

    def train(self) -> Sequence[Task]:
        """The queries of `path`, each with its annotation as demonstration."""
        return [in_mode(self._task(m), self.mode) for m in self._moments(self.path, self.limit)]

    def held_out(self) -> Sequence[Task]:
        """The queries of `held_out_path`, in each of `held_out_modes`."""
        modes = self.held_out_modes or (self.mode,)
        tasks = []
        for moment in self._moments(self.held_out_path, self.held_out_limit):
            task = self._task(moment, compared=len(modes) > 1)
            tasks += [in_mode(task, mode) for mode in modes]
        return tasks

    def _moments(self, path: str, limit: int | None) -> list[Moment]:
        moments = list(load(self.source, path, self.durations).moments)
        if limit is not None and limit < len(moments):
            # Not the first: rows of a video stand together, and so do those of a source.
            Key(self.seed, ("grounding", "rows")).rng().shuffle(moments)
            moments = moments[:limit]
        return moments

    def _task(self, moment: Moment, compared: bool = False) -> Task:
        demos = self._demos(moment)
        modes = {
            "answer": {"prompt": self._prompt(moment, "answer"), "demos": demos},
            "think": {
                "prompt": self._prompt(moment, "think"),
                "demos": demos if self.think_demos else (),
            },
        }
        return Task(
            id=moment.id,
            prompt="",
            target={"windows": moment.windows, "scores": dict(moment.scores)},
            info={
                "video": moment.video,
                "duration": moment.duration,
                "query": moment.query,
                "kind": self.task,
                "modes": modes,
                "compared": compared,
            },
        )

    def _prompt(self, moment: Moment, mode: Mode) -> Prompt:
        ask = self.template or (MOMENT if self.task == "moment" else HIGHLIGHTS)
        # Not str.format: a query or a template may hold other braces.
        ask = ask.replace("{duration}", f"{moment.duration:g}").replace("{query}", moment.query)
        text = ask if mode == "answer" else THINK.replace("{ask}", ask)
        return ({"role": "user", "content": text},) if self.chat else text

    def _demos(self, moment: Moment) -> tuple[str, ...]:
        """A response for each true window, or one for all highlights."""
        if self.demos == "random":
            rng = Key(self.seed, ("grounding", "random", moment.id)).rng()
            start, end = sorted(rng.uniform(0, moment.duration) for _ in range(2))
            return (written((start, end), self.decimals),)
        if self.task == "highlights":
            return (written_highlights(saliency(moment.scores)),)
        return tuple(written(window, self.decimals) for window in moment.windows)


def saliency(scores: Any) -> dict[int, float]:
    """True saliency by clip: the annotators' mean on the paper's scale, 1 to 5 (the files' is 0 to 4)."""
    return {clip: 1 + sum(triple) / len(triple) for clip, triple in scores.items()}


def reward(
    completion: str,
    task: Task,
    format_weight: float = 0.1,
    strict: bool = False,
    round_seconds: bool = False,
) -> dict[str, float]:
    """Moments: `iou + format_weight * format`; highlights: `timestamps + format_weight * format`.

    Parts of moments: `iou` with the nearest true window, `format`, and `r1@0.3`, `r1@0.5`, `r1@0.7`,
    whose means over queries are R1 at these thresholds (that of `iou` is mIoU). Of highlights:
    `timestamps`, `format`, `hit@1`, and the average precisions `ap@0.5`, `ap@0.75` and `ap`, whose
    means are HIT@1 and mAP. Where held-out tasks are posed in both modes, iou, r1@0.5 and
    timestamps occur again under `MODE/`.

    strict: exactly one answer block and nothing after it; round_seconds: of the answer, before
    it is compared, as one published evaluation does.
    """
    mode = task.info.get("mode", "answer")
    windows = task.target["windows"]
    if task.info["kind"] == "highlights":
        predicted = highlights(completion)
        form = float(predicted is not None)
        truth = task.target["scores"]
        main = timestamp_score(predicted, saliency(truth))
        ranked = [window for window, _ in windows_of(predicted or {})]
        parts = {
            "timestamps": main,
            "hit@1": hit_at_1(predicted, truth),
            "ap@0.5": average_precision(ranked, windows, 0.5),
            "ap@0.75": average_precision(ranked, windows, 0.75),
            "ap": mean_average_precision(ranked, windows),
        }
    else:
        answer = interval(completion)
        if answer is not None and round_seconds:
            answer = (float(round(answer[0])), float(round(answer[1])))
        main = best_iou(answer, windows)
        form = float(well_formed(completion, mode, strict))
        parts = {"iou": main, **{f"r1@{t}": float(main >= t) for t in THRESHOLDS}}
    if task.info["compared"]:
        shared = ("iou", "r1@0.5", "timestamps")
        parts |= {f"{mode}/{name}": parts[name] for name in shared if name in parts}
    return {"reward": main + format_weight * form, "format": form, **parts}
