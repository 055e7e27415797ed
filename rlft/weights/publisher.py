"""Publishing on the driver: learner to engines, then both proofs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlft import registry
from rlft.cluster.fleet import Asked, Fleet, Question
from rlft.cluster.waits import Owner
from rlft.config import Config
from rlft.errors import ActorDied, SourceLost
from rlft.types import WeightUpdate
from rlft.weights.proof import CanaryWatch


@dataclass(frozen=True, slots=True)
class Sent:
    """Weights that samplers were asked to take. canary: what the learner was asked to say of it already."""

    update: WeightUpdate
    asked: Asked
    canary: list[tuple[Owner, Any]] | None


class Publisher:
    """Moves every sampler to the learner's weights. canary: token ids `[L]` to compare them on; in_order:
    samplers do one thing after the other, so that weights wait for what they were asked before. Ahead
    (`later`) the learner then need not wait with them: `prove` may come after further publishes."""

    def __init__(
        self, cfg: Config, fleet: Fleet, canary: list[int], *, in_order: bool = False
    ) -> None:
        self._fleet, self._canary, self._limit_s = fleet, canary, cfg.deadlines.publish
        self._watch = CanaryWatch(cfg.model.dtype, cfg.publish.canary_tolerance)
        self._transport = registry.resolve("transport", cfg.publish.transport)
        self._ahead, self._jobs = cfg.max_staleness > 0, itertools.count()
        self.later = in_order and self._ahead
        self._adopt_limit_s = self._limit_s + (fleet.limit_s("rollout") if self.later else 0)
        self._held: WeightUpdate | None = None
        self._own: np.ndarray | None = None
        # What newcomers said of weights that had not been compared yet: (of which, who, answer).
        self._unproved: list[tuple[WeightUpdate, str, np.ndarray]] = []
        if self._transport.meets and fleet.samplers:
            # A newcomer cannot join engines that have met: then all of them are started again.
            self._meet(cfg)
        else:
            fleet.catch_up = self.catch_up

    def _meet(self, cfg: Config) -> None:
        """Brings learner rank 0 and every engine together, once, before the first version."""
        fleet, limit, args = self._fleet, self._limit_s, cfg.sampler.engine_args
        workers = args.get("tensor_parallel_size", 1) * args.get("pipeline_parallel_size", 1)
        opened = [(o, o.handle.open.remote(len(fleet.samplers), workers)) for o in fleet.learners]
        meeting = fleet.waits.get(opened, "opening the transport", limit)[0]
        first = fleet.learners[0]
        joining = [(first, first.handle.meet.remote(meeting))]
        joining += [(o, o.handle.meet.remote(meeting, i)) for i, o in enumerate(fleet.samplers)]
        fleet.waits.get(joining, "joining the transport", limit)

    def send(self, version: int) -> float:
        """Publishes the weights as `version`; returns the largest canary gap in nats.

        Raises WeightsMismatch when an engine was not handed, or does not use, what was published.
        """
        return self.prove(self.begin(version))

    def begin(self, version: int, then: Callable[[], None] = lambda: None) -> Sent:
        """Asks every sampler to take the weights as `version`. then: called when all are asked, before any
        has answered. What it returns is to be proved, in order."""
        fleet, limit = self._fleet, self._limit_s
        if not self._ahead:
            # Given up before the next is stored: the object store holds one version, not two. Ahead,
            # a sampler may be replaced meanwhile and needs the last.
            self._held = self._own = None
        calls = [(o, o.handle.send.remote(version)) for o in fleet.learners]
        if self._transport.concurrent:
            calls += [(o, self._of_sampler("take")(o.handle)) for o in fleet.samplers]
        sent = fleet.waits.get(calls, "publish", limit)[0]
        # One call: two would wait twice for a sampler that is in the middle of something.
        adopt = self._of_sampler("adopt", sent, sent.source, self._canary)
        if sent.kind == "noise":
            adopt = self._replay_or_load(sent)

        def put() -> None:
            if not self._transport.meets:
                # Who is started from now on takes these, before the step that they allow.
                self._held, self._own = sent, None
            then()

        asked = fleet.put([(o, adopt) for o in fleet.samplers], put)
        # Before the learner moves on. Where it waits for the samplers, after their loads and not beside
        # them: on a CPU the threads of both would spin against each other.
        return Sent(sent, asked, self._asked_learners() if self.later else None)

    def prove(self, sent: Sent, *, last: bool = False) -> float:
        """Waits until every sampler has taken what was sent; returns the largest canary gap in nats. last:
        nobody samples any more, so who is lost is not started again.

        Raises WeightsMismatch when an engine was not handed, or does not use, what was published.
        """
        fleet, limit = self._fleet, self._limit_s
        names = [owner.name for owner in sent.asked.owners]
        gather = fleet.gather_left if last else fleet.gather
        answers = gather(sent.asked, "publish", self._adopt_limit_s)
        if self._transport.meets:
            fleet.all(fleet.learners[:1], "release", what="publish", deadline_s=limit)
        own = fleet.waits.get(sent.canary or self._asked_learners(), "canary", limit)[0]
        known = {n: a for n, a in zip(names, answers, strict=True) if a is not None}
        with fleet.undisturbed():
            # Each apart: who was lost and who came in its place have one name, and both may have sampled.
            of_newcomers = [{n: a} for of, n, a in self._unproved if of is sent.update]
            self._unproved = [u for u in self._unproved if u[0].version > sent.update.version]
            gaps = [
                self._watch.check(own, said, sent.update.manifest)
                for said in (known, *of_newcomers)
            ]
            if self._held is sent.update:
                self._own = own
        return max(gaps)

    def _asked_learners(self) -> list[tuple[Owner, Any]]:
        return [(o, o.handle.canary.remote(self._canary)) for o in self._fleet.learners]

    def _replay_or_load(self, sent: WeightUpdate) -> Question:
        """A step for samplers that hold its base; the weights for one that is started meanwhile."""
        holders = {sampler.handle for sampler in self._fleet.samplers}

        def ask(handle: Any) -> Any:
            update = sent if handle in holders else self._snapshot(sent.version)
            return handle.adopt.remote(update, update.source, self._canary)

        return ask

    def _snapshot(self, version: int) -> WeightUpdate:
        """The weights of `version`, which the learner still holds."""
        first = self._fleet.learners[0]
        asked = [(first, first.handle.snapshot.remote(version))]
        try:
            return self._fleet.waits.get(asked, "a snapshot", self._limit_s)[0]
        except ActorDied as error:  # the learner, not the sampler that is to be caught up
            raise SourceLost(str(error)) from error

    def _of_sampler(self, method: str, *args: Any) -> Question:
        """Asks for `method(*args)`: now, or between two tokens if samplers may be decoding."""
        if not self._ahead:
            return lambda handle: getattr(handle, method).remote(*args)

        def ask(handle: Any) -> Any:
            job = next(self._jobs)
            handle.serve.remote(job)
            return handle.between.remote(job, method, *args)

        return ask

    def catch_up(self, newcomer: Owner) -> None:
        """Brings a new sampler to the version that the others hold or were sent, with both proofs: what is
        being published is compared by `prove`. Called while nobody asks anything (`Fleet.undisturbed`).

        Before the first publish, and in turn from the moment that the learner is asked for a version, it
        holds nothing yet and is sent that version like the others.
        """
        sent, waits, limit = self._held, self._fleet.waits, self._limit_s
        if sent is None:
            return
        held = self._snapshot(sent.version) if sent.kind == "noise" else sent
        waits.get(
            [(newcomer, newcomer.handle.load.remote(held, held.source))], "catching up", limit
        )
        scoring = [(newcomer, newcomer.handle.score.remote(self._canary))]
        [answer] = waits.get(scoring, "canary", limit)
        if self._own is None:
            self._unproved.append((sent, newcomer.name, answer))
        else:
            self._watch.check(self._own, {newcomer.name: answer}, held.manifest)
