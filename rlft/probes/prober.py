"""The actor that probes: one policy after the other, each from its folder."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.cluster import stacks
from rlft.config import Config
from rlft.errors import RlftError
from rlft.probes.probe import Subject, probes_of
from rlft.seeding import Key


class Prober:
    """start: the folder of the policy that the run started from."""

    def __init__(self, name: str, cfg: Config, start: Path) -> None:
        self._where = stacks.register(name)
        self._cfg, self._start = cfg, start

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def measure(self, model: Path) -> dict[str, Any]:
        """Every probe's numbers of the policy in the folder `model`, and what they took; `failed` says of
        probes without numbers why they have none."""
        cfg, began = self._cfg, time.monotonic()
        env = registry.build("env", cfg.env)
        found: dict[str, Any] = {}
        failed: list[str] = []
        for probe in probes_of(cfg):
            key = Key(cfg.seed).child("probe", probe.called)
            try:
                numbers = probe(Subject(cfg, model, self._start, env, key))
                found |= {f"{probe.called}/{name}": float(x) for name, x in numbers.items()}
            except RlftError as error:
                failed.append(f"{probe.called}: {error}")
            except Exception as error:  # the other probes are not lost for it
                said = "".join(traceback.format_exception(error))
                failed.append(f"{probe.called}: {type(error).__name__}: {error}\n{said}")
        if failed:
            found["failed"] = "\n".join(failed)
        return {**found, "time/probe_s": time.monotonic() - began}
