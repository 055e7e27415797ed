"""Exact snapshots of one Gymnasium environment in the middle of an episode.

Two ways. `copy` pickles what changes: the attributes of each layer of the wrapper stack and of the
environment below it, its random generator with them; any other environment with the same stack can
be put into that state, in any process. `replay` keeps only how the episode began and what was done,
and does it again: for environments whose state cannot be pickled, and that a seed determines.
An environment that can do neither is refused with what else there is.
"""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import numpy as np

from rlft.errors import ConfigError
from rlft.sampling.actions import Actions

How = Literal["copy", "replay", "none"]

_UNPICKLABLE = (TypeError, ValueError, AttributeError, RecursionError, pickle.PicklingError)
_CONSTANT = (gymnasium.Space, gymnasium.envs.registration.EnvSpec, types.FunctionType)
_WITHOUT = (
    "Without snapshots there are no vines (set algo.rollout_states to 0: whole episodes from the start), "
    "and where a run of segments goes on elsewhere new episodes begin"
)


class TookAnotherCourse(ConfigError):
    """An episode that was played again did not come to where it had been."""


@dataclass(frozen=True, slots=True)
class Course:
    """How an episode came to where it is.

    seed, options: what its reset was given; actions: those since, in order; observation, info: what
    the last of them (or the reset) returned; ended: it terminated or was truncated.
    """

    seed: int | None
    options: Mapping[str, Any] | None = None
    actions: Sequence[Any] = ()
    observation: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to return to, any number of times. layers: the class names of the stack it is of,
    outermost first; state: the pickled attributes of those layers, None for `replay`."""

    how: How
    course: Course
    layers: tuple[str, ...]
    state: bytes | None = None


def take(env: gymnasium.Env, course: Course, how: How = "copy") -> Snapshot:
    """The state that `env` is in. `env` itself is not touched.

    Raises ConfigError: the episode has ended, the environment can do neither (`none`), a state that
    cannot be pickled (`copy`), an episode begun without a seed (`replay`).
    """
    name = _name(env)
    if course.ended:
        after = f" after {len(course.actions)} actions" if len(course.actions) else ""
        raise ConfigError(
            f"{name}: a snapshot was asked of an episode that has ended{after}; expected one under way. "
            f"Take it before the last action"
        )
    if how == "none":
        raise ConfigError(
            f"{name} says `snapshots: none`, expected copy or replay. If its state can be pickled, set "
            f"copy; if a seed and the actions determine it, set replay. {_WITHOUT}"
        )
    layers = tuple(_layers(env))
    names = tuple(type(layer).__name__ for layer in layers)
    course = replace(
        course,
        options=copy.deepcopy(course.options),
        actions=copied_actions(course.actions) if how == "replay" else (),
        observation=_copied(course.observation),
        info=_copied(course.info),
    )
    if how == "replay":
        if course.seed is None:
            raise ConfigError(
                f"{name}: an episode that was started without a seed cannot be replayed. Start it with "
                f"env.reset(seed=...), or set snapshots: copy"
            )
        return Snapshot("replay", course, names)
    return Snapshot("copy", course, names, _pickled(layers, name))


def copied_actions(actions: Sequence[Any]) -> Actions:
    """The same actions, packed."""
    if isinstance(actions, Actions):
        return actions.copy()
    packed = Actions()
    for action in actions:
        packed.append(copy.deepcopy(action))
    return packed


def _copied(value: Any) -> Any:
    """As copy.deepcopy, quicker for what observations mostly are."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    return value if isinstance(value, np.generic | int | float) else copy.deepcopy(value)


def restore(env: gymnasium.Env, snapshot: Snapshot) -> tuple[Any, Mapping[str, Any]]:
    """Puts `env`, which may be another one with the same stack, into the state of `snapshot`.

    Returns the observation and info that were there. Raises ConfigError: another stack, or a replay
    that did not lead to the observation that it should have.
    """
    layers = tuple(_layers(env))
    names = tuple(type(layer).__name__ for layer in layers)
    if names != snapshot.layers:
        raise ConfigError(
            f"{_name(env)}: the snapshot is of a stack {' > '.join(snapshot.layers)}, this one is "
            f"{' > '.join(names)}; restore into an environment made in the same way"
        )
    if snapshot.how == "replay":
        return _replayed(env, snapshot.course)
    assert snapshot.state is not None
    for layer, (kept, state) in zip(layers, _loaded(snapshot.state, layers), strict=True):
        there = vars(layer)
        stays = {k: v for k, v in there.items() if k in kept or not _changes(layer, k, v)}
        there.clear()
        there.update(stays)
        there.update(state)
    return copy.deepcopy(snapshot.course.observation), copy.deepcopy(snapshot.course.info)


def probe(
    env: gymnasium.Env,
    how: How,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    before: int = 10,
    after: int = 20,
) -> None:
    """Tries it: random actions, a snapshot, more actions, back, the same actions again.

    Catches what pickling cannot see: a state outside the object, or dynamics that a seed does not
    determine. Raises ConfigError as `take` and `restore` do, or where the two courses differ.
    """
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed, options=dict(options) if options else None)
    actions: list[Any] = []
    for _ in range(before):
        action = env.action_space.sample()
        seen, _, terminated, truncated, then = env.step(action)
        if terminated or truncated:  # too short an episode: from its start, then
            observation, info = env.reset(seed=seed, options=dict(options) if options else None)
            actions = []
            break
        actions.append(action)
        observation, info = seen, then
    snapshot = take(env, Course(seed, options, tuple(actions), observation, info), how)
    course = [env.action_space.sample() for _ in range(after)]
    first = list(_played(env, course))
    restore(env, snapshot)
    for at, (one, other) in enumerate(zip(first, _played(env, course), strict=True)):
        if not same(one, other):
            raise ConfigError(
                f"{_name(env)}: {at + 1} actions after a snapshot by {how} was restored, the environment "
                f"answered differently from before; expected the same. "
                f"{_other_way(how)}"
            )


def same(one: Any, other: Any) -> bool:
    """Whether two observations or infos are equal: arrays by type, shape and value (NaN is NaN)."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic | float | int):
        a, b = np.asarray(one), np.asarray(other)
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    return bool(one == other)


def _played(env: gymnasium.Env, actions: list[Any]) -> Iterator[tuple[Any, ...]]:
    for action in actions:
        answer = env.step(action)
        yield copy.deepcopy(answer)
        if answer[2] or answer[3]:
            return


def _replayed(env: gymnasium.Env, course: Course) -> tuple[Any, Mapping[str, Any]]:
    options = dict(course.options) if course.options else None
    observation, info = env.reset(seed=course.seed, options=options)
    ended = False
    for at, action in enumerate(course.actions):
        if ended:
            raise TookAnotherCourse(
                f"{_name(env)}: the replay of {len(course.actions)} actions ended after {at}; so a seed "
                f"does not determine its episodes. {_other_way('replay')}"
            )
        observation, _, terminated, truncated, info = env.step(action)
        ended = bool(terminated or truncated)
    if ended or not same(observation, course.observation):
        raise TookAnotherCourse(
            f"{_name(env)}: the replay of {len(course.actions)} actions led to another observation than "
            f"in the episode; so a seed does not determine its episodes. {_other_way('replay')}"
        )
    return observation, info


def _other_way(how: How) -> str:
    other = "replay, if a seed and the actions determine it" if how == "copy" else "copy"
    return f"Set snapshots: {other}; or snapshots: none. {_WITHOUT}"


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """The stack, outermost first."""
    while True:
        yield env
        if not isinstance(env, gymnasium.Wrapper):
            return
        env = env.env


def _name(env: gymnasium.Env) -> str:
    spec = env.unwrapped.spec
    return spec.id if spec is not None else type(env.unwrapped).__name__


def _changes(layer: gymnasium.Env, name: str, value: Any) -> bool:
    """Whether an attribute is part of the state. Spaces, the specification and functions (wrappers hold
    lambdas) are not; nor are windows and surfaces of pygame, nor the layer below, which has its turn.
    A wrapper whose class has `snapshot_state`, a tuple of names, says itself."""
    names = getattr(type(layer), "snapshot_state", None)
    if names is not None:
        return name in names
    if isinstance(value, _CONSTANT) or type(value).__module__.split(".")[0] == "pygame":
        return False
    return not (isinstance(layer, gymnasium.Wrapper) and name == "env")


class _Pickler(pickle.Pickler):
    """Writes a layer as its place in the stack: what refers to its environment (an instruction of
    BabyAI, a bound method) refers to the environment that it is restored into."""

    def __init__(self, file: io.BytesIO, layers: tuple[gymnasium.Env, ...]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._places = {id(layer): place for place, layer in enumerate(layers)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, layers: tuple[gymnasium.Env, ...]) -> None:
        super().__init__(file)
        self._layers = layers

    def persistent_load(self, pid: int) -> gymnasium.Env:
        return self._layers[pid]


def _pickled(layers: tuple[gymnasium.Env, ...], name: str) -> bytes:
    parts = []
    for layer in layers:
        state = {k: v for k, v in vars(layer).items() if _changes(layer, k, v)}
        parts.append((tuple(vars(layer).keys() - state.keys()), state))
    file = io.BytesIO()
    try:
        _Pickler(file, layers).dump(parts)
    except _UNPICKLABLE as error:
        raise ConfigError(
            f"{name}: its state cannot be pickled ({_culprit(layers)}: {error}). {_other_way('copy')}"
        ) from error
    return file.getvalue()


def _loaded(state: bytes, layers: tuple[gymnasium.Env, ...]) -> list[tuple[Any, dict[str, Any]]]:
    return _Unpickler(io.BytesIO(state), layers).load()


def _culprit(layers: tuple[gymnasium.Env, ...]) -> str:
    for layer in layers:
        for name, value in vars(layer).items():
            if _changes(layer, name, value):
                try:
                    _Pickler(io.BytesIO(), layers).dump(value)
                except _UNPICKLABLE:
                    return f"{type(layer).__name__}.{name}, a {type(value).__name__}"
    return "attributes that refer to each other"
