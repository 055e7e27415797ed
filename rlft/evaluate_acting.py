"""`rlft eval` of a policy that acts: many episodes from each held-out configuration.

Mean return, success, pass@k without bias, and coverage (configurations solved at least once), each with
a bootstrap interval over configurations. An episode succeeds if the environment says so, or, where it says
nothing of any episode, by its return reaching the threshold. An episode that failed is no success, and is
counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rlft import registry
from rlft.check import check_plugins
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.evaluate import Subject
from rlft.record.episodes import Evaluation, evaluation
from rlft.sampling.rollouts import rollouts
from rlft.seeding import Key
from rlft.types import Episode


def acts(cfg: Config) -> bool:
    """Whether the policy of `cfg` acts in an environment."""
    return bool(registry.build("algo", cfg.algo).acts)


def evaluate_acting(
    subject: Subject,
    *,
    samples: int,
    ks: Sequence[int],
    threshold: float,
    greedy: bool,
    say: Callable[[str], None],
) -> tuple[Evaluation, list[list[Episode]]]:
    """`samples` episodes from each of the first `eval.max_tasks` held-out configurations, in this process.

    The randomness of an episode depends on the run's seed, the configuration's place and its number.
    """
    if bad := [k for k in ks if not 1 <= k <= samples]:
        raise ConfigError(f"k={bad[0]} needs 1 <= k <= samples, which is {samples}")
    cfg = subject.cfg
    _, env = check_plugins(cfg)
    if subject.model is None:
        raise ConfigError(
            f"{subject.title}: a policy that has not been trained is a random one; give a run folder or "
            f"a checkpoint"
        )
    held_out = env.held_out()
    tasks = [held_out[i] for i in range(min(cfg.eval.max_tasks, len(held_out)))]
    key, began = Key(cfg.seed).child("rlft eval"), time.monotonic()
    timeout = cfg.runner.step_timeout
    episodes = rollouts(env, subject.model, tasks, samples, key, greedy=greedy, timeout=timeout)
    returns = np.array([[e.ret if e.end != "error" else 0.0 for e in row] for row in episodes])
    # Who says of one episode that it succeeded means of the others that they did not.
    says = any(e.success is not None for row in episodes for e in row)
    success = np.array(
        [[succeeded(e, None if says else threshold) for e in row] for row in episodes]
    )
    steps = sum(e.length for row in episodes for e in row)
    seconds = time.monotonic() - began
    say(f"{returns.size:,} episodes of together {steps:,} steps in {seconds:.1f} s")
    return evaluation(returns[None], success[None], ks=ks), episodes


def succeeded(episode: Episode, threshold: float | None) -> bool:
    """Whether an episode passes. threshold: of its return, None: where the environment says."""
    if episode.end == "error":
        return False
    return bool(episode.success) if threshold is None else episode.ret >= threshold


def lines(result: Evaluation, episodes: Sequence[Sequence[Episode]]) -> Iterator[str]:
    """The result for a person."""
    whole = [e for row in episodes for e in row]
    yield f"{len(episodes)} configurations x {len(episodes[0])} episodes; in brackets 95% intervals"
    for name, value in (
        ("mean return", result.ret),
        ("success", result.success),
        ("coverage", result.coverage),
    ):
        yield f"{name:>12}  {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    failed = sum(e.end == "error" for e in whole)
    yield f"{np.mean([e.length for e in whole]):.1f} steps an episode" + (
        f"; {failed} episodes failed: no success, return 0" if failed else ""
    )
    yield f"{'k':>6}{'pass@k':>10}"
    for i, k in enumerate(result.ks):
        at = result.pass_at
        value, low, high = (np.atleast_1d(x)[i] for x in (at.value, at.low, at.high))
        yield f"{k:>6}{value:>10.4f} [{low:.4f}, {high:.4f}]"


def write_result(
    path: Path, subject: Subject, result: Evaluation, episodes: Sequence[Sequence[Episode]]
) -> None:
    """The figures, and every configuration's returns, as JSON."""
    figures = {
        name: {k: np.asarray(getattr(value, k)).tolist() for k in ("value", "low", "high")}
        for name in ("ret", "success", "coverage", "pass_at")
        for value in [getattr(result, name)]
    }
    by_task = [
        {"seed": row[0].seed, "returns": [e.ret for e in row], "ends": [e.end for e in row]}
        for row in episodes
    ]
    whole = {"of": subject.title, "ks": list(result.ks), **figures, "by_task": by_task}
    path.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
