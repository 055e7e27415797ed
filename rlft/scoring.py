"""Scoring on the driver: what becomes of groups whose rewards failed, and the account of a step.

`rewards.jsonl` has a line for each time that groups were scored: counts, reasons of invalid answers,
latency, the slowest completions, the first failure, and the end of what the functions printed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlft.collect import Collector
from rlft.config import Rewards
from rlft.errors import RewardFailed
from rlft.filters import members_of
from rlft.record.metrics import JsonLines
from rlft.record.summary import latency
from rlft.rewards.scorer import Scored
from rlft.seeding import Key
from rlft.types import Group, Trajectory

_SLOWEST = 3
_REASONS = 20
"""Reasons of invalid answers that are told apart; the rarer ones are counted together."""

_SHOWN = 200
"""Characters of a slow completion that are shown."""


class Scoring:
    """Outcomes for groups. key: the run's, from which the seeds of replacements are derived."""

    def __init__(
        self,
        rewards: Rewards,
        collector: Collector,
        folder: Path,
        key: Key,
        say: Callable[[str], None],
    ) -> None:
        self.account = JsonLines(folder / "rewards.jsonl")
        self._rewards, self._collector = rewards, collector
        self._key, self._say = key, say
        self._restarts = 0

    def outcomes(self, groups: Sequence[Group], step: int, kind: str) -> list[Group]:
        """The same groups with an outcome on every member; kind: `train`, `refill` or `eval`."""
        scored, answers = self._collector.outcomes(groups)
        if kind != "eval":
            self._restarts += sum(a.restarts for a in answers)
        self.account.append({"step": step, "kind": kind, **account(scored, answers)})
        return scored

    def restarts(self) -> int:
        """Reward processes that were replaced in training steps since this was last asked."""
        count, self._restarts = self._restarts, 0
        return count

    def stop_if_too_many_failed(self, groups: Sequence[Group], step: int) -> None:
        """Says how many failed and why the first did. Raises RewardFailed beyond the allowed share."""
        members, _ = members_of(groups)
        failed = [m.outcome for m in members if m.outcome and m.outcome.kind == "error"]
        if not failed:
            return
        message = (
            f"step {step}: {len(failed)} of {len(members)} rewards failed; the first:\n"
            f"{failed[0].reason}"
        )
        limit = self._rewards.max_error_share
        if len(failed) > limit * len(members):
            raise RewardFailed(
                f"{message}\nMore than rewards.max_error_share={limit:g} of the step: stopping. A failed "
                f"reward is never counted as 0."
            )
        self._say(message)

    def refilled(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The groups with others, scored, behind members whose reward failed, which stay to be counted.

        In at most `rewards.refill_tries` rounds; whatever is missing then stays missing. A replacement's
        seed depends on the member it stands for and on the round alone. Members that were given
        something (demonstrations, prefixes) are not replaced: sampling gives none.
        """
        filled = list(groups)
        missing = [(at, m) for at, g in enumerate(groups) for m in g.members if _to_replace(m)]
        for round_ in range(1, self._rewards.refill_tries + 1):
            if not missing:
                break
            first = missing[0][1]
            key = self._key.child("refill", *first.version, f"refill-{first.id}-{round_}")
            tasks = [groups[at].task for at, _ in missing]
            sampled = self._collector.sample(tasks, 1, key, False, None)
            again = []
            for (at, lost), one in zip(
                missing, self.outcomes(sampled, step, "refill"), strict=True
            ):
                members = (*filled[at].members, *one.members)
                filled[at] = dataclasses.replace(filled[at], members=members)
                if one.members[0].reward is None:
                    again.append((at, lost))
            missing = again
        return filled


def _to_replace(member: Trajectory) -> bool:
    return member.reward is None and member.origin == "policy"


def account(groups: Sequence[Group], answers: Sequence[Scored]) -> dict[str, Any]:
    """What one scoring was like, as plain values; shares are in the metrics, counts are here."""
    pairs = [(g.task, m, m.outcome) for g in groups for m in g.members if m.outcome is not None]
    kinds = Counter(o.kind for _, _, o in pairs)
    faults = Counter(o.fault for _, _, o in pairs)
    reasons = Counter(o.reason for _, _, o in pairs if o.kind == "invalid")
    told = dict(reasons.most_common(_REASONS))
    if rest := reasons.total() - sum(told.values()):
        told["(other reasons)"] = rest
    members = [m for _, m, _ in pairs]
    slowest = sorted(pairs, key=lambda pair: -pair[2].seconds)[:_SLOWEST]
    return {
        "calls": len(pairs),
        "values": kinds["value"],
        "invalid": kinds["invalid"],
        "errors": kinds["error"],
        "timeouts": faults["timeout"],
        "died": faults["died"],
        "restarts": sum(a.restarts for a in answers),
        "invalid_reasons": told,
        "p50_s": latency(members, 50),
        "p99_s": latency(members, 99),
        "slowest": [
            {"task": t.id, "seconds": o.seconds, "outcome": o.kind, "completion": m.text[:_SHOWN]}
            for t, m, o in slowest
        ],
        "first_error": next((o.reason for _, _, o in pairs if o.kind == "error"), None),
        "printed": next((a.printed for a in answers if a.printed), ""),
    }
