"""A block of environments that a policy acts in together, step by step.

What is done with a block is written as a generator that yields what the policy is to act on and is sent
its answer; whoever drives several of them may let one's policy compute while another's environments
step. A block's work is a function of the weights and of what it was asked, and not of the actor that
does it: seeds and noise come from the work's own key.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np

from rlft.policy.observed import as_arrays, is_row
from rlft.sampling.abreast import Abreast
from rlft.sampling.guarded import Guarded, Patience, Point, Running
from rlft.sampling.snapshot import How, TookAnotherCourse
from rlft.sampling.strips import Choice, Judged, Line, Piece, Record, Seen
from rlft.seeding import Key
from rlft.types import End, Episode, Task

Limit = Literal["cuts", "ends"]
Rolling = Generator[Seen | Judged, Any, Any]


@dataclass(frozen=True, slots=True)
class Start:
    """Where an episode begins. task: a configuration; seed: of the noise that its actions are drawn with;
    point, state: a point in an earlier episode, and the recurrent state there; or_fail: a point from which
    another course is taken is an episode that failed, and no ConfigError."""

    task: Task
    seed: int
    point: Point | None = None
    state: np.ndarray | None = None
    or_fail: bool = False


@dataclass(frozen=True, slots=True)
class Rest:
    """Where a block was left: a point, a recurrent state and the number of the episode under way, for each
    of its environments. number: of stretches before. Without points, of environments that cannot be put
    back, another block begins the next episodes."""

    points: tuple[Point, ...] | None
    state: np.ndarray | None
    episodes: tuple[int, ...]
    number: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """What will be a strip: steps `first` to `upto` of an environment. bootstrap: None until the critic is
    asked; after: what was seen then; episode: if it ended there; failed: with an error."""

    slot: int
    first: int
    upto: int
    bootstrap: float | None
    after: Mapping[str, np.ndarray]
    episode: Episode | None = None
    continues: bool = False
    failed: bool = False


class Block:
    """M environments in one Gymnasium vector environment."""

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        size: int,
        choice: Choice,
        traces: tuple[str, ...] = (),
        timeout: float = 60.0,
        how: How = "copy",
        solved_above: float | None = None,
        limit: Limit = "cuts",
    ) -> None:
        """solved_above: the return above which an episode is a success, where `info` does not say; limit:
        whether an episode that runs out of steps is cut, so that the critic says what would have come,
        or has ended with nothing to come, as where the limit is part of the task."""
        self.size, self.choice, self._traces, self._limit = size, choice, traces, limit
        self._solved_above, self._how = solved_above, how
        self._patience = Patience()
        guarded = [lambda: Guarded(make, traces, timeout, how, self._patience)] * size
        self._vec = Abreast(guarded, timeout)
        self._envs = self._vec.guarded
        self.number = 0
        self._state = np.zeros((size, choice.state_size), np.float32) if choice.state_size else None
        self._obs: dict[str, np.ndarray] = {}
        self._held: Rest | None = None
        self._record: Record | None = None
        self._began = [(0, 0.0)] * size  # steps and return of the episode before what is recorded

    @property
    def space(self) -> gymnasium.Space:
        return self._vec.single_observation_space

    def close(self) -> None:
        self._vec.close()

    # -- stretches of a fixed number of steps ----------------------------------------------------

    def segments(
        self,
        rest: Rest | None,
        steps: int,
        key: Key,
        task_of: Callable[[int, int], Task],
    ) -> Generator[Seen | Judged, Any, tuple[list[Piece], Rest]]:
        """`steps` steps of each environment, episode after episode, from where `rest` left them.

        key: of this stretch's noise; task_of: (environment, number of its episode) -> configuration.
        """
        yield from ()
        self._patience.renew()
        episodes = self._resume(rest, task_of)
        rng = np.random.default_rng(key.seed())
        noise = self.choice.noise(rng, steps * self.size)
        record = self._recording(steps)
        firsts = [0] * self.size
        under_way = [env.running.length > 0 for env in self._envs]
        cuts: list[_Cut] = []
        apart = False
        for t in range(steps):
            seen = Seen(self._obs, self._state)
            record.see(t, seen)
            acted = yield seen
            apart = acted.value is None
            drawn = noise[t * self.size : (t + 1) * self.size]
            action = self.choice.choose(acted.params, drawn)
            reward, terminated, over = self._step(action)
            record.act(t, action, acted, reward)
            self._state = acted.state
            if not over.any():
                continue
            # What came after a limit on steps is worth something.
            value = None
            if not apart and (over & ~terminated).any():
                value = (yield Seen(self._obs, self._state)).value
            for slot in np.flatnonzero(over).tolist():
                episode = self._ended(slot, bool(terminated[slot]))
                failed = episode.end == "error"  # the step that failed taught nothing
                upto = t if failed else t + 1
                worth = None if value is None else float(value[slot])
                if self._is_over(episode):
                    worth = 0.0
                after = record.seen(t, slot) if failed else self._shown(slot)
                cut = _Cut(slot, firsts[slot], upto, worth, after, episode)
                cuts.append(replace(cut, continues=under_way[slot], failed=failed))
                firsts[slot], under_way[slot] = t + 1, False
                episodes[slot] += 1
                self._envs[slot].begin(_running(task_of(slot, episodes[slot])))
                self._began[slot] = (0, 0.0)
            self._reset(over)
        value = None if apart else (yield Seen(self._obs, self._state)).value
        for slot in range(self.size):
            if firsts[slot] < steps:
                worth = None if value is None else float(value[slot])
                cut = _Cut(slot, firsts[slot], steps, worth, self._shown(slot))
                cuts.append(replace(cut, continues=under_way[slot]))
        if apart:
            value = yield record.judged([cut.after for cut in cuts])
            record.valued(value[: -len(cuts)])
            cuts = [
                replace(cut, bootstrap=float(v)) if cut.bootstrap is None else cut
                for cut, v in zip(cuts, value[-len(cuts) :], strict=True)
            ]
        record.weigh(self.choice)
        pieces = [_piece(record, cut) for cut in cuts]
        self.number += 1
        points = None if self._how == "none" else tuple(env.point() for env in self._envs)
        state = None if self._state is None else self._state.copy()
        self._held = Rest(points, state, tuple(episodes), self.number)
        return pieces, self._held

    def _recording(self, steps: int) -> Record:
        """Arrays for so many steps: the last ones again, since strips copy and fresh memory is slow."""
        if self._record is None or self._record.steps != steps:
            self._record = Record(self.size, steps)
        return self._record

    def _resume(self, rest: Rest | None, task_of: Callable[[int, int], Task]) -> list[int]:
        """Brings the environments to `rest`, unless they are there; returns each one's episode number."""
        held = self._held
        if (
            rest is not None
            and held is not None
            and (rest.number, rest.episodes) == (held.number, held.episodes)
        ):
            return list(rest.episodes)  # it still is where it was left
        everyone = np.ones(self.size, bool)
        if rest is None:
            self.number = 0
            for slot, env in enumerate(self._envs):
                env.begin(_running(task_of(slot, 0)))
            self._reset(everyone)
            return [0] * self.size
        self.number = rest.number
        if rest.points is None:
            episodes = [number + 1 for number in rest.episodes]
            for slot, env in enumerate(self._envs):
                env.begin(_running(task_of(slot, episodes[slot])))
                self._began[slot] = (0, 0.0)
            self._reset(everyone)
            return episodes
        for slot, (env, point) in enumerate(zip(self._envs, rest.points, strict=True)):
            # A run must not end on it that in one game of many a shopkeeper has another name.
            env.begin(point, or_fail=True)
            self._began[slot] = (0, 0.0)
        self._reset(everyone)
        self._state = None if rest.state is None else rest.state.copy()
        return list(rest.episodes)

    # -- whole episodes --------------------------------------------------------------------------

    def episodes(
        self,
        starts: Sequence[Start],
        *,
        greedy: bool = False,
        keep_states: bool = False,
        record: bool = True,
    ) -> Generator[Seen | Judged, Any, tuple[list[Piece], list[np.ndarray | None]]]:
        """One whole episode from each of `starts`, in their order; environments take the next when they
        are done. keep_states: also each episode's recurrent states `[T, H]`; record: False leaves the
        strips empty, and no critic apart is asked, where only how the episodes went is of interest."""
        yield from ()
        self._patience.renew()
        self._held = None
        pieces: list[Piece | None] = [None] * len(starts)
        states: list[np.ndarray | None] = [None] * len(starts)
        records: list[Line | None] = [None] * self.size
        waiting = iter(range(len(starts)))

        def next_for(slot: int) -> None:
            index = next(waiting, None)
            records[slot] = None
            if index is None:
                self._envs[slot].begin(None)
                return
            start = starts[index]
            at = start.point or _running(start.task)
            self._envs[slot].begin(at, or_fail=start.or_fail)
            past = start.point.running if start.point else None
            self._began[slot] = (past.length, past.ret) if past else (0, 0.0)
            records[slot] = Line(index, start.seed, record)
            if self._state is not None:
                self._state = self._state.copy()
                self._state[slot] = 0 if start.state is None else start.state

        for slot in range(self.size):
            next_for(slot)
        self._reset(np.ones(self.size, bool), keep_state=True)
        while any(line is not None for line in records):
            seen = Seen(self._obs, self._state)
            for slot, line in enumerate(records):
                if line is not None:
                    line.see(seen, slot)
            acted = yield seen
            noise = None if greedy else self._noise(records)
            action = self.choice.choose(acted.params, noise)
            reward, terminated, over = self._step(action)
            self._state = acted.state
            for slot, line in enumerate(records):
                if line is not None:
                    line.act(action[slot], acted, slot, reward[slot])
            over &= np.array([line is not None for line in records])
            if not over.any():
                continue
            value = None
            if acted.value is not None and (over & ~terminated).any():
                value = (yield Seen(self._obs, self._state)).value
            for slot in np.flatnonzero(over).tolist():
                line = records[slot]
                assert line is not None
                episode = self._ended(slot, bool(terminated[slot]))
                failed = episode.end == "error"
                # What a failed step shows is nothing to go by: it counts as not taken.
                after = line.seen() if failed else self._shown(slot)
                bootstrap = 0.0 if value is None else float(value[slot])
                if failed:
                    bootstrap = line.worth()
                if acted.value is None and record:
                    judged = yield line.judged(after)
                    line.valued(judged[:-1])
                    bootstrap = float(judged[-1])
                if self._is_over(episode):
                    bootstrap = 0.0
                strip = line.strip(bootstrap, after, self.choice, failed=failed)
                pieces[line.index] = Piece(strip, line.index, episode.end, episode)
                states[line.index] = line.states() if keep_states else None
                next_for(slot)
            self._reset(over, keep_state=True)
        return [p for p in pieces if p is not None], states

    def points_of(
        self,
        task: Task,
        actions: np.ndarray,
        after: Sequence[int],
        obs: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[list[Point], Episode | None]:
        """The points of the episode from `task` after each of these numbers, in order, of its `actions`
        (float32 `[T, A]`), by taking them again; or none, and the episode that failed meanwhile. obs:
        what was seen before each action. Raises TookAnotherCourse."""
        env = self._envs[0]
        self._held = None
        env.begin(_running(task))
        shown, _ = env.reset()
        self._began[0] = (0, 0.0)
        found = []
        for t in range(after[-1] + 1):
            if env.running.error:
                env.running.over = True
                return [], self._ended(0, False)
            if env.running.over or (obs is not None and not is_row(shown, obs, t)):
                raise TookAnotherCourse(
                    f"the episode of {task.id!r} took another course after {t} of {len(actions)} steps "
                    f"when it was taken again: a seed does not determine this environment's episodes, or "
                    f"it is not the one that they are of. For training without vines set "
                    f"algo.rollout_states to 0"
                )
            if t in after:
                found.append(env.point())
            if t < after[-1]:
                shown = env.step(self.choice.to_env(actions[t][None])[0])[0]
        return found, None

    # -- one step --------------------------------------------------------------------------------

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(reward, terminated, over), each `[M]`."""
        answer = self._vec.step(self.choice.to_env(action))
        obs, reward, terminated, truncated, _ = answer
        self._obs = as_arrays(obs)
        return reward.astype(np.float32), terminated, terminated | truncated

    def _reset(self, which: np.ndarray, keep_state: bool = False) -> None:
        obs: Any = self._vec.reset(options={"reset_mask": which})[0]
        self._obs = as_arrays(obs)
        if self._state is not None and not keep_state:
            self._state = np.where(which[:, None], np.float32(0), self._state)

    def _is_over(self, episode: Episode) -> bool:
        """Whether nothing comes after it."""
        return episode.end == "terminated" or (episode.end == "truncated" and self._limit == "ends")

    def _shown(self, slot: int) -> dict[str, np.ndarray]:
        """What one environment shows now."""
        return {name: x[slot].copy() for name, x in self._obs.items()}

    def _noise(self, records: Sequence[Line | None]) -> np.ndarray:
        drawn = [None if line is None else line.noise(self.choice) for line in records]
        blank = np.zeros_like(next(x for x in drawn if x is not None))
        return np.stack([blank if x is None else x for x in drawn])

    def _ended(self, slot: int, terminated: bool) -> Episode:
        running: Running = self._envs[slot].running
        end: End = "error" if running.error else "terminated" if terminated else "truncated"
        traces = {
            name: trace_of([x[name] for x in running.traces])
            for name in self._traces
            if running.traces
        }
        success = running.success
        if success is None and self._solved_above is not None:
            success = running.ret > self._solved_above
        return Episode(
            running.seed,
            running.ret,
            running.length,
            end,
            success,
            traces,
            running.error,
            *self._began[slot],
            facts=running.facts,
        )


def trace_of(seen: list[Any]) -> np.ndarray:
    """int32 `[T, ...]` of what `info` said at each step; of single numbers `[T, 1]`."""
    try:
        found = np.array(seen, np.int32)
    except (ValueError, OverflowError):  # numbers and arrays of one; numbers beyond 32 bits
        return np.stack([np.atleast_1d(np.asarray(x).astype(np.int32)) for x in seen])
    return found[:, None] if found.ndim == 1 else found


def _piece(record: Record, cut: _Cut) -> Piece:
    bootstrap = record.value(cut.upto, cut.slot) if cut.failed else cut.bootstrap
    assert bootstrap is not None
    strip = record.strip(cut.slot, cut.first, cut.upto, bootstrap, cut.after)
    strip = replace(strip, slot=cut.slot, continues=cut.continues)
    return Piece(strip, cut.slot, cut.episode.end if cut.episode else "cut", cut.episode)


def _running(task: Task) -> Running:
    return Running(int(task.info["seed"]), dict(task.info.get("options") or {}))
