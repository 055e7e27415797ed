"""Stack dumps of actors that are late: what is it doing?

Each actor registers `faulthandler` for SIGUSR2, which writes every thread's stack to a file without
needing the interpreter lock, so it works on a process stuck in native code. For one that cannot even
take a signal (stopped, or in uninterruptible sleep) `py-spy` reads its memory instead.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an actor lives: process id, Ray node id, the file its stacks go to, and when the process
    started (ticks since boot: another process that got its number started later)."""

    pid: int
    node_id: str
    stack_file: str
    started: str


_open: list[IO[bytes]] = []


def register(name: str) -> Whereabouts:
    """Makes this process dump its stacks on SIGUSR2; called in an actor's constructor."""
    import ray

    # A file without a name: it is gone with the process, however that ends; until then others on this
    # node read it through the process's own table of open files.
    stream = tempfile.TemporaryFile(prefix=f"rlft-{name}")  # noqa: SIM115  (open while it lives)
    faulthandler.register(signal.SIGUSR2, file=stream, all_threads=True)
    pid = os.getpid()
    _open.append(stream)
    path = f"/proc/{pid}/fd/{stream.fileno()}"
    # Outside Ray (a replay in one process) asking would start a cluster.
    node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return Whereabouts(pid, node_id, path, _kernel_says(pid, _STARTED))


def dump(where: Whereabouts, patience_s: float = 2.0) -> str:
    """The stacks of a process on this node, or a sentence saying why there are none."""
    path = Path(where.stack_file)
    before = path.stat().st_size if path.exists() else 0
    if _kernel_says(where.pid, _STATE) == "T":
        return _spied(where.pid)
    try:
        os.kill(where.pid, signal.SIGUSR2)
    except ProcessLookupError:
        return f"process {where.pid} is gone"
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if path.exists() and path.stat().st_size > before:
            time.sleep(0.1)  # let it finish writing
            return path.read_text()[before:]
        time.sleep(0.05)
    return _spied(where.pid)


def stays_stopped(where: Whereabouts, looks: int = 4) -> bool:
    """Whether a process on this node is stopped (SIGSTOP) and stays so for `looks` seconds.

    No heartbeat: a healthy actor may hold the interpreter lock in native code for minutes, and would
    not answer one. The kernel knows the difference. Looks are counted, not timed: where everything
    is frozen at once (a suspended machine, a paused container), this process does not look either.
    """
    for look in range(looks):
        if look:
            time.sleep(1.0)
        if _kernel_says(where.pid, _STATE) != "T":
            return False
    return True


def end(where: Whereabouts) -> None:
    """Kills a process on this node, unless its number belongs to another one by now."""
    if where.started and _kernel_says(where.pid, _STARTED) == where.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(where.pid, signal.SIGKILL)


_STATE, _STARTED = 0, 19
"""Places in /proc/PID/stat, counted after the name: `R` running, `T` stopped by a signal, ...; and the
start in clock ticks since boot."""


def _kernel_says(pid: int, place: int) -> str:
    """A field of the process's line in the kernel's table; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[place]
    except (OSError, IndexError):
        return ""


def _spied(pid: int) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return f"process {pid} does not answer signals, and py-spy is not installed"
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return f"process {pid} does not answer signals, and py-spy got nothing in 10 s"
    return (
        done.stdout or f"process {pid} does not answer signals; py-spy said: {done.stderr.strip()}"
    )
