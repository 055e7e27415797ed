"""Publishing on the driver: learner to engines, then both proofs."""

from __future__ import annotations

from rlft.cluster.fleet import Fleet
from rlft.config import Config
from rlft.weights.proof import CanaryWatch


class Publisher:
    """Moves every sampler to the learner's weights. canary: token ids `[L]` to compare them on."""

    def __init__(self, cfg: Config, fleet: Fleet, canary: list[int]) -> None:
        self._fleet, self._canary, self._limit_s = fleet, canary, cfg.deadlines.publish
        self._watch = CanaryWatch(cfg.model.dtype, cfg.publish.canary_tolerance)

    def send(self, version: int) -> float:
        """Publishes the weights as `version`; returns the largest canary gap in nats.

        Raises WeightsMismatch when an engine was not handed, or does not use, what was published.
        """
        fleet, limit = self._fleet, self._limit_s
        sent = fleet.all(fleet.learners, "send", version, what="publish", deadline_s=limit)[0]
        fleet.all(fleet.samplers, "load", sent, sent.source, what="publish", deadline_s=limit)
        own = [(o, o.handle.canary.remote(self._canary)) for o in fleet.learners]
        theirs = [(o, o.handle.score.remote(self._canary)) for o in fleet.samplers]
        answers = fleet.waits.get([*own, *theirs], "canary", limit)
        engines = {o.name: a for (o, _), a in zip(theirs, answers[len(own) :], strict=True)}
        return self._watch.check(answers[0], engines, sent.manifest)
