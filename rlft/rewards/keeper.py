"""The keeper of one reward process: starts it with its limits, and lets nothing of it survive.

`python -P -m rlft.rewards.keeper {"requests": 3, ...}`, started by `process.py`. The keeper forks before
anything heavy is imported, watches, and ends when the process it keeps has ended, when that and all
that it started pass a limit, or when whoever started the keeper is gone (its standard input closes,
however that died). Then it kills every descendant, also those that left their session or lost their
parent: it is their subreaper, so none of them can get away from it. The last thing it says on
standard output is why.

Not a wall against hostile code: a process of the same user can read what that user may read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

_LOOK_S = 0.25
"""Seconds between two looks at how many processes there are and what they hold."""

_ENDING_S = 0.05
"""Seconds in which a process that is ending by itself may still say how."""

_PATIENCE_S = 10.0
"""Seconds for processes that were killed to be gone."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Forks the process, keeps it, cleans up after it."""
    given = json.loads(sys.argv[1])
    # A grandchild of the actor: Ray kills an actor's children when it ends, and whoever has to clean up
    # must live a little longer.
    if os.fork():
        os._exit(0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    scratch = tempfile.mkdtemp(prefix="rlft-reward-")
    os.environ["TMPDIR"] = scratch
    os.environ.setdefault("HOME", scratch)  # no ~/.netrc, no ~/.aws; there if rewards.env names it
    tempfile.tempdir = None
    me = os.getpid()
    kept = os.fork()
    if kept == 0:
        _become_worker(me, given)
        from rlft.rewards.child import serve

        serve(given["requests"], given["answers"], scratch)
        return
    for name in ("requests", "answers", "output", "stacks"):
        os.close(given[name])
    try:
        verdict = _watched(kept, given["memory"], given["processes"])
    finally:
        _end_descendants(me)
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(verdict), flush=True)


def _become_worker(keeper: int, given: dict[str, Any]) -> None:
    """A session of its own, limits, and what it prints goes to the output pipe."""
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if given["memory"]:
        # Data, not address space: torch and CUDA reserve far more addresses than they ever use.
        resource.setrlimit(resource.RLIMIT_DATA, (given["memory"], given["memory"]))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, given["output"]), (2, given["output"])):
        os.dup2(source, target)
    os.close(nothing)
    os.close(given["output"])
    for name in ("requests", "answers", "stacks"):
        os.set_inheritable(given[name], False)
    import faulthandler

    faulthandler.register(signal.SIGUSR2, file=given["stacks"], all_threads=True)


def _watched(kept: int, memory: int | None, processes: int) -> dict[str, Any]:
    """Waits for the end of `kept` or of whoever started us, or for a limit; says which it was."""
    ended = os.pidfd_open(kept)
    poll = select.poll()
    for fd in (ended, sys.stdin.fileno()):
        poll.register(fd, select.POLLIN)
    ending = select.poll()
    ending.register(ended, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll(_LOOK_S * 1000)]
        if ready and ended not in ready:  # its pipes close a little before it has ended
            ready += [fd for fd, _ in ending.poll(_ENDING_S * 1000)]
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(kept, 0)[1])
            return {"exit": code} if code >= 0 else {"signal": -code}
        if ready:
            return {"closed": True}
        tree = _descendants(os.getpid())
        if len(tree) > processes:
            return {"processes": len(tree)}
        if memory and _resident(tree) > memory and (held := _proportional(tree)) > memory:
            return {"memory": held}
        _reap_others(kept, tree)


def _end_descendants(me: int) -> None:
    """Kills all that descends from this process, until there is none or patience ends."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        tree = _descendants(me)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: the stopped do not fork
            for pid in tree:
                _kill(pid, number)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # no child is left, and an orphan would have become one
            return
        time.sleep(0.005)


def _reap_others(kept: int, tree: list[int]) -> None:
    """Takes the exit status of orphans that came to us; the kept one's is waited for elsewhere."""
    for pid in tree:
        if pid != kept:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # not ours to reap: its parent lives


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _descendants(root: int) -> list[int]:
    """Process ids below `root`, at any depth."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _proc(name, "stat")):
            parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _resident(pids: list[int]) -> int:
    """Bytes in memory, shared ones counted once a process: cheap, and never too few."""
    pages = [int(text.split()[1]) for pid in pids if (text := _proc(str(pid), "statm"))]
    return sum(pages) * resource.getpagesize()


def _proportional(pids: list[int]) -> int:
    """Bytes in memory, shared ones divided by who shares them."""
    held = 0
    for pid in pids:
        for line in _proc(str(pid), "smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                held += int(line.split()[1]) * 1024
    return held


def _proc(pid: str, name: str) -> bytes:
    """The contents of a file of /proc; empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    main()
