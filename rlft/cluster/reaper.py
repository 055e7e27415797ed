"""Ends what a killed driver leaves behind: run as `python reaper.py PID MARK`, it waits until process
PID is gone and then kills every process that inherited MARK.

Ray's own processes die with a driver that was killed, but for its agents, and for actors that are
stopped or stuck. A private cluster's processes are known by a variable of their environment: Ray
detaches those that it starts, so parentage does not tell whose they are. Linux only: without /proc
there is nothing to read, and nothing is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "RLFT_RUN"
"""The variable: a name for one driver's processes, given by who starts the driver, or by itself."""

_PATIENCE_S = 15.0


def start(mark: str) -> subprocess.Popen[bytes]:
    """Starts a process that outlives this one just long enough to end what carries `mark`."""
    env = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark],
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C, and whoever kills our group, passes it by
    )


def end_marked(mark: str) -> None:
    """Kills every process that inherited `mark`, and what they start meanwhile; returns when none is
    left, or after some seconds (a process in uninterruptible sleep)."""
    end = time.monotonic() + _PATIENCE_S
    while (pids := marked(mark)) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """Processes of this user that inherited `mark`, this one left out."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def _main() -> None:
    driver, mark = int(sys.argv[1]), sys.argv[2]
    while os.getppid() == driver:
        time.sleep(0.2)
    end_marked(mark)


if __name__ == "__main__":
    _main()
