"""Transports and engines with one planted fault each; a run must stop and name it."""

from rlft.sampling.transformers import TransformersEngine
from rlft.weights.object_store import ObjectStore

DROPPED = "model.layers.0.mlp.up_proj.weight"
SWAPPED = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight")


class FaultyTransport(ObjectStore):
    """Loses a tensor on the way, and hands two others over under each other's names."""

    def receive(self, update, payload):
        other = dict(zip(SWAPPED, reversed(SWAPPED), strict=True))
        held = super().receive(update, payload)
        return ((other.get(n, n), t) for n, t in held if n != DROPPED)


class StaleEngine(TransformersEngine):
    """Takes everything it is handed, and uses only the first lot."""

    loads = 0

    def load(self, tensors):
        held = list(tensors)
        self.loads += 1
        if self.loads == 1:
            super().load(held)


class MixingEngine(TransformersEngine):
    """Puts two layers' weights into each other's places after a correct hand-over."""

    def load(self, tensors):
        held = dict(tensors)
        held[SWAPPED[0]], held[SWAPPED[1]] = held[SWAPPED[1]], held[SWAPPED[0]]
        super().load(held.items())
