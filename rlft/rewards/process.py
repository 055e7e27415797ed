"""One reward process, from the side that asks: started clean, asked, listened to, killed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.config import Rewards
from rlft.errors import PluginError
from rlft.rewards import frames

_KEPT = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "TMPDIR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT"),
        *("KMP_BLOCKTIME", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"),
        *("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"),
    }
)
"""What a reward process inherits, besides LC_* (its scratch folder is made below TMPDIR, and then takes
its place): a list of what is allowed, because nobody can list every
name of a credential."""

_TAIL = 4_096
"""Bytes kept of what a reward prints."""

_END_S = 15.0
"""Seconds for the keeper to kill what it keeps."""


def clean_environment(named: Sequence[str]) -> dict[str, str]:
    """The environment of a reward process: the allowed, those `named`, and a few settings.

    Raises PluginError when a named one is not set here.
    """
    missing = [name for name in named if name not in os.environ]
    if missing:
        raise PluginError(
            f"rewards.env names {', '.join(missing)}, which is not set where the reward worker runs. "
            f"Set it there before the cluster or run starts, or leave it out."
        )
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith("LC_") or name in named
    }
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    fixed = {
        # Models that were downloaded, without the token that lies beside them.
        "HF_HUB_CACHE": os.environ.get("HF_HUB_CACHE", str(hub)),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONHASHSEED": "0",  # the order of a set is the same in every worker and run
    }
    return {**fixed, **passed}


class RewardProcess:
    """A process that scores. `pump` moves bytes in both directions and never blocks beyond its time."""

    def __init__(self, rewards: Rewards, folders: Sequence[str]) -> None:
        self.heard = time.monotonic()
        self.is_async = False
        self._pid = self._keeper_pid = 0
        self._out, self._messages, self._tail = bytearray(), frames.Splitter(), b""
        self._ended = False
        self._stacks = os.memfd_create("stacks")
        theirs_in, self._requests = os.pipe()
        self._answers, theirs_out = os.pipe()
        self._output, their_output = os.pipe()
        given = {
            **{"requests": theirs_in, "answers": theirs_out, "output": their_output},
            **{"stacks": self._stacks, "processes": rewards.max_processes},
            "memory": int(rewards.memory_gb * 2**30) if rewards.memory_gb else None,
        }
        theirs = (theirs_in, theirs_out, their_output)
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlft.rewards.keeper", json.dumps(given)],
                env=clean_environment(rewards.env),
                stdin=subprocess.PIPE,  # never written to: it closes when we are gone
                stdout=subprocess.PIPE,
                stderr=their_output,
                pass_fds=(*theirs, self._stacks),
                start_new_session=True,
            )
        finally:
            for fd in theirs:
                os.close(fd)
        self._select = selectors.DefaultSelector()
        for fd in (self._requests, self._answers, self._output):
            os.set_blocking(fd, False)
        self._select.register(self._output, selectors.EVENT_READ)
        self._select.register(self._answers, selectors.EVENT_READ)
        hello = {"rewards": rewards.model_dump(), "folders": list(folders), "path": sys.path}
        self._out += frames.frame(pickle.dumps(hello))

    @property
    def ended(self) -> bool:
        """Whether nothing more will be answered."""
        return self._ended

    @property
    def printed(self) -> str:
        """The last of what it printed."""
        return self._tail.decode("utf-8", "replace")

    def wait_ready(self, seconds: float) -> None:
        """Waits until its functions are resolved. Raises PluginError if they cannot be used."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.pump(0.5):
                if "started" in message:
                    self._pid, self._keeper_pid = int(message["started"]), int(message["keeper"])
                    continue
                if "ready" in message:
                    self.is_async = bool(message["async"])
                    return
                self.close()
                raise PluginError(str(message.get("unusable", message)))
            if self._ended:
                raise PluginError(
                    f"the reward process {self.close()} while it imported the rewards. "
                    f"It printed:\n{self.printed or '(nothing)'}"
                )
        where = self.stack()
        self.close()
        raise PluginError(
            f"the rewards were not imported within {seconds:.0f} s (deadlines.start).{where}"
        )

    def send(self, index: int, item: bytes) -> None:
        """Asks for the outcome of a pickled `(Attempt, Task)`; `pump` sends it."""
        self._out += frames.call(index, item)

    def pump(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that came; returns when there are some, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            found = self._turn(max(0.0, deadline - time.monotonic()))
            if found or self._ended or time.monotonic() >= deadline:
                return found

    def stack(self) -> str:
        """Where the functions are now: the innermost calls, or nothing if it cannot say."""
        if not self._pid:
            return ""
        before = os.fstat(self._stacks).st_size
        try:
            os.kill(self._pid, signal.SIGUSR2)
        except ProcessLookupError:
            return ""
        end = time.monotonic() + 1.0
        while time.monotonic() < end and os.fstat(self._stacks).st_size == before:
            time.sleep(0.01)
        time.sleep(0.05)  # let it finish writing
        return _innermost(os.pread(self._stacks, 65_536, before).decode("utf-8", "replace"))

    def close(self) -> str:
        """Kills it and all that it started; says how it had ended before, if it had."""
        if self._keeper.stdin is None:
            return "ended"
        self._ended = True
        self._keeper.stdin.close()
        self._keeper.stdin = None
        verdict = self._verdict()
        self._drain()
        self._select.close()
        for fd in (self._requests, self._answers, self._output, self._stacks):
            os.close(fd)
        return verdict

    def _verdict(self) -> str:
        """What the keeper said when it was done."""
        try:
            said, _ = self._keeper.communicate(timeout=_END_S)  # its end is that of its output
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._keeper_pid or self._keeper.pid, signal.SIGKILL)
            self._keeper.wait()
            return "could not be ended in time"
        try:
            return _sentence(json.loads(said))
        except ValueError:
            return "lost its keeper"

    def _turn(self, seconds: float) -> list[dict[str, Any]]:
        watched = self._requests in self._select.get_map()
        if bool(self._out) != watched:
            if watched:
                self._select.unregister(self._requests)
            else:
                self._select.register(self._requests, selectors.EVENT_WRITE)
        ready = {key.fd for key, _ in self._select.select(seconds)}
        if self._output in ready:
            self._drain()
        if self._requests in ready:
            self._push()
        if self._answers not in ready:
            return []
        data = os.read(self._answers, 2**20)
        self._drain()  # what it printed before it answered
        if not data:
            self._ended = True
            return []
        self.heard = time.monotonic()
        try:
            return self._messages.feed(data)
        except frames.BrokenStream:
            self._ended = True
            return []

    def _push(self) -> None:
        try:
            sent = os.write(self._requests, self._out[: 2**20])
        except BrokenPipeError:  # the answers' pipe says so too
            self._out.clear()
            return
        del self._out[:sent]

    def _drain(self) -> None:
        """Reads what was printed, whatever the amount, and keeps the end of it; 64 MiB a turn at most."""
        for _ in range(1024):
            try:
                data = os.read(self._output, 2**16)
            except BlockingIOError:
                return
            if not data:
                if self._output in self._select.get_map():
                    self._select.unregister(self._output)
                return
            self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]


def _sentence(verdict: Mapping[str, Any]) -> str:
    """The keeper's verdict as what the process did."""
    if "signal" in verdict:
        name = signal.Signals(verdict["signal"]).name
        why = ", which is often the system's own want of memory" if name == "SIGKILL" else ""
        return f"was killed by {name}{why}"
    if "exit" in verdict:
        return f"ended by itself with exit code {verdict['exit']}"
    if "memory" in verdict:
        return f"was killed: it held {verdict['memory'] / 2**30:.1f} GB, above rewards.memory_gb"
    if "processes" in verdict:
        return f"was killed: it had {verdict['processes']} processes, above rewards.max_processes"
    return "was ended"


def _innermost(stacks: str, most: int = 8) -> str:
    """The innermost calls of a dump's main thread, the last thread in it, without our own frames."""
    lines = stacks.strip().split("\n\n")[-1].splitlines()
    calls = [line.strip() for line in lines if line.strip().startswith("File ")]
    ours = os.sep + os.path.join("rlft", "rewards") + os.sep
    hidden = (ours, "<frozen ", f"{os.sep}asyncio{os.sep}")
    theirs = [c for c in calls if not any(h in c for h in hidden)][:most]
    return " It was at:\n  " + "\n  ".join(theirs) if theirs else ""
