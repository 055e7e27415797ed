"""The run folder: where it is, whose it is, and what is written before step 0."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlft.config import Config, dump_config
from rlft.errors import CheckpointError, ConfigError
from rlft.record.checkpoint import newest_checkpoint, sweep
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


def latest_folder(cfg: Config, say: Callable[[str], None]) -> Path:
    """The newest run folder of this name that has a checkpoint; says so if a newer one has none.

    Raises CheckpointError when there is none.
    """
    parent = Path(cfg.run_root).expanduser().resolve() / cfg.name
    found = sorted(p for p in parent.glob("*") if (p / "config.yaml").is_file())
    if not found:
        raise CheckpointError(f"nothing to resume: no run in {parent}; run without --resume")
    saved = [f for f in found if _begun(f)]
    if not saved:
        raise CheckpointError(
            f"nothing to resume: none of the {len(found)} runs in {parent} came to its first "
            f"checkpoint (save.every); run without --resume"
        )
    if saved[-1] != found[-1]:
        say(f"{found[-1]} has no checkpoint to resume; continuing the one before, {saved[-1]}")
    return saved[-1]


def _begun(folder: Path) -> bool:
    return any(newest_checkpoint(f / "checkpoints") for f in (folder, folder / "warm_start"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, creating it if need be; the lock goes with the process,
    however that ends.

    Raises ConfigError naming who has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise ConfigError(
                f"{folder} is in use by {stream.read().strip() or 'another process'}. Two runs cannot "
                f"write to one folder: wait for that one, stop it, or choose another --dir."
            ) from None
        except OSError:
            pass  # a file system without locks: nobody can tell, and the run goes on
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def open_folder(cfg: Config, folder: Path, *, resume: bool, forget: bool = False) -> None:
    """Writes the resolved configuration and the versions before anything else happens.

    resume: it may hold a run, which goes on; forget: that one came to no checkpoint and begins again.
    """
    refuse_second(folder, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder / "checkpoints")
    (folder / "result.json").unlink(missing_ok=True)
    if forget:
        forget_records(folder)
    beside = folder / ".config.tmp"
    beside.write_text(dump_config(cfg))
    beside.replace(folder / "config.yaml")  # never half: a restarted run reads it
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")


def forget_records(folder: Path) -> None:
    """Drops the lines of an attempt that came to no checkpoint: its steps are taken again."""
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "probes.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "probes", ignore_errors=True)


def refuse_second(folder: Path, *, resume: bool) -> None:
    """Raises ConfigError for a folder that holds a run which is not to be continued."""
    if not resume and (folder / "metrics.jsonl").exists():
        raise ConfigError(
            f"{folder} already holds a run; continue it with --resume, or choose another"
        )
