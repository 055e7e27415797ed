"""What a probe owes the framework, and the probes of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.seeding import Key


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed. model: the folder of the policy as it is now; start: of the one that the run started
    from; env: the run's environment plug-in; key: the same at every step, so that curves are of equal
    episodes."""

    cfg: Config
    model: Path
    start: Path
    env: Any
    key: Key

    @property
    def device(self) -> str:
        """Where the probing actor computes."""
        return "cuda" if self.cfg.probes.gpus else "cpu"


class ForgettingProbe:
    """Base of probes: frozen dataclasses. acting, writing: for which kinds of policy; called: what its
    numbers are named after, `<called>/<number>`."""

    acting: ClassVar[bool] = True
    writing: ClassVar[bool] = True

    called: str

    def check(self, cfg: Config, env: Any) -> None:
        """Raises ConfigError or DataError for what can be known to be wrong before any work starts."""

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        """What it measures, by name."""
        raise NotImplementedError


def probes_of(cfg: Config) -> list[ForgettingProbe]:
    """The probes of a configuration. Raises ConfigError or PluginError."""
    found = []
    for spec in cfg.probes.fns:
        one = registry.build("probe", spec)
        if not isinstance(one, ForgettingProbe):
            raise ConfigError(
                f"probes.fns: {spec!r:.80} made a {type(one).__name__}, expected a "
                f"rlft.probes.probe.ForgettingProbe"
            )
        if not isinstance(getattr(one, "called", None), str):
            raise ConfigError(
                f"probes.fns: {type(one).__name__} has no `called`; give it a field `called: str = ...`, "
                f"which its numbers are named after"
            )
        found.append(one)
    return found


def check_probes(cfg: Config, algo: Algo, env: Any) -> None:
    """Raises ConfigError or DataError: two probes of one name, one of another kind of policy, or one that
    cannot work here."""
    probes = probes_of(cfg)
    names = [one.called for one in probes]
    beside = cfg.probes.scratch
    if beside is not None and not (Path(beside) / "probes.jsonl").is_file():
        raise ConfigError(
            f"probes.scratch: {beside!r} is no run folder with a probes.jsonl; give the folder of a run "
            f"from nothing that had the same probes"
        )
    for one in probes:
        if names.count(one.called) > 1:
            raise ConfigError(
                f"probes.fns: two probes are called {one.called!r}; give one another name, `called: ...`"
            )
        if not (one.acting if algo.acts else one.writing):
            what = "acts" if algo.acts else "writes"
            raise ConfigError(f"probes.fns: {type(one).__name__} is not for a policy that {what}")
        one.check(cfg, env)
