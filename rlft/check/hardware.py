"""What a run would have: the machine here, or the one that `--assume 8xH100` names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rlft.cluster.session import private_resources
from rlft.config import Config
from rlft.errors import ConfigError, did_you_mean

KNOWN_GIB = {
    "A10": 22.5,
    "A10G": 22.5,
    "A100": 80.0,
    "A100-40GB": 40.0,
    "A6000": 48.0,
    "B200": 179.1,
    "H100": 79.6,
    "H200": 140.4,
    "L4": 22.5,
    "L40S": 45.0,
    "RTX3090": 24.0,
    "RTX4090": 24.0,
    "RTX5090": 31.8,
    "T4": 15.0,
    "V100": 16.0,
    "V100-32GB": 32.0,
}
"""Memory as `nvidia-smi` reports it, in GiB. It is a little less than what the name of the card says."""

CORES_PER_GPU = 8
"""Cores that an assumed machine has for each of its GPUs; `cluster.cpus` says otherwise."""

_ASSUMED = re.compile(r"(?:(\d+)x)?(\d+)x(?:([A-Za-z][\w-]*)|([\d.]+)\s*(GiB|GB))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hardware:
    """gpus: on each of `nodes` nodes, with `gpu_gib` each; cores, host_gib: of all nodes together.

    host_gib is None where it is not known. what: in words.
    """

    what: str
    nodes: int
    gpus: int
    gpu_gib: float
    cores: float
    host_gib: float | None

    @property
    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        return {"CPU": self.cores, "GPU": float(self.nodes * self.gpus)}


def assumed(text: str, cfg: Config) -> Hardware:
    """The hardware of `8xH100`, `2x8xH100` (two nodes) or `4x24GiB`. Raises ConfigError."""
    match = _ASSUMED.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"--assume {text!r}: expected COUNTxDEVICE, NODESxCOUNTxDEVICE or COUNTxMEMORY, e.g. "
            f"8xH100, 2x8xH100 or 4x24GiB"
        )
    nodes, count, name, memory, unit = match.groups()
    if name is None:
        gib = float(memory) * (1.0 if unit.lower() == "gib" else 1e9 / 2**30)
        name = f"GPU of {gib:.1f} GiB"
    else:
        known = {key.lower(): key for key in KNOWN_GIB}
        if name.lower() not in known:
            raise ConfigError(
                f"--assume {text!r}: unknown device {name!r}.{did_you_mean(name, KNOWN_GIB)} Known: "
                f"{', '.join(KNOWN_GIB)}; of another, give the memory: {count}x24GiB"
            )
        name = known[name.lower()]
        gib = KNOWN_GIB[name]
    total = int(nodes or 1) * int(count)
    if not total or not gib:
        raise ConfigError(f"--assume {text!r}: expected at least one device with some memory")
    what = f"assumed: {nodes or 1} node{'s' * (int(nodes or 1) != 1)} x {count} {name}"
    cores = float(cfg.cluster.cpus or CORES_PER_GPU * total)
    return Hardware(what, int(nodes or 1), int(count), gib, cores, None)


def present(cfg: Config) -> Hardware | None:
    """The hardware of this machine; None if the run would join a cluster that is there already."""
    here = private_resources(cfg)
    if here is None:
        return None
    import torch

    gpus = torch.cuda.device_count()
    gib = min((torch.cuda.mem_get_info(i)[1] for i in range(gpus)), default=0) / 2**30
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return Hardware("on this machine", 1, gpus, gib, here["CPU"], host)
