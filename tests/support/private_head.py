"""A Ray head of the tests' own, from `ray start --head`: with a token, on free ports of the loopback."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from marked import processes_with

MARK = "RLFT_TEST_HEAD"
ROOT = Path(__file__).resolve().parents[2]
START_S = 90
NAMED_PORTS = ("port", "dashboard-port", "ray-client-server-port")
"""These take no 0. Every port that is not given has a default that a second head would want too."""
ANY_PORTS = (
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"),
    *("runtime-env-agent-port", "node-manager-port", "object-manager-port"),
    *("min-worker-port", "max-worker-port"),
)


@dataclass(frozen=True)
class PrivateHead:
    """address: of the dashboard; env: what a client needs, the token's file included."""

    address: str
    env: dict[str, str]
    mark: str

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on this cluster: what inherited the head's environment."""
        return processes_with(MARK, self.mark)

    def commands(self) -> list[str]:
        """What of it runs code of ours: drivers, and actors by their class."""
        lines = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()).strip())
        ours = ("-m rlft", "ray::Sampler", "ray::LearnerRank", "ray::RewardWorker", "ray::Job")
        return [line for line in lines if any(word in line for word in ours)]


@contextlib.contextmanager
def private_head() -> Iterator[PrivateHead]:
    """Starts one; ends exactly what it started."""
    folder = Path(tempfile.mkdtemp(prefix="rlft-h-", dir="/tmp"))  # short: sockets have 107 letters
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    mark = uuid.uuid4().hex
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")},
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    ports = dict(zip(NAMED_PORTS, free_ports(len(NAMED_PORTS)), strict=True))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += [f"--{name}=0" for name in ANY_PORTS]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    command += ["--num-gpus=0", "--object-store-memory=300000000", "--disable-usage-stats"]
    log = folder / "head.log"
    with log.open("w") as stream:
        head = subprocess.Popen(
            [*command, f"--temp-dir={folder}"],
            env={
                **env,
                MARK: mark,
                "RAY_AUTH_MODE": "token",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 becomes a public address
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = PrivateHead(f"http://127.0.0.1:{ports['dashboard-port']}", env, mark)
    try:
        _await(started.address, token.read_text(), head, log)
        yield started
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for left in started.processes():
            with contextlib.suppress(psutil.Error):
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await(address: str, token: str, head: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    end = time.monotonic() + START_S
    while time.monotonic() < end and head.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the head did not start:\n{log.read_text()[-3000:]}")
