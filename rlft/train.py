"""From a configuration to a run in its folder: checks, warm start, actors, and beginning again from the
checkpoint when what was lost cannot be replaced alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.algo import Algo
from rlft.check import (
    check_installation,
    check_plugins,
    check_prompts,
    check_tasks,
    plugin_warnings,
    with_plugin_defaults,
)
from rlft.cluster.budget import Budget
from rlft.cluster.fleet import Fleet
from rlft.cluster.placement import Plan, make_plan
from rlft.cluster.session import name_accelerator, private_resources, ray_session
from rlft.cluster.start_fleet import start_fleet
from rlft.cluster.waits import Waits
from rlft.config import Config, load_config
from rlft.errors import ActorDied, ActorFailed, ConfigError, DeadlineExceeded, SourceLost
from rlft.loop import loop
from rlft.policy.start import folder_of, policy_folder, start_folder
from rlft.record.checkpoint import Position, newest_checkpoint, resumable
from rlft.record.console import Console
from rlft.record.folder import forget_records, locked, open_folder, refuse_second
from rlft.retention.term import Place, prepared
from rlft.run import Run
from rlft.run_control import ControlRun
from rlft.run_text import TextRun
from rlft.tasks import TaskStream
from rlft.types import Task


def train(
    cfg: Config,
    folder: Path,
    *,
    resume: bool = False,
    again: bool = False,
    console: Console | None = None,
) -> dict[str, float]:
    """Runs `cfg` in `folder`. Returns the last evaluation, with the first one under `before/` keys.

    resume: continue from the newest checkpoint, and refuse if there is none; again: the process that
    ran it before was killed, so continue if there is a checkpoint and begin again if there is none.
    """
    console = console or Console(cfg.steps)
    name_accelerator(cfg)
    # Everything that can be known to be wrong is, before anything is started or written.
    algo, env = check_plugins(cfg)
    for warning in plugin_warnings(cfg):
        console.say(warning)
    check_installation(cfg)
    _critic(algo)
    tasks, held_out = check_tasks(cfg, env)
    if cfg.warm_start:
        check_plugins(load_config(cfg.warm_start))
    if (here := private_resources(cfg)) is not None:
        make_plan(cfg, here)
    if resume and not folder.is_dir():
        resumable(folder / "checkpoints", cfg)  # says that there is nothing
    refuse_second(folder, resume=resume or again)
    with locked(folder):
        position = _position(cfg, folder, resume, again)
        whole = with_plugin_defaults(cfg, algo, env)
        open_folder(whole, folder, resume=resume or again, forget=again and position is None)
        if cfg.warm_start is None:
            start = _start(cfg, algo, env, folder, tasks, held_out)
        with ray_session(cfg, console.say) as resources:
            plan = make_plan(cfg, resources)
            if cfg.warm_start:
                cfg = _after_warm_start(cfg, folder, resume or again, console.say)
                start = _start(cfg, algo, env, folder, tasks, held_out)
            cfg = prepared(cfg, Place(cfg, start, folder, env, algo.acts))
            for line in (*plan.lines, *algo.suits(cfg)):
                console.say(line)
            attempt = _Attempt(cfg, algo, tasks, held_out, folder, start, plan, console)
            return _until_done(attempt, position, restarts=int(again))


def _start(
    cfg: Config, algo: Algo, env: Any, folder: Path, tasks: TaskStream, held_out: Sequence[Task]
) -> Path:
    """The folder that the policy starts from, after what can be checked with it."""
    if algo.acts:
        return policy_folder(cfg, env, folder)
    start = start_folder(cfg, folder)
    check_prompts(cfg, algo, start, tasks, held_out)
    return start


def _critic(algo: Algo) -> str | None:
    """The folder that a critic starts from, if not the policy's. Raises ConfigError: there is none."""
    return None if algo.critic is None else str(folder_of(algo.critic, "algo.critic"))


def _position(cfg: Config, folder: Path, resume: bool, again: bool) -> Position | None:
    """Where to continue from; None for step 0."""
    if not (resume or again):
        return None
    # Without metrics, what was interrupted was the warm start: this part begins now.
    if cfg.warm_start and not (folder / "metrics.jsonl").exists():
        return None
    if again and newest_checkpoint(folder / "checkpoints") is None:
        return None
    return resumable(folder / "checkpoints", cfg)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """All that a run is made of but its actors, which may be lost."""

    cfg: Config
    algo: Algo
    tasks: TaskStream
    held_out: Sequence[Task]
    folder: Path
    start: Path
    plan: Plan
    console: Console

    def fleet(self) -> Fleet:
        """Starts the actors, and says how long it took."""
        waits = Waits(self.console.say, self.folder / "stacks", self.cfg.deadlines.notice)
        needs, critic = self.algo.needs, _critic(self.algo)
        began = time.monotonic()
        say, by_noise = self.console.say, self.algo.by_noise
        fleet = start_fleet(
            *(self.cfg, self.plan, waits, self.start, needs, say, critic),
            by_noise=by_noise,
            acts=self.algo.acts,
        )
        self.console.say(
            f"started {fleet.census()} in {time.monotonic() - began:.1f} s; run folder {self.folder}"
        )
        return fleet

    def run(self, fleet: Fleet) -> Run:
        """A run at step 0 with these actors."""
        what = (self.cfg, self.algo, self.tasks, self.held_out, self.folder)
        if self.algo.acts:
            return ControlRun(*what, self.start, fleet, self.console)
        return TextRun(*what, self.start, fleet, self.console)


def _until_done(attempt: _Attempt, position: Position | None, restarts: int) -> dict[str, float]:
    """Runs the loop; when an actor is lost that cannot be replaced alone, starts all of them again and
    continues from the newest checkpoint. Raises what cannot be helped by that."""
    folder, budget, raised_at = attempt.folder, Budget(attempt.cfg.recovery), -1
    while True:
        fleet = attempt.fleet()
        fleet.restarted(restarts)
        began_at = position.state["step"] if position else 0
        run = None
        try:
            run = attempt.run(fleet)
            with run.records.open():
                if position:
                    run.restore(position)
                with attempt.console.live():
                    return loop(run, resumed=position is not None)
        except (ActorFailed, DeadlineExceeded) as error:
            step = run.step if run else began_at
            if not isinstance(error, ActorDied | SourceLost):
                # What raises may raise again: once more is worth a try if it has worked before.
                if step in (began_at, raised_at):
                    raise
                raised_at = step
            which = budget.spend("the run", error)
            restarts = fleet.restarts() + 1
            attempt.console.say(f"{error}\nall actors are started again ({which})")
        finally:
            if run is not None:
                run.close()
            fleet.close()
        newest = newest_checkpoint(folder / "checkpoints")
        position = resumable(folder / "checkpoints", attempt.cfg) if newest else None
        if position is None:
            forget_records(folder)


def _after_warm_start(
    cfg: Config, folder: Path, resume: bool, say: Callable[[str], None]
) -> Config:
    """Runs the warm start, unless it was finished before, and starts from its model."""
    assert cfg.warm_start is not None
    warm = load_config(cfg.warm_start)
    below = folder / "warm_start"
    if not (below / "result.json").is_file():
        say(f"warm start: {warm.name}, {warm.steps} steps ({cfg.warm_start})")
        train(warm.model_copy(update={"seed": cfg.seed}), below, again=resume)
        say(f"warm start done; now {cfg.name}, {cfg.steps} steps")
    newest = newest_checkpoint(below / "checkpoints")
    if newest is None:
        raise ConfigError(
            f"{cfg.warm_start}: the warm start saved no model; set save.at_end=true there"
        )
    model = cfg.model.model_copy(update={"path": str(newest / "model")})
    return cfg.model_copy(update={"model": model})
