"""The run folder: where it is, and what is written before step 0."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rlft.config import Config, dump_config
from rlft.errors import CheckpointError, ConfigError
from rlft.record.environment import environment


def new_folder(cfg: Config) -> Path:
    """A new run folder: `<run_root>/<name>/<date-time>`, absolute."""
    parent = Path(cfg.run_root).expanduser().resolve() / cfg.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, extra = parent / stamp, 1
    while folder.exists():
        extra += 1
        folder = parent / f"{stamp}-{extra}"
    return folder


def latest_folder(cfg: Config) -> Path:
    """The newest run folder of this name. Raises CheckpointError when there is none."""
    parent = Path(cfg.run_root).expanduser().resolve() / cfg.name
    found = sorted(p for p in parent.glob("*") if (p / "config.yaml").is_file())
    if not found:
        raise CheckpointError(f"nothing to resume: no run in {parent}; run without --resume")
    return found[-1]


def open_folder(cfg: Config, folder: Path, resume: bool) -> None:
    """Writes the resolved configuration and the versions before anything else happens."""
    if not resume and (folder / "metrics.jsonl").exists():
        raise ConfigError(
            f"{folder} already holds a run; continue it with --resume, or choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(cfg))
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
