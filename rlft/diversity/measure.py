"""What a diversity function is given, and what it may answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlft.errors import ConfigError, PluginError, did_you_mean

Traces = Mapping[str, np.ndarray]
"""Of one episode: trace name -> int `[T + 1, d]`, or `[T + 1]` for one number a step."""

Diversity = Callable[[Sequence[Traces]], float]

VINE_START = "vine_start"
"""Int `[1]`: the row at which a vine left its seed trajectory. Missing: the first."""


def diversity_of(fn: Diversity, traces: Sequence[Traces]) -> float:
    """`fn(traces)`, checked. Raises PluginError unless it is a number in [0, 1]."""
    value = fn(traces)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:
        name = getattr(fn, "__name__", None) or getattr(fn, "func", fn)
        raise PluginError(
            f"diversity {name}: answered {value!r:.80} for a set of {len(traces)} episodes, expected a "
            f"number from 0 (all alike) to 1"
        )
    return number


def require_traces(fn: Diversity, names: Sequence[str]) -> None:
    """Raises ConfigError if `fn` has a key `trace` that is none of `names`, what an environment records."""
    key = inspect.signature(fn).parameters.get("trace")
    if key is not None and isinstance(key.default, str) and key.default not in names:
        raise _not_recorded(key.default, names)


def _not_recorded(name: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"diversity reads the trace {name!r}, which the environment does not record."
        f"{did_you_mean(name, known)} It records: {', '.join(known) or 'none'}; choose one by the "
        f"function's key `trace`"
    )


def trace_of(episode: Traces, name: str, since_vine: bool) -> np.ndarray:
    """Int `[T + 1, d]` of trace `name`; since_vine: only from the rollout state on, if there is one.

    Raises ConfigError for a trace that the environment does not record, or that is not whole numbers.
    """
    if name not in episode:
        raise _not_recorded(name, sorted(episode.keys() - {VINE_START}))
    trace_Td = np.asarray(episode[name])
    if trace_Td.dtype.kind not in "iub":
        raise ConfigError(
            f"diversity: the trace {name!r} has dtype {trace_Td.dtype}, expected whole numbers"
        )
    trace_Td = trace_Td.reshape(len(trace_Td), -1)
    if since_vine and VINE_START in episode:
        trace_Td = trace_Td[int(np.ravel(episode[VINE_START])[0]) :]
    return trace_Td


def visited(episode: Traces, name: str, since_vine: bool) -> frozenset[tuple[int, ...]]:
    """The set of places that a trace passes."""
    return frozenset(map(tuple, trace_of(episode, name, since_vine).tolist()))
