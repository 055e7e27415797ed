"""When a guard speaks, and when it ends the run."""

import pytest

from rlft.record.guards import Watch
from rlft.record.settings import Guards


def alerts(values, metric="groups/flat", **guards):
    watch = Watch(Guards.model_validate(guards))
    rows = [{"step": i, "groups": 8, metric: v} for i, v in enumerate(values, start=1)]
    return [alert for row in rows for alert in watch.step(row)]


def test_it_speaks_after_so_many_in_a_row_and_when_that_doubles():
    found = alerts([1.0] * 12, flat_groups={"steps": 3})
    assert [a.step for a in found] == [3, 6, 12]
    assert not any(a.stop for a in found)
    assert "guards.flat_groups.above=0.9 for 3 steps in a row" in found[0].message


def test_a_good_step_starts_the_count_again():
    assert [a.step for a in alerts([1, 1, 0.5, 1, 1, 1], flat_groups={"steps": 3})] == [6]


def test_stopping_gives_a_resumed_run_as_many_steps_again():
    found = alerts([1.0] * 9, flat_groups={"steps": 3, "action": "stop"})
    assert [(a.step, a.stop) for a in found] == [(3, True), (6, True), (9, True)]


def test_ignored_is_ignored():
    assert alerts([1.0] * 9, flat_groups={"steps": 3, "action": "ignore"}) == []


@pytest.mark.parametrize(
    "guard, metric, bad, good",
    [
        ("flat_groups", "groups/flat", 0.95, 0.9),
        ("constant_reward", "reward/std", 0.0, 0.1),
        ("truncated", "completion/truncated", 1.0, 0.9),
        ("entropy", "entropy", 1e-5, 0.5),
    ],
)
def test_each_guard_watches_its_metric_with_its_default(guard, metric, bad, good):
    assert [a.guard for a in alerts([bad] * 5, metric)] == [guard]
    assert alerts([good] * 20, metric) == []


def test_a_metric_that_is_absent_or_null_neither_counts_nor_interrupts():
    assert [a.step for a in alerts([1, None, 1], flat_groups={"steps": 2})] == [3]


def test_supervised_steps_may_have_any_entropy():
    watch = Watch(Guards())
    assert [a for i in range(20) for a in watch.step({"step": i, "entropy": 0.0})] == []
