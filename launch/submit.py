"""Submits a run to a Ray cluster, follows its log, and ends with its exit code.

    python launch/submit.py CONFIG [key=value ...] --address http://HEAD:8265 [-- OPTIONS OF rlft run]

Checks the configuration first, packs what git knows of the folder one is in (`rlft check` lists it),
and starts `rlft run` on the head node. Exit codes are those of `rlft run`; 2 also for a cluster that
cannot be used. Ctrl-C stops following, not the job.

Nothing that imports Ray is imported before `reach`, which may have to set Ray's environment.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from head import Head, reach, same_ray

from rlft.config import Config, load_config
from rlft.errors import ConfigError, RlftError, UserError

STOP_WAIT_S = 60
"""Seconds between SIGTERM and SIGKILL of `ray job stop`. Ray's own 3 are too few to close actors."""
LOST_S = 120.0
"""How long to ask a dashboard that no longer answers before giving up following."""


def main(argv: Sequence[str]) -> int:
    """Submits as the command line says; returns the job's exit code."""
    ours, _, run_options = _split(argv)
    asked = _parser().parse_intermixed_args(ours)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray would take them in place of --address
    sys.path.insert(0, str(Path.cwd()))  # plug-ins of the folder one is in
    cfg = load_config(asked.config, asked.overrides)
    head = reach(asked.address)
    import ray

    same_ray(head, ray.__version__)
    if not asked.skip_check:
        _preflight(cfg, head)
    overrides = [*asked.overrides, *_overrides(cfg, asked, head)]
    python = asked.python or (sys.executable if head.is_here else "python")
    words = [python, "-m", "rlft", "run", asked.config, *overrides, *run_options]
    client, job = _submit(cfg, head, words)
    print(f"submitted {job}: {' '.join(words[1:])}")
    if asked.no_follow:
        print(_how_to(head.address, job))
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"\nno longer following; the job goes on.\n{_how_to(head.address, job)}")
        return 130
    return _ended(client, job)


def _split(argv: Sequence[str]) -> tuple[list[str], str, list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), "--", list(argv[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/submit.py",
        description="Submit a run to a Ray cluster, follow it, and end with its exit code.",
        epilog="Options of `rlft run` go after a lone --, e.g. -- --resume",
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file of this folder, e.g. configs/quickstart.yaml")
    add("overrides", metavar="key=value", nargs="*")
    add("--address", required=True, help="Ray's dashboard, e.g. http://HEAD:8265")
    add("--run-root", help="absolute folder for results, seen by the head and every learner node")
    add(
        "--python", help="interpreter on the head; default: this one if the head is here, or python"
    )
    add("--no-follow", action="store_true", help="end once the job is submitted")
    add("--skip-check", action="store_true", help="for data or plug-ins that only the cluster has")
    return parser


def _preflight(cfg: Config, head: Head) -> None:
    from rlft.check import report

    for line in report(cfg, elsewhere=not head.is_here):
        print(line)


def _overrides(cfg: Config, asked: argparse.Namespace, head: Head) -> list[str]:
    """What the copy of the tree that Ray unpacks must be told, for it is removed after the job."""
    from shipped_paths import absolute_where_left_behind, must_travel

    moved = absolute_where_left_behind(cfg, Path.cwd(), head.is_here)
    must_travel(Path(asked.config), Path.cwd())
    root = Path(asked.run_root or cfg.run_root)
    if not (root.is_absolute() or str(root).startswith("~")):
        if not head.is_here:
            raise ConfigError(
                f"run_root is {str(root)!r}, a relative path, and the head at {head.address} is "
                f"another machine: the run folder would lie in a copy of this tree that Ray removes. "
                f"Give --run-root an absolute folder of the cluster, on a file system that every "
                f"learner's node shares, e.g. --run-root /shared/runs"
            )
        root = root.resolve()
    print(f"results: {root}/{cfg.name}/DATE-TIME{'' if head.is_here else ' on the head node'}")
    return [f"{key}={value}" for key, value in {**moved, "run_root": str(root)}.items()]


def _submit(cfg: Config, head: Head, words: Sequence[str]) -> tuple[Any, str]:
    from ray.job_submission import JobSubmissionClient

    from rlft.check.shipping import amount, pack, shipment

    for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    client = JobSubmissionClient(head.address)
    with tempfile.TemporaryDirectory(prefix="rlft-submit-") as folder:
        shipped = shipment(Path.cwd())
        archive = Path(folder) / "tree.zip"
        size = pack(shipped, archive)
        print(f"sending {len(shipped.files):,} files, {amount(size)} packed")
        job = client.submit_job(
            entrypoint=f"exec {shlex.join(words)}",  # the shell gives way: signals reach the run
            submission_id=f"{cfg.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            runtime_env={
                "working_dir": str(archive),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
        )
    return client, job


async def _follow(client: Any, job: str) -> None:
    """Prints the log as it grows, until the job has ended; takes a broken connection up again."""
    import aiohttp

    printed, silent_since = 0, time.monotonic()
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job):  # always from its beginning
                fresh = text[max(0, printed - position) :]
                position += len(text)
                if fresh:
                    print(fresh, end="", flush=True)
                    printed = position
                silent_since = time.monotonic()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            lost = error
        else:
            lost = None
        if _has_ended(client, job, lost, silent_since):
            return
        await asyncio.sleep(1)


def _has_ended(client: Any, job: str, lost: Exception | None, silent_since: float) -> bool:
    import requests

    try:
        return bool(client.get_job_status(job).is_terminal())
    except requests.RequestException as error:
        lost = lost or error
    if time.monotonic() - silent_since > LOST_S:
        raise RlftError(
            f"the dashboard has not answered for {LOST_S:g} s ({lost}); the job may go on.\n"
            f"{_how_to(client.get_address(), job)}"
        )
    return False


def _ended(client: Any, job: str) -> int:
    """The exit code of a job that has ended, after a sentence about it."""
    info = client.get_job_info(job)
    status, code = info.status.value, info.driver_exit_code
    if status == "STOPPED":
        print(f"{job} was stopped (`ray job stop`)")
        return 143
    if status == "SUCCEEDED":
        print(f"{job} is done")
        return 0
    if not code:  # it never came to run
        print(f"{job} failed: {info.message}", file=sys.stderr)
        return 1
    print(f"{job} failed with exit code {code}", file=sys.stderr)
    if code in (126, 127):
        print(
            "The head could not start the interpreter: start Ray with the project's environment "
            "first on PATH, or name the interpreter with --python.",
            file=sys.stderr,
        )
    return int(code)


def _how_to(address: str, job: str) -> str:
    token = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    ray = f"  {token}ray job"
    return (
        f"follow it:{ray} logs --address {address} --follow {job}\n"
        f"stop it:  {ray} stop --address {address} {job}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    except RlftError as broken:
        print(f"failed: {broken}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; nothing was submitted", file=sys.stderr)
        sys.exit(130)
