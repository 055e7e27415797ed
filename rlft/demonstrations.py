"""Demonstrations of an environment in a file: `.npz`, `.jsonl`, or a Minari data set.

`.npz`: `lengths`, `seeds` int64 `[E]` (-1: unknown), `terminated` bool `[E]`, and of all episodes one
after the other `actions` `[N, ...]`, `rewards` float32 `[N]`, `observation` `[N, ...]` or
`observation/NAME` of each entry of a Dict. `.jsonl`: an object a line with `observations` (a list, or an
object of lists), `actions`, and perhaps `rewards`, `seed`, `terminated`. `minari:ID`: by the package
minari, if it is installed. Imports gymnasium.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlft.errors import DataError

MINARI = "minari:"
_NEEDED = ("lengths", "seeds", "terminated", "actions", "rewards")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode: what was seen before each action, and what was done.

    observations: `[T, ...]`, or a mapping of those for a Dict; actions: `[T, ...]`; rewards: float32
    `[T]`; seed: of the environment's reset, None if unknown; terminated: it ended by itself.
    """

    observations: np.ndarray | Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    seed: int | None = None
    terminated: bool = True

    def __len__(self) -> int:
        return len(self.actions)


def write(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    """Writes an `.npz` file. Raises DataError for no demonstration, or another ending."""
    check_name(path)
    if not demonstrations:
        raise DataError(f"{path}: there is no demonstration to write")
    arrays: dict[str, np.ndarray] = {
        "lengths": np.array([len(d) for d in demonstrations]),
        "seeds": np.array([-1 if d.seed is None else d.seed for d in demonstrations]),
        "terminated": np.array([d.terminated for d in demonstrations]),
        "actions": np.concatenate([d.actions for d in demonstrations]),
        "rewards": np.concatenate([d.rewards for d in demonstrations]).astype(np.float32),
    }
    first = demonstrations[0].observations
    for name in first if isinstance(first, Mapping) else [""]:
        parts = [_part(d.observations, name) for d in demonstrations]
        arrays[f"observation/{name}" if name else "observation"] = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def check_name(path: Path) -> None:
    """Raises DataError unless `write` can write there."""
    if path.suffix != ".npz":
        raise DataError(f"{path}: demonstrations are written as .npz; expected such a name")


def read(
    source: str | Path,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    adapt: Callable[[Any], Any] | None = None,
) -> list[Demonstration]:
    """The demonstrations of a file, as arrays of the dtypes of the spaces.

    adapt: from one observation of a Minari data set to one of `observation_space` (a mission's text to
    numbers, say). Raises DataError: no such file, not one of the formats, damaged, without an episode,
    or with values outside the spaces.
    """
    name = str(source)
    if name.startswith(MINARI):
        raw = _minari(name.removeprefix(MINARI), adapt)
    else:
        path = Path(source).expanduser()
        reader = {".npz": _npz, ".jsonl": _jsonl}.get(path.suffix)
        if reader is None:
            raise DataError(f"{path}: expected a name that ends in .npz or .jsonl, or {MINARI}ID")
        if not path.is_file():
            raise DataError(f"{path} is not a file; expected demonstrations as .npz or .jsonl")
        raw = reader(path)
    found = []
    for where, fields in raw:
        found.append(_checked(fields, observation_space, action_space, f"{name}, {where}"))
    if not found:
        raise DataError(f"{name} has no episode; expected at least one demonstration")
    return found


# -- checks --------------------------------------------------------------------------------------


def _checked(
    fields: Mapping[str, Any],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    where: str,
) -> Demonstration:
    for key in ("observations", "actions"):
        if fields.get(key) is None:
            raise DataError(f"{where} has no {key!r}; found: {', '.join(fields) or 'nothing'}")
    actions = _fitting(fields["actions"], action_space, f"{where}: actions")
    length = len(actions)
    if not length:
        raise DataError(f"{where} has no action; expected an episode of at least one")
    given = fields["observations"]
    observations: Any
    if isinstance(observation_space, spaces.Dict):
        if not isinstance(given, Mapping) or given.keys() != observation_space.spaces.keys():
            got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise DataError(
                f"{where}: observations hold {got}, expected {sorted(observation_space.spaces)}, the "
                f"environment's. Was the file made with other keys of the environment?"
            )
        observations = {
            name: _fitting(given[name], space, f"{where}: observation {name!r}")
            for name, space in observation_space.spaces.items()
        }
    else:
        observations = _fitting(given, observation_space, f"{where}: observations")
    rewards = fields.get("rewards")
    rewards = np.zeros(length) if rewards is None else _numbers(rewards, f"{where}: rewards")
    parts = observations.values() if isinstance(observations, dict) else [observations]
    if any(len(part) != length for part in (*parts, rewards)):
        raise DataError(
            f"{where}: {length} actions, {[len(p) for p in parts]} observations, {len(rewards)} rewards; "
            f"expected one observation before each action, and one reward after it"
        )
    seed = fields.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise DataError(f"{where}: seed is {seed!r:.80}, expected a whole number, or none")
    return Demonstration(
        observations,
        actions,
        rewards.astype(np.float32),
        None if seed is None or seed < 0 else int(seed),
        bool(fields.get("terminated", True)),
    )


def _numbers(values: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} are {values!r:.80}, expected one number a step") from error
    if array.ndim != 1 or not np.isfinite(array).all():
        raise DataError(f"{where} are {values!r:.80}, expected one finite number a step")
    return array


def _fitting(values: Any, space: spaces.Space, where: str) -> np.ndarray:
    """`values` `[T, ...]` in the dtype of the space, if each lies in it."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where} are no array: {error}") from error
    shape = space.shape or ()
    if array.shape[1:] != shape or array.ndim != len(shape) + 1 or array.dtype.kind not in "buif":
        raise DataError(
            f"{where} have dtype {array.dtype} and shape {list(array.shape)}, expected numbers of shape "
            f"[T{''.join(f', {n}' for n in shape)}] for the space {space!r:.80}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where} hold {array[~np.isfinite(array)][0]}, expected finite numbers")
    low, high = _bounds(space)
    if not (np.all(array >= low) and np.all(array <= high)):
        raise DataError(
            f"{where} go from {array.min()} to {array.max()}, outside of the space {space!r:.80}; was "
            f"the file made with other keys of the environment?"
        )
    dtype = np.dtype(space.dtype)
    if dtype.kind in "iub" and array.dtype.kind == "f" and np.any(array != np.floor(array)):
        raise DataError(f"{where} hold fractions, expected whole numbers for {space!r:.80}")
    return array.astype(dtype)


def _bounds(space: spaces.Space) -> tuple[Any, Any]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return 0, 1


def _part(observations: np.ndarray | Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return observations[name] if isinstance(observations, Mapping) else observations


# -- formats -------------------------------------------------------------------------------------


def _npz(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged or no .npz file ({type(error).__name__}: {error}); make it again"
        ) from error
    missing = [name for name in _NEEDED if name not in arrays]
    seen = {n: a for n, a in arrays.items() if n.partition("/")[0] == "observation"}
    if missing or not seen:
        raise DataError(
            f"{path} has no array {', '.join(missing) or 'observation'}; found: "
            f"{', '.join(arrays) or 'none'}. Expected what rlft.demonstrations.write writes"
        )
    steps = int(arrays["lengths"].sum())
    for name, array in {**seen, "actions": arrays["actions"], "rewards": arrays["rewards"]}.items():
        if len(array) != steps:
            raise DataError(
                f"{path}: {name} has {len(array)} rows, the episodes have {steps} steps; make it again"
            )
    start = 0
    for episode, length in enumerate(arrays["lengths"].tolist()):
        part = slice(start, start + length)
        start += length
        observations: Any = {n.partition("/")[2]: a[part] for n, a in seen.items()}
        yield (
            f"episode {episode + 1}",
            {
                "observations": observations.get("", observations),
                "actions": arrays["actions"][part],
                "rewards": arrays["rewards"][part],
                "seed": int(arrays["seeds"][episode]),
                "terminated": bool(arrays["terminated"][episode]),
            },
        )


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, line {number} is a {type(value).__name__}, expected an object with "
                f"'observations' and 'actions'"
            )
        yield f"line {number}", value


def _minari(
    name: str, adapt: Callable[[Any], Any] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import minari
    except ImportError as error:
        raise DataError(
            f"{MINARI}{name} is read with the package minari, which is not installed: pip install minari, "
            f"or give an .npz or .jsonl file"
        ) from error
    try:
        data = minari.load_dataset(name)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{MINARI}{name} cannot be loaded ({error}); fetch it first: minari download {name}"
        ) from error
    for number, episode in enumerate(data.iterate_episodes(), start=1):
        length = len(episode.actions)
        yield (
            f"episode {number}",
            {
                # One more than actions: the last was seen after the end.
                "observations": _stacked(_steps(episode.observations, length), adapt),
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminated": bool(np.any(episode.terminations)),
            },
        )


def _steps(observations: Any, length: int) -> list[Any]:
    if isinstance(observations, Mapping):
        return [{k: v[t] for k, v in observations.items()} for t in range(length)]
    return [observations[t] for t in range(length)]


def _stacked(steps: list[Any], adapt: Callable[[Any], Any] | None) -> Any:
    steps = [adapt(step) for step in steps] if adapt else steps
    if steps and isinstance(steps[0], Mapping):
        return {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    return np.stack(steps) if steps else np.zeros(0)
