"""Annotation files of temporal grounding, as published, and what is wrong in them.

- ActivityNet Captions: JSON `{video: {"duration", "timestamps": [[start, end], ...], "sentences"}}`.
- QVHighlights: a JSON object a line with `qid, query, duration, vid, relevant_windows,
  relevant_clip_ids, saliency_scores` (three annotators' 0-4 for each relevant 2-second clip).
- Charades-STA: lines `VIDEO START END##SENTENCE`; durations come from another file.

A row that cannot be used is left out, an interval that reaches past its clip is cut, and each kind of
either is counted in `Found.defects`. A file that is not of its format raises DataError.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError, DataError, did_you_mean

Window = tuple[float, float]
"""Start and end, in seconds; start < end."""

CLIP_S = 2.0
"""Length of a QVHighlights clip, seconds."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Moment:
    """A query about a video. windows: where it happens, at least one; scores: QVHighlights' three
    scores (0-4) by clip index, empty elsewhere; duration: seconds."""

    id: str
    video: str
    query: str
    duration: float
    windows: tuple[Window, ...]
    scores: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The usable rows of a file, and how often each defect occurred."""

    moments: tuple[Moment, ...]
    defects: Mapping[str, int]


@functools.lru_cache(maxsize=8)
def load(source: str, path: str, durations: str | None = None) -> Found:
    """The rows of an annotation file; says once a file, as a warning, what was wrong in it.

    source: activitynet, qvhighlights or charades; path: the file, plain or `.gz`; durations: for
    charades, a JSON object `{video: seconds}` or a CSV with columns `id` and `length`.
    """
    if source not in _READERS:
        known = ", ".join(_READERS)
        raise ConfigError(
            f"source={source!r}: expected one of {known}.{did_you_mean(source, _READERS)}"
        )
    defects: Counter[str] = Counter()
    clips = _durations(durations) if durations else None
    moments = tuple(_READERS[source](path, defects, clips))
    if defects:
        said = "; ".join(f"{count:,} {what}" for what, count in sorted(defects.items()))
        _LOG.warning("%s: %s usable queries; %s", Path(path).name, f"{len(moments):,}", said)
    if not moments:
        raise DataError(f"{path}: no usable query{f' ({said})' if defects else ''}")
    return Found(moments, dict(defects))


def _activitynet(path: str, defects: Counter[str], _: Any) -> Iterator[Moment]:
    whole = _json(_text(path), path)
    for video, row in _mapping(whole, path).items():
        where = f"{path}, video {video!r}"
        duration = _seconds(_column(row, "duration", where), where)
        times = _column(row, "timestamps", where)
        sentences = _column(row, "sentences", where)
        if len(times) != len(sentences):
            raise DataError(
                f"{where}: {len(times)} timestamps for {len(sentences)} sentences; expected as many"
            )
        for index, (time, sentence) in enumerate(zip(times, sentences, strict=True)):
            windows = _windows([time], duration, defects, where)
            query = _query(sentence, defects, where)
            if windows and query:
                yield Moment(f"{video}-{index}", video, query, duration, windows)


def _qvhighlights(path: str, defects: Counter[str], _: Any) -> Iterator[Moment]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _mapping(_json(line, where), where)
        duration = _seconds(_column(row, "duration", where), where)
        windows = _windows(_column(row, "relevant_windows", where), duration, defects, where)
        query = _query(_column(row, "query", where), defects, where)
        clips = _column(row, "relevant_clip_ids", where)
        triples = _column(row, "saliency_scores", where)
        if len(clips) != len(triples):
            raise DataError(
                f"{where}: {len(triples)} saliency_scores for {len(clips)} relevant_clip_ids"
            )
        if windows and query:
            scores = {int(c): tuple(s) for c, s in zip(clips, triples, strict=True)}
            name, video = str(_column(row, "qid", where)), str(_column(row, "vid", where))
            yield Moment(name, video, query, duration, windows, scores)


def _charades(
    path: str, defects: Counter[str], durations: Mapping[str, float] | None
) -> Iterator[Moment]:
    if durations is None:
        raise ConfigError(
            "source: charades needs durations: a JSON object {video: seconds}, or Charades' CSV with "
            "columns id and length; its own lines do not say how long a clip is"
        )
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        head, marker, sentence = line.partition("##")
        words = head.split()
        if not marker or len(words) != 3:
            raise DataError(f"{where}: expected `VIDEO START END##SENTENCE`, got {line[:80]!r}")
        video, *ends = words
        if video not in durations:
            defects["with a video of unknown duration, left out"] += 1
            continue
        duration = durations[video]
        windows = _windows([ends], duration, defects, where)
        query = _query(sentence, defects, where)
        if windows and query:
            yield Moment(f"{video}-{number}", video, query, duration, windows)


_READERS: dict[str, Callable[..., Iterator[Moment]]] = {
    "activitynet": _activitynet,
    "qvhighlights": _qvhighlights,
    "charades": _charades,
}


def _windows(pairs: Any, duration: float, defects: Counter[str], where: str) -> tuple[Window, ...]:
    """The intervals that can be used, inside `[0, duration]`."""
    kept = []
    for pair in pairs:
        try:
            start, end = (float(x) for x in pair)
        except (TypeError, ValueError):
            raise DataError(
                f"{where}: expected [start, end] in seconds, got {pair!r:.80}"
            ) from None
        if not (math.isfinite(start) and math.isfinite(end)):
            raise DataError(f"{where}: interval [{start}, {end}] is not finite")
        if end < start:
            defects["intervals that end before they start, left out"] += 1
        elif end == start:
            defects["empty intervals, left out"] += 1
        elif start >= duration or end <= 0:
            defects["intervals outside the clip, left out"] += 1
        else:
            defects["intervals that end past the clip, cut there"] += end > duration
            defects["intervals that start before the clip, cut there"] += start < 0
            kept.append((max(start, 0.0), min(end, duration)))
    for name in [n for n, count in defects.items() if not count]:
        del defects[name]
    return tuple(kept)


def _query(sentence: Any, defects: Counter[str], where: str) -> str:
    """The sentence with single spaces, or an empty string if there is none."""
    if not isinstance(sentence, str):
        raise DataError(f"{where}: expected a sentence, got {type(sentence).__name__}")
    query = " ".join(sentence.split())
    if not query:
        defects["queries without text, left out"] += 1
    elif query != sentence:
        defects["queries with stray white space, tidied"] += 1
    return query


def _durations(path: str) -> dict[str, float]:
    text = _text(path)
    if Path(path.removesuffix(".gz")).suffix == ".json":
        rows = _mapping(_json(text, path), path)
        return {video: _seconds(value, f"{path}, {video!r}") for video, value in rows.items()}
    rows_of_csv = list(csv.DictReader(text.splitlines()))
    if not rows_of_csv or not {"id", "length"} <= rows_of_csv[0].keys():
        raise DataError(f"{path}: expected a CSV with columns id and length, or a .json object")
    return {row["id"]: _seconds(row["length"], f"{path}, {row['id']!r}") for row in rows_of_csv}


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise DataError(f"{where}: the duration must be positive seconds, got {value!r:.40}")
    return seconds


def _column(row: Any, name: str, where: str) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"{where} has no {name!r}; found: {found}")
    return row[name]


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})") from error


def _text(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        near = did_you_mean(file.name, (f.name for f in file.parent.glob("*")))
        raise DataError(
            f"{path} is not a file.{near} Annotations are read from local "
            f"files: set env.path and env.held_out_path to those of the data set."
        )
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
