"""Publishing on the driver: learner to engines, then both proofs."""

from __future__ import annotations

from rlft import registry
from rlft.cluster.fleet import Fleet
from rlft.config import Config
from rlft.weights.proof import CanaryWatch


class Publisher:
    """Moves every sampler to the learner's weights. canary: token ids `[L]` to compare them on."""

    def __init__(self, cfg: Config, fleet: Fleet, canary: list[int]) -> None:
        self._fleet, self._canary, self._limit_s = fleet, canary, cfg.deadlines.publish
        self._watch = CanaryWatch(cfg.model.dtype, cfg.publish.canary_tolerance)
        self._transport = registry.resolve("transport", cfg.publish.transport)
        if self._transport.meets and fleet.samplers:
            self._meet(cfg)

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
        fleet, limit = self._fleet, self._limit_s
        calls = [(o, o.handle.send.remote(version)) for o in fleet.learners]
        if self._transport.concurrent:
            calls += [(o, o.handle.take.remote()) for o in fleet.samplers]
        sent = fleet.waits.get(calls, "publish", limit)[0]
        fleet.all(fleet.samplers, "load", sent, sent.source, what="publish", deadline_s=limit)
        if self._transport.meets:
            fleet.all(fleet.learners[:1], "release", what="publish", deadline_s=limit)
        own = [(o, o.handle.canary.remote(self._canary)) for o in fleet.learners]
        theirs = [(o, o.handle.score.remote(self._canary)) for o in fleet.samplers]
        answers = fleet.waits.get([*own, *theirs], "canary", limit)
        engines = {o.name: a for (o, _), a in zip(theirs, answers[len(own) :], strict=True)}
        return self._watch.check(answers[0], engines, sent.manifest)
