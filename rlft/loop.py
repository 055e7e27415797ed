"""The only loop: collect, learn, publish, record; now and then evaluate and save."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rlft.errors import GuardStop
from rlft.prefetch import prefetch
from rlft.record.metrics import StepRow
from rlft.run import Run
from rlft.types import Group, Ticket, WeightUpdate


@contextmanager
def _imports_frozen() -> Iterator[None]:
    """What imports left is not searched again among the many objects of each step."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_imports_frozen()
def loop(run: Run, *, resumed: bool) -> dict[str, float]:
    """The only loop. Returns the last evaluation, with the first one under `before/` keys."""
    cfg = run.cfg
    run.publish(WeightUpdate(max(run.version, 0), run.version, "full", ()))
    if cfg.eval.at_start and not resumed:
        run.evaluate()
    if cfg.probes.at_start and not resumed:
        run.probe()

    lag: list[float] = []

    async def collect(ticket: Ticket) -> tuple[StepRow, list[Group]]:
        part = run.collecting(ticket)
        if lag:
            part.row["time/lag_wait_s"] = lag.pop()
        return part.row, await run.algo.collect(part, ticket)

    tickets = run.tickets()
    run.turn()
    began = time.monotonic()
    with prefetch(
        tickets, collect, ahead=cfg.max_staleness, abandon=run.abandon, waited=lag.append
    ) as collected:
        for _ticket, (row, groups) in collected:
            update = run.learn(row, groups)
            run.publish(update, collected.finished)
            run.step += 1
            run.record(groups, time.monotonic() - began)
            if run.due(cfg.eval):
                run.evaluate()
            if run.due(cfg.probes):
                run.probe()
            run.probing.pick_up()
            if run.due(cfg.save) or run.records.stop:
                run.save()
            if run.records.stop:
                raise GuardStop(f"{run.records.stop}. The checkpoint of step {run.step} was saved.")
            if run.done:  # before all steps, if a budget is spent
                break
            run.turn()
            began = time.monotonic()
    run.prove(last=True)
    if cfg.max_staleness:
        run.forget_ahead()
    run.probing.finish()
    return _result(run)


def _result(run: Run) -> dict[str, float]:
    evaluations = run.records.evaluations()
    last = dict(evaluations[-1]) if evaluations else {}
    first = dict(evaluations[0]) if evaluations and evaluations[0]["step"] == 0 else {}
    for evaluation in (first, last):
        evaluation.pop("step", None)
    result = {**last, **{f"before/{k}": v for k, v in first.items()}}
    (run.folder / "result.json").write_text(
        json.dumps({"step": run.step, **result}, indent=1) + "\n"
    )
    return result
