"""What runs in a reward process: functions are resolved here, calls come in, outcomes go out.

Sync functions are called one completion after another, on the main thread. If any is async, an event
loop works on several completions at a time and ends those that pass their time by cancelling them.
What cannot be ended that way, the other side of the pipe kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import sys
import time
import traceback
from typing import Any

from rlft.config import Rewards
from rlft.errors import UserError
from rlft.rewards import frames
from rlft.rewards.functions import Functions, functions
from rlft.rewards.outcome import score_async, score_one
from rlft.seeding import Key
from rlft.types import Attempt, Outcome, Task

_BEAT_S = 0.25
"""Seconds between signs of life of the event loop."""

_CANCEL_S = 1.0
"""Seconds that a cancelled function has to come to its end."""


def serve(requests: int, answers: int, scratch: str) -> None:
    """Answers calls until the pipe closes. The first frame says what to resolve, and how."""
    frames.write(answers, {"started": os.getpid(), "keeper": os.getppid()})
    first = frames.read(requests)
    if first is None:
        return
    hello = pickle.loads(first)
    sys.path[:] = hello["path"]
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    rewards = Rewards.model_validate(hello["rewards"])
    try:
        fns, waits = functions(rewards, hello["folders"])
    except UserError as error:
        frames.write(answers, {"unusable": str(error)})
        return
    except Exception:  # a class of theirs may raise anything when it is made
        frames.write(answers, {"unusable": f"a reward cannot be made:\n{traceback.format_exc()}"})
        return
    os.chdir(scratch)
    frames.write(answers, {"ready": True, "async": waits})
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        if waits:
            asyncio.run(_serve_async(requests, answers, fns, rewards))
        else:
            _serve_sync(requests, answers, fns, rewards)


def _serve_sync(requests: int, answers: int, fns: Functions, rewards: Rewards) -> None:
    while (payload := frames.read(requests)) is not None:
        index, item = frames.called(payload)
        unpacked = _unpacked(item)
        if isinstance(unpacked, Outcome):
            outcome = unpacked
        else:
            attempt, task = unpacked
            _seed(attempt, task)
            outcome = score_one(fns, attempt, task, rewards.invalid_score)
        sys.stdout.flush()
        frames.write(answers, {"index": index, "outcome": frames.told(outcome)})


async def _serve_async(requests: int, answers: int, fns: Functions, rewards: Rewards) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(requests, "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    running: set[asyncio.Task[None]] = set()
    beat = asyncio.create_task(_beat(answers, running))
    with contextlib.suppress(asyncio.IncompleteReadError):  # the pipe closed
        while True:
            size = frames.length(await reader.readexactly(4))
            index, item = frames.called(await reader.readexactly(size))
            work = asyncio.create_task(_answer(index, item, answers, fns, rewards))
            running.add(work)
            work.add_done_callback(running.discard)
    beat.cancel()


async def _beat(answers: int, running: set[asyncio.Task[None]]) -> None:
    while True:
        await asyncio.sleep(_BEAT_S)
        if running:
            frames.write(answers, {"beat": True})


async def _answer(index: int, item: bytes, answers: int, fns: Functions, rewards: Rewards) -> None:
    unpacked = _unpacked(item)
    if isinstance(unpacked, Outcome):
        frames.write(answers, {"index": index, "outcome": frames.told(unpacked)})
        return
    began = time.perf_counter()
    work = asyncio.create_task(score_async(fns, *unpacked, rewards.invalid_score))
    done, _ = await asyncio.wait({work}, timeout=rewards.timeout)
    if done:
        outcome = _result(work)
    else:
        work.cancel()
        done, _ = await asyncio.wait({work}, timeout=_CANCEL_S)
        if not done:
            frames.write(answers, {"stuck": index})
            return
        reason = f"timed out after {rewards.timeout:g} s (rewards.timeout); it was cancelled"
        seconds = time.perf_counter() - began
        outcome = Outcome("error", None, {}, reason, seconds, "timeout")
    sys.stdout.flush()
    frames.write(answers, {"index": index, "outcome": frames.told(outcome)})


def _result(work: asyncio.Task[Outcome]) -> Outcome:
    if work.cancelled():
        return Outcome("error", None, {}, "the function cancelled itself", fault="raised")
    return work.result()


def _unpacked(item: bytes) -> tuple[Attempt, Task] | Outcome:
    """What a call is about; an error outcome if a task's own class cannot be had here."""
    try:
        return pickle.loads(item)
    except (ImportError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        reason = (
            f"the task cannot be read in a reward process ({type(error).__name__}: {error}); keep "
            f"target and info to plain values"
        )
        return Outcome("error", None, {}, reason, fault="raised")


def _seed(attempt: Attempt, task: Task) -> None:
    """Makes a function that draws at random a function of what it is asked, whichever worker it is on."""
    seed = Key(0, ("reward", task.id, attempt.id, attempt.text)).seed(bits=32)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
