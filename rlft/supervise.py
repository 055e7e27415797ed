"""`rlft run --retries N`: the run as a child process, started again when it is killed or breaks.

Imports nothing heavy: this process lives as long as the run and must not be what runs out of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from rlft.cluster.reaper import MARK, end_marked

_BROKE = 1
_PR_SET_PDEATHSIG = 1


def supervise(
    command: Callable[[int], Sequence[str]],
    folder: Path,
    retries: int,
    say: Callable[[str], None],
) -> int:
    """Runs `command(0)`; when that is killed or exits with 1, `command(1)`, and so on, at most `retries`
    times. Returns the exit code of the last.

    What exits with another code has said what it had to say: bad input (2), a guard (3), a signal (130,
    143). Nor is one started again that broke twice at the same step. Ctrl-C and SIGTERM are passed on.
    """
    broke_at: int | None = None
    for attempt in range(retries + 1):
        mark = uuid.uuid4().hex
        code, stopped = _run(command(attempt), mark)
        end_marked(mark)
        if stopped or (code >= 0 and code != _BROKE):
            return _shell_code(code)
        step = last_step(folder)
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else "broke"
        if code == _BROKE and step == broke_at:
            say(f"the run broke twice after step {step}: not started again")
            return code
        broke_at = step if code == _BROKE else None
        if attempt == retries:
            say(f"the run {how} after step {step}; {_times(retries)} used up (--retries)")
            return _shell_code(code)
        say(
            f"the run {how} after step {step}; starting it again ({attempt + 1} of {_times(retries)})"
        )
    raise AssertionError("unreachable: the last attempt returns")


def last_step(folder: Path) -> int:
    """The newest step in `metrics.jsonl`; 0 before there is one."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by the kill
            return int(json.loads(line)["step"])
    return 0


def _run(command: Sequence[str], mark: str) -> tuple[int, bool]:
    """Returns (exit code, or minus the signal that killed it; whether we were told to stop)."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    with _forwarding() as (told, to):
        child = subprocess.Popen(
            command,
            env={**os.environ, MARK: mark},
            start_new_session=True,  # Ctrl-C comes once, from here
            preexec_fn=end_with_parent,
        )
        to.append(child)
        for number in told:  # while it was being started
            child.send_signal(number)
        return child.wait(), bool(told)


@contextlib.contextmanager
def _forwarding() -> Iterator[tuple[list[int], list[subprocess.Popen[bytes]]]]:
    """Yields (signals that came, processes they go to)."""
    told: list[int] = []
    to: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for child in to:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told, to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _times(retries: int) -> str:
    return f"{retries} {'retry' if retries == 1 else 'retries'}"
