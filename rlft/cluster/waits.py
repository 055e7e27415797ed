"""Every blocking wait: with a name, an owner and a deadline.

Late waits are mentioned (`step 4: waiting 31 s for sampler 1, 12 of 32 completions`). At the deadline
the wait is an error that names the owner, and the owner's stacks are saved. This is the only file
that calls `ray.get`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlft.cluster import stacks
from rlft.errors import ActorFailed, DeadlineExceeded, RlftError

_SLICE_S = 1.0
"""How often a wait looks up: errors of one owner surface this soon while others still work."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who is waited for. unit: what its `progress` counts; where: for its stacks, once known."""

    name: str
    handle: Any = None
    unit: str = ""
    where: stacks.Whereabouts | None = None


class Waits:
    """The waits of one process. `say` prints a line; stacks are saved below `folder`."""

    def __init__(self, say: Callable[[str], None], folder: Path, notice_s: float) -> None:
        self.stage = "start"
        self.waited: dict[str, float] = {}
        self._say, self._folder, self._notice_s = say, folder, notice_s

    def get(self, pending: Sequence[tuple[Owner, Any]], what: str, deadline_s: float) -> list[Any]:
        """Values of the references in `pending`, in order.

        Raises DeadlineExceeded naming who is late, ActorFailed naming who died or raised; an error of
        our own family is raised as it is.
        """
        began = time.monotonic()
        next_notice = self._notice_s
        owner_of = {ref: owner for owner, ref in pending}
        left = list(owner_of)
        while left:
            left_s = deadline_s - (time.monotonic() - began)
            ready, late = ray.wait(
                left, num_returns=len(left), timeout=max(0.01, min(_SLICE_S, left_s))
            )
            for ref in ready:
                self._fetch(owner_of[ref], ref, what)  # raises what it raised, before others finish
            left = late
            waited = time.monotonic() - began
            if left and waited >= deadline_s:
                self._give_up([owner_of[ref] for ref in left], what, waited)
            if left and waited >= next_notice:
                next_notice = waited + self._notice_s
                for ref in left:
                    self._say(f"{self.stage}: {self._late(owner_of[ref], what, waited)}")
        self.waited[what] = self.waited.get(what, 0.0) + time.monotonic() - began
        return [self._fetch(owner, ref, what) for owner, ref in pending]

    def _fetch(self, owner: Owner, ref: Any, what: str) -> Any:
        try:
            return ray.get(ref, timeout=60)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RlftError):
                raise cause from None
            raise ActorFailed(f"{self.stage}: {owner.name} failed at {what}:\n{error}") from None
        except ray.exceptions.RayActorError as error:
            raise ActorFailed(f"{self.stage}: {owner.name} died at {what}: {error}") from None

    def _late(self, owner: Owner, what: str, waited: float) -> str:
        text = f"waiting {waited:.0f} s for {owner.name}"
        if owner.handle is not None and owner.unit:
            try:
                done, asked = ray.get(owner.handle.progress.remote(), timeout=2)
                if asked:
                    return f"{text}, {done} of {asked} {owner.unit}"
            except ray.exceptions.RayError:
                busy = (
                    "still importing or loading" if self.stage == "start" else "it does not answer"
                )
                return f"{text} ({what}; {busy})"
        return f"{text} ({what})"

    def _give_up(self, owners: list[Owner], what: str, waited: float) -> None:
        lines = []
        for owner in owners:
            line = self._late(owner, what, waited)
            if owner.where is not None:
                path = self._folder / f"{owner.name.replace(' ', '_')}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_dump_anywhere(owner.where))
                line += f"; its stacks are in {path}"
            lines.append(line)
        raise DeadlineExceeded(
            f"{self.stage}: deadline passed: {'; '.join(lines)}. "
            f"If it was only slow, raise its limit under `deadlines:`."
        )


def fetch(refs: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
    """Values of object-store references, for an actor that needs data of another process."""
    try:
        return ray.get(list(refs), timeout=deadline_s)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineExceeded(
            f"{what}: not in the object store after {deadline_s:.0f} s"
        ) from None


def _dump_anywhere(where: stacks.Whereabouts) -> str:
    if where.node_id == ray.get_runtime_context().get_node_id():
        return stacks.dump(where)
    there = NodeAffinitySchedulingStrategy(where.node_id, soft=False)
    task = ray.remote(num_cpus=0)(stacks.dump).options(scheduling_strategy=there)
    try:
        return ray.get(task.remote(where), timeout=30)
    except ray.exceptions.RayError as error:
        return f"no stacks: {error}"
