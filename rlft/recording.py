"""`rlft record`: episodes of a trained policy as demonstrations, to learn from offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlft.check import check_plugins
from rlft.demonstrations import Demonstration, check_name, write
from rlft.errors import ConfigError
from rlft.evaluate import Subject
from rlft.policy.observed import WHOLE
from rlft.sampling.episodes import Start
from rlft.sampling.rollouts import pieces_of
from rlft.sampling.strips import Piece
from rlft.sampling.vector import to_env
from rlft.seeding import Key


def record(
    subject: Subject, out: Path, *, episodes: int, greedy: bool, say: Callable[[str], None]
) -> None:
    """Plays `episodes` episodes from the environment's training starts, one a start, from the first again
    where they run out, and writes those that did not fail to `out`.

    Raises ConfigError: a policy that writes, no trained policy, an environment inside another. DataError:
    a name that is no .npz, every episode failed.
    """
    check_name(out)
    algo, env = check_plugins(subject.cfg)
    if not algo.acts or subject.model is None:
        raise ConfigError(f"{subject.title}: expected a trained policy that acts in an environment")
    if hasattr(env, "inner"):
        raise ConfigError(
            f"{subject.title}: its environment stands inside another; record a policy of that one itself"
        )
    tasks, key = env.train(), Key(subject.cfg.seed).child("rlft record")
    starts = [Start(tasks[i % len(tasks)], key.child(i).seed(63)) for i in range(episodes)]
    pieces = pieces_of(
        *(env, subject.model, lambda block, policy: starts),
        greedy=greedy,
        envs=32,
        record=True,
        timeout=subject.cfg.runner.step_timeout,
    )
    one = env.make()
    whole = [(s, p) for s, p in zip(starts, pieces, strict=True) if p.end != "error"]
    write(out, [_demonstration(p, s, one.action_space) for s, p in whole])
    one.close()
    steps = sum(len(p.strip.reward) for _, p in whole)
    mean = np.mean([p.strip.reward.sum() for _, p in whole])
    say(
        f"{out}: {len(whole)} episodes, {steps} steps, mean return {mean:.3f}, "
        f"{len(pieces) - len(whole)} failed and left out"
    )


def _demonstration(piece: Piece, start: Start, actions: Any) -> Demonstration:
    strip = piece.strip
    seen = strip.obs[WHOLE] if set(strip.obs) == {WHOLE} else strip.obs
    done = to_env(actions, strip.action)
    return Demonstration(
        seen, done, strip.reward, start.task.info.get("seed"), piece.end == "terminated"
    )
