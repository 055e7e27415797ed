"""What becomes of groups whose rewards failed: left out, replaced, counted."""

import dataclasses
import json

import pytest

from rlft.config import Rewards
from rlft.errors import RewardFailed
from rlft.filters import drop_errors, drop_flat, drop_short
from rlft.record.summary import collected
from rlft.rewards.scorer import Scored
from rlft.scoring import Scoring
from rlft.seeding import Key
from rlft.types import Group, Outcome, RowRef, Task, Trajectory


def member(text, origin="policy", name=""):
    return Trajectory(name or text, "t", origin, text, 1, 2, (3, 3), False, RowRef(None, 0))


def judged(m):
    """A text that is a number is its value; others fail."""
    try:
        outcome = Outcome("value", float(m.text), seconds=0.5)
    except ValueError:
        outcome = Outcome("error", None, {}, f"cannot read {m.text}", 2.0, "timeout")
    return dataclasses.replace(m, outcome=outcome)


class Collector:
    """Samples the texts it is given, one after another, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def sample(self, tasks, n, key, greedy, max_tokens):
        self.asked.append(([t.id for t in tasks], n, key))
        return [Group(task, (member(self.texts.pop(0)),)) for task in tasks]

    def outcomes(self, groups):
        scored = [
            dataclasses.replace(g, members=tuple(judged(m) for m in g.members)) for g in groups
        ]
        return scored, [Scored([], 2, "printed")]


def group(*texts, task="t"):
    return Group(Task(task, ""), tuple(member(t) for t in texts))


@pytest.fixture
def scoring(tmp_path):
    def make(collector, **keys):
        return Scoring(Rewards(**keys), collector, tmp_path, Key(0), lambda line: None)

    return make


def test_a_failed_member_is_replaced_and_stays_to_be_counted(scoring):
    collector = Collector("worse", "7", "8")
    one = scoring(collector, refill_tries=2)
    groups = one.outcomes(
        [group("1", "bad"), group("2", "3", task="u"), group("bad2", "4")], 1, "train"
    )
    filled = one.refilled(groups, 1)
    assert [g.rewards for g in filled] == [[1.0, 8.0], [2.0, 3.0], [4.0, 7.0]]
    assert [[m.text for m in g.members] for g in filled] == [
        ["1", "bad", "worse", "8"],
        ["2", "3"],
        ["bad2", "4", "7"],
    ]
    assert [g.rewards for g in drop_errors(filled)] == [[1.0, 8.0], [2.0, 3.0], [4.0, 7.0]]
    assert collected(filled)["reward/errors"] == 3 / 9


def test_tries_are_bounded_and_what_is_missing_stays_missing(scoring):
    collector = Collector("x", "y", "z")
    one = scoring(collector, refill_tries=3)
    [filled] = one.refilled(one.outcomes([group("1", "bad")], 1, "train"), 1)
    assert filled.rewards == [1.0]
    assert len(collector.asked) == 3
    seeds = {key.seed() for _, _, key in collector.asked}
    assert len(seeds) == 3, "each round draws anew"


def test_the_seeds_of_replacements_follow_from_whom_they_replace(scoring):
    keys = []
    for texts in (("1", "bad"), ("1", "bad"), ("bad", "1")):
        collector = Collector("5")
        one = scoring(collector)
        one.refilled(one.outcomes([group(*texts)], 1, "train"), 1)
        keys.append(collector.asked[0][2])
    assert keys[0] == keys[1]
    other = Collector("5")
    one = scoring(other)
    one.refilled(one.outcomes([group("1", "bad3")], 1, "train"), 1)
    assert other.asked[0][2] != keys[0]


def test_demonstrations_are_not_replaced(scoring):
    collector = Collector()
    one = scoring(collector)
    demo = Group(Task("t", ""), (member("demo", "demo"), member("1")))
    [filled] = one.refilled(one.outcomes([demo], 1, "train"), 1)
    assert len(filled.members) == 2
    assert collector.asked == []


def test_a_group_left_with_one_member_is_counted_and_has_no_baseline(scoring):
    one = scoring(Collector())
    groups = one.outcomes(
        [group("1", "bad"), group("1", "2"), group("x", "y"), group("5")], 1, "train"
    )
    assert collected(groups)["groups/short"] == 2, "one of one member by design is not short"
    kept = drop_errors(groups)
    assert [g.rewards for g in kept] == [[1.0], [1.0, 2.0], [5.0]]
    assert [g.rewards for g in drop_short(kept)] == [[1.0, 2.0]]
    assert [g.rewards for g in drop_flat(drop_short(kept))] == [[1.0, 2.0]]


def test_the_run_stops_beyond_the_allowed_share(scoring):
    one = scoring(Collector(), max_error_share=0.5)
    half = one.outcomes([group("1", "bad")], 4, "train")
    one.stop_if_too_many_failed(half, 4)
    most = one.outcomes([group("1", "bad", "worse")], 4, "train")
    with pytest.raises(
        RewardFailed, match=r"step 4: 2 of 3 rewards failed; the first:\ncannot read bad"
    ):
        one.stop_if_too_many_failed(most, 4)


def test_the_account_of_a_step_has_counts_reasons_latency_and_the_slowest(scoring, tmp_path):
    one = scoring(Collector())
    one.outcomes([group("1", "bad", "3")], 2, "train")
    one.outcomes([group("1")], 2, "eval")
    assert one.restarts() == 2, "of the training step"
    assert one.restarts() == 0
    first, second = map(json.loads, (tmp_path / "rewards.jsonl").read_text().splitlines())
    assert (first["step"], first["kind"], second["kind"]) == (2, "train", "eval")
    assert (first["calls"], first["values"], first["errors"], first["timeouts"]) == (3, 2, 1, 1)
    assert first["first_error"] == "cannot read bad"
    assert first["slowest"][0] == {
        "task": "t",
        "seconds": 2.0,
        "outcome": "error",
        "completion": "bad",
    }
    assert (first["p50_s"], first["printed"]) == (0.5, "printed")
    assert 0.5 < first["p99_s"] < 2.0
