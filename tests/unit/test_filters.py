"""Which groups and members are learnt from."""

import pytest
import torch

from rlft.filters import drop_errors, drop_flat, keep_correct, members_of, rewards_of
from rlft.types import Group, Outcome, RowRef, Task, Trajectory


def group(name, *rewards):
    """A group with one member a reward; None: its reward failed; "new": not scored yet."""
    members = []
    for index, reward in enumerate(rewards):
        outcome = None
        if reward != "new":
            kind = "error" if reward is None else "value"
            outcome = Outcome(kind, reward)
        members.append(
            Trajectory(
                f"{name}.{index}", name, "policy", "", 1, 1, (0, 0), False, RowRef(0, 0), outcome
            )
        )
    return Group(Task(name, ""), tuple(members))


def ids(groups):
    return [m.id for g in groups for m in g.members]


def test_failed_rewards_leave_and_take_nobody_with_them():
    groups = [group("a", 1.0, None, 0.0), group("b", None, None), group("c", 0.5, "new")]
    assert ids(drop_errors(groups)) == ["a.0", "a.2", "c.0"]
    assert [g.task.id for g in drop_errors(groups)] == ["a", "c"]
    assert ids(groups) == ["a.0", "a.1", "a.2", "b.0", "b.1", "c.0", "c.1"], (
        "groups are not changed"
    )


def test_only_groups_that_differ_are_kept_whole():
    groups = [
        group("a", 1.0, 1.0),
        group("b", 1.0, 0.0, 1.0),
        group("c", 0.0),
        group("d", 0.0, 0.0),
    ]
    assert drop_flat(groups) == [groups[1]]


def test_a_failed_reward_does_not_count_as_a_difference():
    assert drop_flat([group("a", 1.0, None, 1.0)]) == []


def test_flat_groups_are_exactly_those_without_an_advantage():
    from rlft.credit import group_relative

    groups = [group("a", 0.1, 0.1, 0.1), group("b", 0.1, 0.2), group("c", 0.0, -0.0)]
    for g in groups:
        flat = not group_relative(*rewards_of([g])).any()
        assert (drop_flat([g]) == []) == flat


def test_correct_answers_are_those_at_the_threshold_or_above():
    groups = [group("a", 1.0, 0.99, 2.0), group("b", 0.5, None, "new")]
    assert ids(keep_correct(groups)) == ["a.0", "a.2"]
    assert ids(keep_correct(groups, threshold=0.5)) == ["a.0", "a.1", "a.2", "b.0"]
    assert keep_correct(groups, threshold=3.0) == []


@pytest.mark.parametrize("only", [drop_errors, drop_flat, keep_correct])
def test_filtering_twice_is_filtering_once(only):
    groups = [group("a", 1.0, None, 0.0), group("b", 1.0, 1.0), group("c", None)]
    assert only(only(groups)) == only(groups)
    assert only([]) == []


def test_rewards_line_up_with_members_and_groups():
    groups = [group("a", 1.0, 0.0), group("b", 0.25)]
    reward_B, group_B = rewards_of(groups)
    assert reward_B.tolist() == [1.0, 0.0, 0.25] and reward_B.dtype == torch.float64
    assert group_B.tolist() == [0, 0, 1]
    members, index = members_of(groups)
    assert [m.reward for m in members] == reward_B.tolist() and index == group_B.tolist()


@pytest.mark.parametrize("missing", [None, "new"])
def test_a_member_without_a_reward_is_never_counted_as_anything(missing):
    with pytest.raises(ValueError, match="drop_errors"):
        rewards_of([group("a", 1.0, missing)])
    assert rewards_of(drop_errors([group("a", 1.0, missing)]))[0].tolist() == [1.0]


def test_nothing_has_no_rewards():
    assert [len(x) for x in rewards_of([])] == [0, 0]
