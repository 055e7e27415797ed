"""Numbers and rows about episodes: what the metrics and samples files hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rlft.filters import members_of
from rlft.types import Episode, Group

_SAMPLES_A_STEP = 16


def episodes_of(groups: Sequence[Group]) -> list[Episode]:
    """The episodes that ended in these groups, those that failed among them."""
    members, _ = members_of(groups)
    return [m.episode for m in members if m.episode is not None]


def error_share(groups: Sequence[Group]) -> float:
    """The share of the strips in these groups at whose end the environment failed. One that was cut on its
    way did not: where episodes are longer than what a step collects, few end in it."""
    members, _ = members_of(groups)
    failed = sum(m.episode is not None and m.episode.end == "error" for m in members)
    return failed / max(1, len(members))


def acted(groups: Sequence[Group]) -> dict[str, float]:
    """What a step collected. `reward/*` are of the undiscounted returns of episodes that ended in this
    step, and absent if none did; an episode that failed has no return, and is counted."""
    members, _ = members_of(groups)
    ended = episodes_of(groups)
    steps = float(sum(m.num_tokens for m in members))
    whole = [e for e in ended if e.end != "error"]
    out = {
        "env/steps": steps,
        "env/strips": float(len(members)),
        "tokens/sampled": steps,
        "tokens/prompt": 0.0,
        "tokens/completion": steps,
        "episode/count": float(len(ended)),
        "reward/errors": error_share(groups),
    }
    if whole:
        returns = np.array([e.ret for e in whole])
        out |= {
            "reward/mean": float(returns.mean()),
            "reward/std": float(returns.std()),
            "episode/length": float(np.mean([e.length for e in whole])),
            "episode/truncated": sum(e.end == "truncated" for e in whole) / len(whole),
        }
        # Who says of one episode that it succeeded means of the others that they did not.
        if any(e.success is not None for e in whole):
            out["reward/success"] = sum(bool(e.success) for e in whole) / len(whole)
        out |= {f"episode/{name}": float(np.mean(xs)) for name, xs in _numbers(whole).items()}
    return out


def _numbers(episodes: Sequence[Episode]) -> dict[str, list[float]]:
    """Of each fact that is a number, its values."""
    found: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.facts.items():
            if not isinstance(value, str):
                found.setdefault(name, []).append(value)
    return found


def samples(groups: Sequence[Group], step: int, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of `samples.jsonl` for the first episodes of a step, those that failed first."""
    ended = [(g.task.id, m, m.episode) for g in groups for m in g.members if m.episode is not None]
    ended.sort(key=lambda found: found[2].end != "error")
    for task, m, episode in ended[:_SAMPLES_A_STEP]:
        yield {
            "step": step,
            "kind": kind,
            "id": m.id,
            "task": task,
            "prompt": "",
            "completion": "",
            "target": None,
            "reward": None if episode.end == "error" else episode.ret,
            "parts": dict(m.outcome.parts) if m.outcome else {},
            "outcome": m.outcome.kind if m.outcome else None,
            "origin": m.origin,
            "reason": episode.error,
            "tokens": episode.length,
            "truncated": m.truncated,
            "version": list(m.version),
            "seed": episode.seed,
            "end": episode.end,
            "facts": dict(episode.facts),
            "traces": {name: x.tolist() for name, x in episode.traces.items()},
        }
