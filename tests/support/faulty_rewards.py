"""Rewards with one fault each, chosen by the completion; run in real reward processes."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import rlft


def reward(completion, task):
    """A sync function; a completion that is a number is its value."""
    return _FAULTS[completion](task) if completion in _FAULTS else float(completion)


def _hang(task):
    time.sleep(10_000)


def _hang_deaf(task):
    """Ignores every signal that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(10_000)


def _invalid(task):
    raise rlft.Invalid("no answer tag")


def _children(task):
    """A child in a session of its own, and an orphan of a grandchild; both outlive the call."""
    subprocess.Popen(["setsid", "sleep", task.target])
    subprocess.run(["sh", "-c", f"sleep {task.target} & "], check=True)
    return 1.0


def _forks_itself(task):
    if os.fork() == 0:
        time.sleep(10_000)
    return 1.0


def _too_many(task):
    for _ in range(200):
        subprocess.Popen(["sleep", task.target])
    time.sleep(10_000)


def _gigabyte(task):
    for _ in range(1024):
        sys.stdout.write("x" * 2**20)
    print("the end")
    return 1.0


def _children_s_memory(task):
    """More than the limit, in processes that each stay below it."""
    code = "b = bytearray(200 * 2**20)\nimport time; time.sleep(10_000)"
    for _ in range(4):
        subprocess.Popen([sys.executable, "-c", code])
    time.sleep(10_000)


def _kills_its_group(task):
    os.killpg(0, signal.SIGKILL)


def _writes(task):
    with open("left.txt", "w") as file:
        file.write("x")
    return 1.0


_FAULTS = {
    "raises": lambda task: {}["gold"],
    "nan": lambda task: float("nan"),
    "text": lambda task: "0.5",
    "nothing": lambda task: None,
    "raises at length": lambda task: (_ for _ in ()).throw(ValueError("y" * 2**24)),
    "hangs": _hang,
    "hangs deaf": _hang_deaf,
    "invalid": _invalid,
    "children": _children,
    "forks": _forks_itself,
    "too many": _too_many,
    "gigabyte": _gigabyte,
    "memory": lambda task: float(len(bytearray(8 * 2**30))),
    "children's memory": _children_s_memory,
    "exits": lambda task: os._exit(3),
    "sys.exit": lambda task: sys.exit(4),
    "kills its group": _kills_its_group,
    "segfault": lambda task: os.kill(os.getpid(), signal.SIGSEGV),
    "writes": _writes,
    "random": lambda task: random.random(),
    "hash": lambda task: float(hash("text") % 1000),
    "pid": lambda task: float(os.getpid()),
}


def looks_around(completion, task):
    """Answers by raising what it sees."""
    seen = {
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "tmp": tempfile.gettempdir(),
        "files": os.listdir("."),
        "pid": os.getpid(),
    }
    raise rlft.Invalid(json.dumps(seen[completion]))


def turns(trajectory, task, weight=1.0):
    """The number of messages, and how the last begins."""
    said = trajectory.messages[-1]
    assert said == {"role": "assistant", "content": trajectory.text}
    return {"reward": weight * len(trajectory.messages), "cut": float(trajectory.truncated)}


async def waits(completion, task):
    """An async function; a number is how long it waits."""
    if completion == "blocks":
        time.sleep(10_000)
    if completion == "exits":
        os._exit(3)
    if completion == "raises":
        raise KeyError("gold")
    if completion == "forever":
        await asyncio.sleep(10_000)
    if completion == "uncancellable":
        while True:
            try:
                await asyncio.sleep(10_000)
            except asyncio.CancelledError:
                continue
    began = time.monotonic()
    await asyncio.sleep(float(completion))
    return {"reward": 1.0, "waited": time.monotonic() - began}


class Judge:
    """A reward with state and an async call."""

    def __init__(self, level: float = 1.0):
        self.level = level

    async def __call__(self, completion, task):
        await asyncio.sleep(0)
        return self.level


def unlucky(completion, task):
    """Fails for some completions, always the same ones, and throws dice over the others."""
    if completion[:1] in "0246":
        raise KeyError(completion[:1])
    return len(completion) / 10 + random.random()


def stuck(completion, task):
    """Hangs for some completions, after it started something that outlives it; says where it works."""
    with open(os.environ["RLFT_TEST_FOLDERS"], "a") as file:
        file.write(os.getcwd() + "\n")
    if completion[:1] in "0246":
        subprocess.Popen(["setsid", "sleep", "10000"])
        time.sleep(10_000)
    return len(completion) / 10
