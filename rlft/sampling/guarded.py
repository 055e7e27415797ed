"""One environment of a runner: what it raises, what takes too long, and where its next episode begins.

It is a Gymnasium wrapper, so that Gymnasium's own vector environment holds it. Its `reset` begins what
`begin` said: a configuration, a snapshot, or nothing.
"""

from __future__ import annotations

import math
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium

from rlft.errors import UserError
from rlft.sampling.actions import Actions
from rlft.sampling.snapshot import (
    Course,
    How,
    Snapshot,
    TookAnotherCourse,
    copied_actions,
    restore,
    take,
)
from rlft.sampling.within import blank, shaped, within


class StepTimeout(BaseException):
    """A step or reset took longer than `runner.step_timeout`. No Exception: an environment that goes on
    after any of those must not go on after this one."""


class NotTried(Exception):
    """An episode that was given up, because those before it hung."""


@dataclass(slots=True)
class Patience:
    """Of the environments of a block together, for one request: where every episode hangs, so many
    time-outs would be waited for that a run seems to hang itself. Three of one configuration are enough to
    give that one up, and three configurations in a row, with no step in between, to give up all.

    hung: time-outs of each configuration, by its seed; row: the configurations that hung since a step
    came to its end."""

    most: int = 3
    hung: Counter[int] = field(default_factory=Counter)
    row: set[int] = field(default_factory=set)

    def renew(self) -> None:
        """Before a request."""
        self.hung.clear()
        self.row.clear()

    def late(self, seed: int) -> None:
        """Counts a time-out of this configuration."""
        self.hung[seed] += 1
        self.row.add(seed)

    def require(self, seed: int) -> None:
        """Raises NotTried if nothing more is to be asked of this configuration."""
        if len(self.row) >= self.most:
            raise NotTried(
                f"given up: steps or resets of {len(self.row)} configurations in a row took longer than "
                f"runner.step_timeout"
            )
        if self.hung[seed] >= self.most:
            raise NotTried(
                f"given up: {self.hung[seed]} episodes of this configuration, with seed {seed}, had a step "
                f"or reset that took longer than runner.step_timeout"
            )


@dataclass(slots=True)
class Running:
    """The episode that an environment is in. seed, options: how it was started; actions: taken since,
    for a snapshot by replay; traces: what `info` said of each step; facts: what it said at the end of how
    the episode went; error: what ended it, if it failed."""

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    actions: Actions = field(default_factory=Actions)
    traces: list[Mapping[str, Any]] = field(default_factory=list)
    ret: float = 0.0
    length: int = 0
    success: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    over: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """A point in an episode, to go on from: any number of times, in any environment of the same making."""

    snapshot: Snapshot
    running: Running

    def begun(self) -> Running:
        """The episode as it was there, to go on with."""
        episode = copied(self.running)
        if self.snapshot.how == "replay":
            episode.actions = copied_actions(self.snapshot.course.actions)
        return episode


class Guarded(gymnasium.Wrapper):
    """make: makes the environment, again after it failed; names: what of `info` is recorded;
    timeout: seconds for a step; how: how it can be put back to a point; patience: the block's."""

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        names: tuple[str, ...],
        timeout: float,
        how: How,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(make())
        self._how, self._patience = how, patience or Patience()
        self._info: Mapping[str, Any] = {}
        self._make, self._names, self._alarm = make, names, Alarm(timeout)
        self.running: Running | None = None
        self._next: Running | Point | None = None
        self._or_fail = False
        self._within, self._shaped = within(self.observation_space), shaped(self.observation_space)
        self._before: tuple[Any, ...] = ()
        self._last: Any = blank(self.observation_space)
        self._remake = False

    @property
    def shown(self) -> Any:
        """The last observation."""
        return self._last

    def begin(self, at: Running | Point | None, *, or_fail: bool = False) -> None:
        """Says what the next `reset` begins; None: nothing, the environment idles. or_fail: a point that
        another course was taken from is an episode that failed, else it is a ConfigError."""
        self._next, self._or_fail = at, or_fail

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        del seed, options  # `begin` said
        start, self._next = self._next, None
        if start is None:
            self.running = None
            return self._last, {}
        episode = self.running = start.begun() if isinstance(start, Point) else start
        try:
            if self._patience.hung:
                self._patience.require(episode.seed)
            if self._remake:
                self._made_again()
            with self._alarm:
                if isinstance(start, Point):
                    self._last, info = restore(self.env, start.snapshot)
                else:
                    self._last, info = self.env.reset(
                        seed=episode.seed, options=dict(episode.options) or None
                    )
            if not self._within(self._last):
                raise self._outside("reset")
            if not isinstance(start, Point):  # which was noted when it was reached
                self._note(info)
            self._info = info
        except TookAnotherCourse as error:
            if not self._or_fail:
                raise
            self._failed(error)
        except UserError:
            raise  # a point that cannot be returned to is no fault of the environment's
        except (Exception, StepTimeout, SystemExit) as error:
            self._failed(error)
        return self._last, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        with self._alarm:
            answer = self.advance(action)
            if not self._within(answer[0]):
                self.refuse(answer[0])
                answer = self._last, 0.0, False, True
            return *answer, {}

    def advance(self, action: Any) -> tuple[Any, float, bool, bool]:
        """A step without an alarm of its own: whoever calls it has set one, and calls `refuse` if the
        numbers that it shows are not within their space."""
        episode = self.running
        if episode is None:
            return self._last, 0.0, False, False
        if episode.error:  # the reset failed: the episode ends before it began
            episode.over = True
            return self._last, 0.0, False, True
        try:
            if self._patience.row:
                self._patience.require(episode.seed)
            self._last, reward, terminated, truncated, info = self.env.step(action)
            reward = float(reward)
            if not math.isfinite(reward):
                raise ValueError(f"the environment gave a reward of {reward}")
            if not self._shaped(self._last):
                raise self._outside("step")
            if self._names:
                self._note(info)
            success = bool(info["success"]) if "success" in info else episode.success
            facts = dict(info["facts"]) if "facts" in info else episode.facts
            terminated, truncated = bool(terminated), bool(truncated)
        except (Exception, StepTimeout, SystemExit) as error:
            self._alarm.stop()
            self._failed(error)
            episode.over = True
            return self._last, 0.0, False, True
        self._info = info
        if self._patience.row:
            self._patience.row.clear()
        if self._how == "replay":
            episode.actions.append(action)
        self._before = episode.ret, episode.success, episode.facts
        episode.ret += reward
        episode.length += 1
        episode.success, episode.facts = success, facts
        episode.over = terminated or truncated
        return self._last, reward, terminated, truncated

    def refuse(self, shown: Any) -> None:
        """Takes the last step back, since `shown`, what it showed, has numbers outside their space: it has
        failed, as if it had raised, and does not count. Apart from `advance`: a block asks about all
        numbers at once."""
        episode = self.running
        if episode is None or episode.error:  # no step was taken
            self._last = blank(self.observation_space)
            return
        episode.ret, episode.success, episode.facts = self._before
        episode.length -= 1
        if self._names:
            del episode.traces[-1]
        self._last = shown
        self._failed(self._outside("step"))
        episode.over = True

    def point(self) -> Point:
        """Where the episode is now. Raises ConfigError: it has ended, or there is no going back."""
        episode = self.running
        assert episode is not None
        course = Course(
            episode.seed,
            episode.options,
            episode.actions,
            self._last,
            self._info,
            episode.over,
        )
        # The snapshot has the actions; once is enough of what may be long.
        rest = replace(episode, actions=Actions(), traces=list(episode.traces))
        return Point(take(self.env, course, self._how), rest)

    def _note(self, info: Mapping[str, Any]) -> None:
        assert self.running is not None
        if self._names:
            try:
                said = {name: info[name] for name in self._names}
            except KeyError as error:
                raise KeyError(f"info has no {error}; it has {sorted(info)}") from None
            self.running.traces.append(said)

    def _outside(self, when: str) -> ValueError:
        return ValueError(
            f"the observation of {when} lies outside its space {self.observation_space}: "
            f"{str(self._last)[:200]}"
        )

    def _failed(self, error: BaseException) -> None:
        """The episode ends as an error, and the environment is made again before the next."""
        assert self.running is not None
        if isinstance(error, NotTried):
            self.running.error = str(error)
            return
        if isinstance(error, StepTimeout):
            self._patience.late(self.running.seed)
        self.running.error = "".join(traceback.format_exception(error)).strip()
        try:
            with self._alarm:
                self.env.close()
        except (Exception, StepTimeout, SystemExit) as again:
            self.running.error += f"\nand close: {again!r}"
        self._remake = True
        if not self._within(self._last):
            self._last = blank(self.observation_space)

    def _made_again(self) -> None:
        """In place of one that failed. Raises what making raises; then it is tried again."""
        with self._alarm:
            self.env = self._make()
        self._remake = False


def copied(episode: Running) -> Running:
    """The same episode, to go on from independently."""
    return replace(episode, actions=episode.actions.copy(), traces=list(episode.traces))


class Alarm:
    """Raises StepTimeout in what runs longer than said, if it is Python on the main thread.

    A hang in native code is ended by the run's own deadline, with its actor. `install` once a process.
    """

    _installed = False

    @classmethod
    def install(cls) -> None:
        """Takes SIGALRM for this process; call it on the main thread."""
        signal.signal(signal.SIGALRM, cls._late)
        cls._installed = True

    @classmethod
    def installed(cls) -> bool:
        """Whether this process has it."""
        return cls._installed

    @classmethod
    def uninstall(cls) -> None:
        """Gives SIGALRM back."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        cls._installed = False

    @staticmethod
    def _late(signum: int, frame: Any) -> None:
        raise StepTimeout("a step or reset took longer than runner.step_timeout")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def start(self) -> None:
        """Counts from now."""
        if self._installed:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        if self._installed:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()
