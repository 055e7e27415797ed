"""`rlft eval`: many sampled answers to held-out tasks, from the engine that a run samples with.

Mean reward, mean@n (the share that passes), entropy, length, and without bias pass@k, maj@k and
distinct@k (how many different answers). An answer passes if its reward reaches the
threshold. An answer whose reward failed is left out and counted; a task with fewer than `k` answers
left is left out of that k, and counted too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rlft.check import check_installation, check_plugins
from rlft.cluster.placement import make_plan
from rlft.cluster.session import name_accelerator, ray_session
from rlft.cluster.start_fleet import start_fleet
from rlft.cluster.waits import Waits, fetch
from rlft.collect import Collector
from rlft.config import Config, load_config
from rlft.errors import CheckpointError, ConfigError
from rlft.policy.start import start_folder
from rlft.policy.text import Text
from rlft.record.checkpoint import newest_checkpoint
from rlft.record.estimators import distinct_at_k, maj_at_k, pass_at_k
from rlft.seeding import Key
from rlft.types import Group, Task


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated. model: a Hugging Face folder, or None for the configuration's own start."""

    cfg: Config
    model: Path | None
    title: str


@dataclass(frozen=True, slots=True)
class Score:
    """What came out. passed: the share of answers that pass; tokens, longest: mean and largest length;
    entropy: nats a token, estimated from the sampled ones, None for greedy answers; pass_at, maj_at,
    distinct_at: by k, of texts where the environment reads no answers; left_out: tasks without enough
    answers, by k."""

    tasks: int
    samples: int
    mean: float
    errors: int
    truncated: float
    tokens: float
    longest: int
    passed: float
    entropy: float | None
    pass_at: Mapping[int, float]
    maj_at: Mapping[int, float]
    distinct_at: Mapping[int, float]
    left_out: Mapping[int, int]


def find_subject(target: Path, overrides: Iterable[str] = ()) -> Subject:
    """A configuration (its start model), a run folder (its newest checkpoint) or a checkpoint.

    Raises ConfigError or CheckpointError if it is none of these.
    """
    if (target / "state.json").is_file():
        return _of_run(target.resolve().parents[1], target.resolve(), overrides)
    if (target / "config.yaml").is_file():
        newest = newest_checkpoint(target / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{target} has no checkpoint yet; nothing to evaluate")
        return _of_run(target, newest, overrides)
    if target.is_dir():
        raise ConfigError(
            f"{target} is neither a run folder (it has no config.yaml) nor a checkpoint (no state.json)"
        )
    cfg = load_config(target, overrides)
    if cfg.warm_start is not None:
        raise ConfigError(
            f"{target} starts from a warm start, so it has no model before it ran; give a run folder or "
            f"a checkpoint, e.g. {cfg.run_root}/{cfg.name}/DATE-TIME"
        )
    return Subject(cfg, None, f"the start model of {target}")


def _of_run(folder: Path, checkpoint: Path, overrides: Iterable[str]) -> Subject:
    cfg = load_config(folder / "config.yaml", overrides)
    return Subject(cfg, checkpoint / "model", str(checkpoint))


def evaluate(
    subject: Subject,
    *,
    samples: int,
    ks: Sequence[int],
    threshold: float,
    greedy: bool,
    say: Callable[[str], None],
) -> tuple[Score, list[Group]]:
    """Samples `samples` answers to each of the first `eval.max_tasks` held-out tasks, and scores them.

    The seed of an answer depends on the run's seed, the task's place and the answer's number alone.
    """
    if bad := [k for k in ks if not 1 <= k <= samples]:
        raise ConfigError(f"k={bad[0]} needs 1 <= k <= samples, which is {samples}")
    # Evaluates, whatever the configuration says: this makes the checks ask for sampler and rewards.
    cfg = subject.cfg
    cfg = cfg.model_copy(update={"eval": cfg.eval.model_copy(update={"at_end": True})})
    name_accelerator(cfg)
    _, env = check_plugins(cfg)
    check_installation(cfg)
    held_out = env.held_out()
    tasks = [held_out[i] for i in range(min(cfg.eval.max_tasks, len(held_out)))]
    with tempfile.TemporaryDirectory(prefix="rlft-eval-") as scratch:
        start = subject.model or start_folder(cfg, Path(scratch))
        groups, entropy = _answers(cfg, start, tasks, samples, greedy, Path(scratch), say)
    answer = getattr(env, "answer", None)
    return score(groups, ks=ks, threshold=threshold, answer=answer, entropy=entropy), groups


def _answers(
    cfg: Config,
    start: Path,
    tasks: Sequence[Task],
    samples: int,
    greedy: bool,
    scratch: Path,
    say: Callable[[str], None],
) -> tuple[list[Group], float | None]:
    """Scored answers, and the entropy of what they were drawn from."""
    with ray_session(cfg, say) as resources:
        waits = Waits(say, scratch / "stacks", cfg.deadlines.notice)
        waits.stage = "evaluation"
        plan = make_plan(cfg, resources)
        # A copy is not validated: no learner rank is started, and the plan stays the run's.
        alone = cfg.model_copy(update={"learner": cfg.learner.model_copy(update={"num": 0})})
        fleet = start_fleet(alone, plan, waits, start, frozenset(), say)
        try:
            collector = Collector(cfg, fleet, Text(start, cfg.sampler.stop))
            key = Key(cfg.seed).child("rlft eval")
            sampled = collector.sample(tasks, samples, key, greedy, cfg.eval.max_tokens)
            entropy = None if greedy else _entropy(sampled, cfg.deadlines.rollout)
            return collector.outcomes(sampled)[0], entropy
        finally:
            fleet.close()


def _entropy(groups: Sequence[Group], deadline_s: float) -> float:
    """Mean of minus the log-prob of each sampled token: an estimate without bias of the mean entropy,
    in nats, of the distributions they were drawn from (after temperature, top-p and top-k)."""
    refs = list(dict.fromkeys(m.row.ref for g in groups for m in g.members))
    rows = [row for held in fetch(refs, deadline_s, "rows of the answers") for row in held]
    return -float(np.concatenate([row.sample_logp[row.decisions] for row in rows]).mean())


def score(
    groups: Sequence[Group],
    *,
    ks: Sequence[int],
    threshold: float,
    answer: Callable[[str, Task], Any] | None,
    entropy: float | None = None,
) -> Score:
    """All figures of scored groups. answer: reads the answer of a completion, to vote; without it there
    is no maj@k, and distinct@k counts texts."""
    members = [m for g in groups for m in g.members]
    rewards = [m.reward for m in members if m.reward is not None]
    passed = [[r >= threshold for r in g.rewards] for g in groups]
    voted = [
        [answer(m.text, g.task) for m in g.members if m.reward is not None] if answer else []
        for g in groups
    ]
    said = [[m.text.strip() for m in g.members if m.reward is not None] for g in groups]
    pass_at, maj_at, distinct_at, left_out = {}, {}, {}, {}
    for k in sorted(set(ks)):
        enough = [i for i, ok in enumerate(passed) if len(ok) >= k]
        left_out[k] = len(groups) - len(enough)
        if not enough:
            continue
        pass_at[k] = fmean(pass_at_k(len(passed[i]), sum(passed[i]), k) for i in enough)
        told = voted if answer else said
        distinct_at[k] = fmean(distinct_at_k(told[i], k) for i in enough)
        if answer:
            maj_at[k] = fmean(maj_at_k(voted[i], passed[i], k) for i in enough)
    return Score(
        tasks=len(groups),
        samples=len(members) // max(1, len(groups)),
        mean=fmean(rewards) if rewards else math.nan,
        errors=len(members) - len(rewards),
        truncated=fmean(m.truncated for m in members),
        tokens=fmean(m.num_tokens for m in members),
        longest=max(m.num_tokens for m in members),
        passed=fmean(r >= threshold for r in rewards) if rewards else math.nan,
        entropy=entropy,
        pass_at=pass_at,
        maj_at=maj_at,
        distinct_at=distinct_at,
        left_out=left_out,
    )


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, ... up to and with `samples`."""
    return sorted({2**i for i in range(samples.bit_length()) if 2**i <= samples} | {samples})


def lines(result: Score, threshold: float) -> Iterable[str]:
    """The result for a person."""
    yield (
        f"{result.tasks} held-out tasks x {result.samples} samples: mean reward {result.mean:.4f}, "
        f"mean@{result.samples} {result.passed:.4f}"
    )
    entropy = "" if result.entropy is None else f", entropy {result.entropy:.3f} nats a token"
    yield (
        f"{result.tokens:.1f} tokens an answer, at most {result.longest}, {result.truncated:.1%} cut off"
        f"{entropy}"
    )
    if result.errors:
        yield f"{result.errors} rewards failed; their answers are left out"
    yield f"an answer passes with a reward of at least {threshold:g}"
    voted = bool(result.maj_at)
    yield f"{'k':>6}{'pass@k':>10}" + (f"{'maj@k':>10}" if voted else "") + f"{'distinct@k':>12}"
    for k, value in result.pass_at.items():
        votes = f"{result.maj_at[k]:>10.4f}" if voted else ""
        short = f"  ({result.left_out[k]} tasks left out)" if result.left_out[k] else ""
        yield f"{k:>6}{value:>10.4f}{votes}{result.distinct_at[k]:>12.3f}{short}"
    if not voted:
        yield (
            "no maj@k, and distinct@k counts texts: the environment has no `answer(completion, task)`"
        )


def write_result(path: Path, subject: Subject, result: Score, groups: Sequence[Group]) -> None:
    """The scores, and every task's answers with their rewards, as JSON."""
    tasks = [
        {
            "task": g.task.id,
            "rewards": [m.reward for m in g.members],
            "completions": [m.text for m in g.members],
        }
        for g in groups
    ]
    whole = {"of": subject.title, **dataclasses.asdict(result), "by_task": tasks}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
