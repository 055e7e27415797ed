"""Numbers and rows about collected groups: what the metrics and samples files hold of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlft.filters import members_of
from rlft.types import Group, Trajectory

if TYPE_CHECKING:
    from rlft.learning.fit import TokenTrace
    from rlft.policy.text import Text

_SAMPLES_A_STEP = 16


def success(result: Mapping[str, float]) -> dict[str, float]:
    """What a person asks of an evaluation: the mean reward and its named parts."""
    bookkeeping = {"reward/std", "reward/invalid", "reward/errors", "reward/timeouts"}
    named = {k.removeprefix("eval/"): v for k, v in result.items() if k.startswith("eval/reward/")}
    return {name: value for name, value in named.items() if name not in bookkeeping}


def collected(groups: Sequence[Group], least: int = 2) -> dict[str, float]:
    """Rewards, tokens and shares of what a step collected, before anything is filtered.

    least: members that a group needs; what failed rewards left smaller is counted as short.

    Of answers that the policy chose whole: what was given to it (origin `demo` or `mixed`) would
    flatter every mean, so its reward has a name of its own.
    """
    members, _ = members_of(groups)
    own = [m for m in members if m.origin == "policy"]
    given = [m.reward for m in members if m.origin != "policy" and m.reward is not None]
    tokens = sum(m.num_tokens for m in own)
    sampled = tokens + sum(m.num_tokens - m.given_tokens for m in members if m.origin == "mixed")
    out = {
        **reward_summary(own),
        "reward/calls": sum(m.outcome is not None for m in members),
        "groups": len(groups),
        "groups/flat": sum(len(set(g.rewards)) <= 1 for g in groups) / max(1, len(groups)),
        "groups/short": sum(len(g.members) >= least > len(g.rewards) for g in groups),
        "tokens/prompt": sum(m.prompt_len for m in members),
        "tokens/completion": sampled,
        "completion/mean_tokens": tokens / max(1, len(own)),
        "completion/truncated": sum(m.truncated for m in own) / max(1, len(own)),
        "time/reward_p50_s": latency(members, 50),
        "time/reward_p99_s": latency(members, 99),
    }
    if given:
        out["reward/given_mean"] = float(np.mean(given))
    return out | dialogues(own)


def dialogues(members: Sequence[Trajectory]) -> dict[str, float]:
    """Of episodes of several turns: the policy's turns, and tokens that the environment wrote, an
    episode; nothing if there are none."""
    turns = [(len(m.turns) + 1) // 2 for m in members if m.turns]
    if not turns:
        return {}
    return {
        "episode/turns": sum(turns) / len(turns),
        "tokens/environment": float(sum(m.env_tokens for m in members)),
    }


def drawn(groups: Sequence[Group]) -> int:
    """Tokens that engines sampled for the members; what was given to them is not counted."""
    return sum(m.num_tokens - m.given_tokens for g in groups for m in g.members)


def latency(members: Sequence[Trajectory], percentile: float) -> float:
    """Seconds within which that percentage of the scored members were scored; 0 if there are none."""
    spent = [m.outcome.seconds for m in members if m.outcome is not None]
    return float(np.percentile(spent, percentile)) if spent else 0.0


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """By how many versions the weights that drew a completion are older than those that learn from it:
    mean and largest over the completions, counted by the oldest of each."""
    members, _ = members_of(groups)
    ages = [version - m.version[0] for m in members if m.origin == "policy"]
    mixed = sum(m.version[0] != m.version[1] for m in members if m.origin == "policy")
    if not ages:
        return {}
    return {
        "staleness/mean": sum(ages) / len(ages),
        "staleness/max": max(ages),
        "staleness/mixed_share": mixed / len(ages),
    }


def reward_summary(members: Sequence[Trajectory]) -> dict[str, float]:
    """Mean, spread and named parts over members that have a reward, and the shares that do not."""
    rewards = np.array([m.reward for m in members if m.reward is not None], np.float64)
    kinds = [m.outcome.kind for m in members if m.outcome is not None]
    late = sum(m.outcome is not None and m.outcome.fault == "timeout" for m in members)
    out: dict[str, float] = {
        "reward/invalid": kinds.count("invalid") / max(1, len(kinds)),
        "reward/errors": kinds.count("error") / max(1, len(kinds)),
        "reward/timeouts": late / max(1, len(kinds)),
    }
    if len(rewards):
        out |= {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}
    parts: dict[str, list[float]] = {}
    for m in members:
        for name, value in (m.outcome.parts if m.outcome else {}).items():
            parts.setdefault(name, []).append(value)
    out |= {f"reward/{name}": float(np.mean(values)) for name, values in parts.items()}
    return out


def sample_rows(groups: Sequence[Group], step: int, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of `samples.jsonl` for the first completions of a step, whole groups together."""
    pairs = [(g.task, m) for g in groups for m in g.members][:_SAMPLES_A_STEP]
    for task, m in pairs:
        outcome = m.outcome
        yield {
            "step": step,
            "kind": kind,
            "id": m.id,
            "task": task.id,
            "prompt": task.prompt,
            "completion": m.text,
            "target": task.target,
            "reward": outcome.reward if outcome else None,
            "parts": dict(outcome.parts) if outcome else {},
            "outcome": outcome.kind if outcome else None,
            "origin": m.origin,
            "reason": outcome.reason if outcome else "",
            "tokens": m.num_tokens,
            "truncated": m.truncated,
            "version": list(m.version),
            **({"turns": list(m.turns)} if m.turns else {}),
        }


def token_rows(
    step: int, traces: Iterable[TokenTrace], members: Sequence[Trajectory], text: Text
) -> Iterator[dict[str, Any]]:
    """Rows of `tokens.jsonl`: a completion of `samples.jsonl`, token by token."""
    for trace in sorted(traces, key=lambda t: t.row):
        m = members[trace.row]
        yield {
            "step": step,
            "id": m.id,
            "task": m.task_id,
            "version": list(m.version),
            "tokens": text.pieces(trace.ids),
            "engine_logp": [round(float(x), 6) for x in trace.engine_logp],
            "learner_logp": [round(float(x), 6) for x in trace.learner_logp],
        }
