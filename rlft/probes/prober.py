"""The actor that probes: one policy after the other, each from its folder."""

from __future__ import annotations

import time
from pathlib import Path

from rlft import registry
from rlft.cluster import stacks
from rlft.config import Config
from rlft.probes.probe import Subject, probes_of
from rlft.seeding import Key


class Prober:
    """start: the folder of the policy that the run started from."""

    def __init__(self, name: str, cfg: Config, start: Path) -> None:
        self._where = stacks.register(name)
        self._cfg, self._start = cfg, start

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def measure(self, model: Path) -> dict[str, float]:
        """Every probe's numbers of the policy in the folder `model`, and what they took."""
        cfg, began = self._cfg, time.monotonic()
        env = registry.build("env", cfg.env)
        found: dict[str, float] = {}
        for probe in probes_of(cfg):
            key = Key(cfg.seed).child("probe", probe.called)
            numbers = probe(Subject(cfg, model, self._start, env, key))
            found |= {f"{probe.called}/{name}": float(x) for name, x in numbers.items()}
        return {**found, "time/probe_s": time.monotonic() - began}
