"""Every blocking wait: with a name, an owner and a deadline.

Late waits are mentioned (`step 4: waiting 31 s for sampler 1, 12 of 32 completions`). At the deadline
the wait is an error that names the owner, and the owner's stacks are saved. This is the only file
that calls `ray.get`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlft.cluster import stacks
from rlft.errors import Abandoned, ActorDied, ActorFailed, DeadlineExceeded, RlftError, SourceLost

_SLICE_S = 1.0
"""How often a wait looks up: errors of one owner surface this soon while others still work."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who is waited for. unit: what its `progress` counts; where: for its stacks, once known."""

    name: str
    handle: Any = None
    unit: str = ""
    where: stacks.Whereabouts | None = None


@dataclass(slots=True)
class _Wait:
    """One reference that is waited for, whose it is, and since when."""

    owner: Owner
    ref: Any
    began: float


Revive = Callable[[int, RlftError], tuple[Owner, Any]]
"""Given the place of a wait and what ended it (death or deadline), returns whom and what to wait for in
its stead, or raises."""

Then = Callable[[int, Any], tuple[Owner, Any] | None]
"""Given the place of a wait and its value, returns whom and what to wait for next there, or None."""


class Waits:
    """The waits of one process. `say` prints a line; stacks are saved below `folder`."""

    def __init__(self, say: Callable[[str], None], folder: Path, notice_s: float) -> None:
        self.stage = "start"
        self.say = say
        self._folder, self._notice_s = folder, notice_s
        self._abandoned: set[int] = set()

    def abandon(self, thread: int) -> None:
        """Ends the waits of the thread with this identity, within a second: its loop has ended."""
        self._abandoned.add(thread)

    def get(
        self,
        pending: Sequence[tuple[Owner, Any]],
        what: str,
        deadline_s: float,
        revive: Revive | None = None,
        then: Then | None = None,
    ) -> list[Any]:
        """Values of the references in `pending`, in order; with `then`, the last value of each place.

        Raises DeadlineExceeded naming who is late, ActorDied naming whose process is gone or frozen,
        ActorFailed naming who raised; an error of our own family is raised as it is. A death and a
        deadline go to `revive` instead, if given; the new wait has a deadline of its own. SourceLost does
        not: what an owner was to take is gone.
        """
        began = time.monotonic()
        waits = [_Wait(owner, ref, began) for owner, ref in pending]
        values: dict[int, Any] = {}
        next_notice = self._notice_s
        while left := [place for place in range(len(waits)) if place not in values]:
            if threading.get_ident() in self._abandoned:
                raise Abandoned(f"{self.stage}: nobody needs {what} any more")
            spent = time.monotonic() - min(waits[place].began for place in left)
            pause = max(0.01, min(_SLICE_S, deadline_s - spent))
            few = len(left) if then is None else 1
            refs = [waits[p].ref for p in left]
            ray.wait(refs, num_returns=few, timeout=pause)
            # All that are ready: of the others, who is late is taken for lost.
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            done, now = set(ready), time.monotonic()
            late = [
                p for p in left if waits[p].ref not in done and now - waits[p].began >= deadline_s
            ]
            if late and revive is None:
                raise self._expired([waits[p] for p in late], what)
            notice = now - began >= next_notice
            for place in left:
                wait = waits[place]
                try:
                    if wait.ref in done:
                        value = self._fetch(wait.owner, wait.ref, what)
                        following = then(place, value) if then else None
                        if following is None:
                            values[place] = value
                        else:
                            waits[place] = _Wait(*following, time.monotonic())
                    elif place in late:
                        raise self._expired([wait], what)
                    else:
                        self._look_after(wait, what, notice)
                except (ActorDied, DeadlineExceeded) as error:
                    if revive is None:
                        raise
                    wait.owner, wait.ref = revive(place, error)
                    wait.began = time.monotonic()
            if notice:
                next_notice = time.monotonic() - began + self._notice_s
        return [values[place] for place in range(len(waits))]

    def _fetch(self, owner: Owner, ref: Any, what: str) -> Any:
        try:
            return ray.get(ref, timeout=60)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RlftError):
                raise cause from None
            if isinstance(cause, ray.exceptions.ObjectLostError):
                raise SourceLost(
                    f"{self.stage}: {owner.name} could not take what it was sent at {what}: whoever made "
                    f"it is gone ({cause})"
                ) from None
            raise ActorFailed(f"{self.stage}: {owner.name} failed at {what}:\n{error}") from None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            raise ActorDied(f"{self.stage}: {owner.name} died at {what}: {error}") from None

    def _look_after(self, wait: _Wait, what: str, notice: bool) -> None:
        """Mentions a late wait if it is time to; raises ActorDied if its owner is frozen."""
        owner, waited = wait.owner, time.monotonic() - wait.began
        if owner.where is not None and self._is_frozen(owner.where, notice):
            raise ActorDied(
                f"{self.stage}: {owner.name} is frozen at {what}: process {owner.where.pid} was "
                f"stopped by a signal{self._save_stacks(owner)}"
            )
        if notice:
            self.say(f"{self.stage}: {self._late(owner, what, waited)}")

    def _is_frozen(self, where: stacks.Whereabouts, notice: bool) -> bool:
        if where.node_id == ray.get_runtime_context().get_node_id():
            return stacks.stays_stopped(where)
        # Elsewhere it takes a process to look, so that is done when it is late.
        return notice and _over_there(where, stacks.stays_stopped, False)

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

    def _expired(self, waits: Sequence[_Wait], what: str) -> DeadlineExceeded:
        said = [
            self._late(w.owner, what, time.monotonic() - w.began) + self._save_stacks(w.owner)
            for w in waits
        ]
        return DeadlineExceeded(
            f"{self.stage}: deadline passed: {'; '.join(said)}. "
            f"If it was only slow, raise its limit under `deadlines:`."
        )

    def _save_stacks(self, owner: Owner) -> str:
        """Saves what the owner is doing; returns a clause that says where."""
        if owner.where is None:
            return ""
        path = self._folder / f"{owner.name.replace(' ', '_')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_over_there(owner.where, stacks.dump, "its node does not answer"))
        return f"; its stacks are in {path}"


def fetch(refs: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
    """Values of object-store references, for an actor that needs data of another process."""
    try:
        return ray.get(list(refs), timeout=deadline_s)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineExceeded(
            f"{what}: not in the object store after {deadline_s:.0f} s"
        ) from None


def end(owner: Owner) -> None:
    """Ends an actor for good, a frozen one too: Ray asks first, and then waits some seconds."""
    ray.kill(owner.handle, no_restart=True)
    if owner.where is not None:
        _over_there(owner.where, stacks.end, None)


def _over_there(
    where: stacks.Whereabouts, act: Callable[[stacks.Whereabouts], Any], else_: Any
) -> Any:
    """`act(where)`, done on the node of `where`; `else_` if that node does not answer."""
    if where.node_id == ray.get_runtime_context().get_node_id():
        return act(where)
    there = NodeAffinitySchedulingStrategy(where.node_id, soft=False)
    task = ray.remote(num_cpus=0)(act).options(scheduling_strategy=there)
    try:
        return ray.get(task.remote(where), timeout=30)
    except ray.exceptions.RayError:
        return else_
