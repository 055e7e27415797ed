"""Probes beside a run: policies are written, handed to the prober, and their numbers picked up later.

A policy that was not measured when a run was interrupted is still in `probes/`, and is measured when it is
resumed. Rows of `probes.jsonl` are in the order of their steps.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlft.cluster.placement import KEEP_MEMORY
from rlft.cluster.waits import Owner, Waits, end
from rlft.config import Config
from rlft.errors import ActorDied, ActorFailed, DeadlineExceeded, UserError
from rlft.record.metrics import JsonLines

_PENDING = 2
"""Policies that may wait to be measured; with one more the run waits for the oldest."""

_LOST = (ActorDied, ActorFailed, DeadlineExceeded, UserError)


class Probing:
    """write: saves the policy as it is into a folder."""

    def __init__(
        self,
        cfg: Config,
        start: Path,
        folder: Path,
        waits: Waits,
        write: Callable[[Path], None],
    ) -> None:
        self._cfg, self._start, self._waits, self._write = cfg, start, waits, write
        self._folder = folder / "probes"
        self._rows = JsonLines(folder / "probes.jsonl")
        self._owner: Owner | None = None
        self._pending: deque[tuple[int, Path, Any]] = deque()

    def probe(self, step: int) -> float:
        """Hands over the policy after `step` steps; returns seconds that the run waited for others."""
        if not self._cfg.probes.fns:
            return 0.0
        model = self._folder / f"step_{step:06d}"
        beside = model.with_name(f".{model.name}")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(model, ignore_errors=True)
        beside.mkdir(parents=True)
        self._write(beside)
        beside.rename(model)
        self._ask(step, model)
        self.pick_up()
        began = time.monotonic()
        while len(self._pending) > _PENDING:
            self._take()
        return time.monotonic() - began

    def pick_up(self) -> None:
        """Writes down what has been measured."""
        import ray

        while self._pending and ray.wait([self._pending[0][2]], timeout=0)[0]:
            self._take()

    def resume(self, step: int) -> None:
        """Forgets what lies after `step`, and asks again for what was not measured before."""
        self._rows.forget_after(step)
        known = {row["step"] for row in self._rows.rows()}
        for model in sorted(self._folder.glob("step_*")):
            number = int(model.name.removeprefix("step_"))
            if number <= step and number not in known and self._cfg.probes.fns:
                self._ask(number, model)
            else:
                shutil.rmtree(model, ignore_errors=True)

    def finish(self) -> None:
        """Waits for all that is under way."""
        while self._pending:
            self._take()

    def close(self, lost: bool = False) -> None:
        """Ends the actor; what it has not measured stays in the folder. lost: it does not answer."""
        if self._owner is not None and (lost or self._pending):
            end(self._owner)
        # An idle one goes when nobody holds its handle: Ray would report a killed one as a crash.
        self._pending.clear()
        self._owner = None

    def _ask(self, step: int, model: Path) -> None:
        if self._owner is None:
            self._owner = self._started()
        handle: Any = self._owner.handle
        self._pending.append((step, model, handle.measure.remote(model)))

    def _take(self) -> None:
        step, model, ref = self._pending.popleft()
        assert self._owner is not None
        limit = self._cfg.deadlines.probe
        try:
            [numbers] = self._waits.get([(self._owner, ref)], "probes", limit)
            self._rows.append({"step": step, **numbers})
            if "failed" in numbers:
                self._say_failed(step, numbers["failed"])
        except _LOST as error:
            # What a probe says is not worth a run: the row says why it has no numbers.
            self._rows.append({"step": step, "failed": str(error)})
            self._say_failed(step, str(error))
            if not isinstance(error, ActorFailed | UserError):
                self._begin_again()
        shutil.rmtree(model, ignore_errors=True)

    def _say_failed(self, step: int, why: str) -> None:
        self._waits.say(f"probes of step {step} failed: {why.splitlines()[0]}")

    def _begin_again(self) -> None:
        """A new actor, which is asked for what the lost one had not begun."""
        waiting = [(step, model) for step, model, _ in self._pending]
        self.close(lost=True)
        for step, model in waiting:
            self._ask(step, model)

    def _started(self) -> Owner:
        import ray

        from rlft.probes.prober import Prober

        probes = self._cfg.probes
        env = {"OMP_NUM_THREADS": str(probes.threads), "TOKENIZERS_PARALLELISM": "false"}
        if not probes.gpus:
            env |= {"CUDA_VISIBLE_DEVICES": "", **KEEP_MEMORY}
        actor: Any = ray.remote(num_cpus=0)(Prober)
        options = {"num_gpus": probes.gpus, "max_restarts": 0, "runtime_env": {"env_vars": env}}
        handle = actor.options(**options).remote("prober", self._cfg, self._start)
        owner = Owner("prober", handle)
        asked = [(owner, handle.whereabouts.remote())]
        [where] = self._waits.get(asked, "starting", self._cfg.deadlines.start)
        return Owner("prober", handle, where=where)
