"""Joining a Ray cluster, or starting a private one, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import ray

from rlft.cluster import reaper
from rlft.config import Config
from rlft.errors import ResourceError


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: leave as after Ctrl-C, closing everything that was opened."""


@contextlib.contextmanager
def ray_session(cfg: Config, say: Callable[[str], None]) -> Iterator[dict[str, float]]:
    """Yields the cluster's resources. What it started it stops; a cluster it joined stays up.

    `RAY_ADDRESS`, which `ray job submit` sets, is honoured; otherwise the cluster is private: it never
    attaches to one that happens to run on this machine.
    """
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = cfg.cluster.address or os.environ.get("RAY_ADDRESS")
    _make_importable()
    # On a cluster that was joined Ray ends the actors of a driver that was killed.
    with _sigterm_as_interrupt(), contextlib.nullcontext() if address else _nothing_left_behind():
        try:
            _start(cfg, address)
            say(f"ray: {'joined ' + address if address else 'private cluster on this machine'}")
            with _sigterm_as_interrupt():  # again: ray.init put its own handler there
                yield ray.cluster_resources()
        finally:
            # A second signal during the clean-up must not leave half of it undone.
            with _signals_held():
                ray.shutdown()


def name_accelerator(cfg: Config) -> None:
    """Tells DeepSpeed of a CPU run, here and in what is started from here: it warns when it guesses."""
    if not (cfg.sampler.gpus or cfg.learner.gpus):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def private_resources(cfg: Config) -> dict[str, float] | None:
    """What a private cluster here will have, as far as it is known before it starts: GPUs are for Ray
    to count. None if a cluster is there already."""
    if ray.is_initialized() or cfg.cluster.address or os.environ.get("RAY_ADDRESS"):
        return None
    return {"CPU": float(_cores()), "GPU": math.inf}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_TRIES = 2
"""Starts of a private cluster: Ray gives itself 30 s, which a machine full of other work exceeds."""


def _start(cfg: Config, address: str | None) -> None:
    # What actors print goes to Ray's log files, so that the console stays readable.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **quiet)
        except Exception as error:
            raise ResourceError(
                f"no Ray cluster at {address!r} ({type(error).__name__}: {error}). Start one "
                f"(`ray start --head`), or leave cluster.address and RAY_ADDRESS empty for a private "
                f"one. A cluster with token authentication needs RAY_AUTH_MODE=token here."
            ) from error
        return
    start_private(object_store_memory=int(cfg.cluster.object_store_gb * 2**30), **quiet)


def start_private(**keys: Any) -> None:
    """Starts a cluster of this process alone. keys: of `ray.init`. Raises ResourceError: it did not start
    in time."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # ours is the work; Ray's default steps aside
    for _ in range(_TRIES):
        try:
            ray.init(
                address="local",
                num_cpus=_cores(),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",  # private: nothing listens beyond this machine
                **keys,
            )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise ResourceError(
        f"Ray did not start within its 30 s, {_TRIES} times: this machine is too busy. Wait until other "
        f"work has ended, or join a running cluster with cluster.address"
    )


def _make_importable() -> None:
    """Actors find plug-ins where the driver does: the folder it was started in comes first."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    given = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if here not in given:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *given])


@contextlib.contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Marks the processes started inside, and has them ended if this process is killed."""
    given = os.environ.get(reaper.MARK)
    mark = os.environ.setdefault(reaper.MARK, uuid.uuid4().hex)
    watcher = reaper.start(mark)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()
        if given is None:
            del os.environ[reaper.MARK]


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise Terminated("SIGTERM")

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever owns it owns the signals
        yield
        return
    try:
        yield
    except KeyboardInterrupt as stop:
        # Inside one of Ray's own waits, Ray raises its KeyboardInterrupt in place of ours.
        if came and not isinstance(stop, Terminated):
            raise Terminated("SIGTERM") from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    # Blocking them in this thread would not do: the kernel gives them to another, of Ray's, and Python
    # raises here all the same.
    held = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, signal.SIG_IGN) for number in held]
    except ValueError:  # not the main thread: nothing is raised in it
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(held, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
