"""What an advantage is given, filters of the family, and GRPO's own decisions, without a model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from algos.grpo import GRPO
from rlft import registry
from rlft.credit.reads import advantages, reads
from rlft.credit.steps import StepAdvantages
from rlft.errors import ConfigError, PluginError
from rlft.filters import drop_flat, drop_truncated
from rlft.record.summary import collected
from rlft.schedule import AdaptiveKL, value_at
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, Outcome, RowRef, Task, Trajectory


def member(name: str, reward: float = 1.0, kind: str = "value", **more) -> Trajectory:
    parts = more.pop("parts", {})
    tokens, cut, text = more.pop("tokens", 3), more.pop("cut", False), more.pop("text", "x")
    outcome = Outcome(kind, reward, parts)  # type: ignore[arg-type]
    return Trajectory(name, name, "policy", text, 1, tokens, (0, 0), cut, RowRef(0, 0), outcome)


def two_groups() -> list[Group]:
    first = (member("a0", 1.0, text="p", tokens=2), member("a1", 0.0, text=" p ", tokens=5))
    second = (member("b0", 0.5, text="q", cut=True), member("b1", 0.5, "invalid", text="r"))
    return [Group(Task("a", ""), first), Group(Task("b", ""), second)]


def test_an_advantage_gets_what_its_parameters_name() -> None:
    seen = {}

    def mine(length_B, cluster_B, group_B, reward_B, *, scale=2.0):
        seen.update(length=length_B.tolist(), cluster=cluster_B.tolist(), group=group_B.tolist())
        return scale * reward_B

    assert advantages(partial(mine, scale=3.0), two_groups()).tolist() == [3, 0, 1.5, 1.5]
    assert seen == {"length": [2, 5, 3, 3], "cluster": [0, 0, 1, -1], "group": [0, 0, 1, 1]}
    assert advantages(mine, two_groups(), torch.ones(4)).tolist() == [2] * 4
    assert reads(mine) == ("length_B", "cluster_B", "group_B", "reward_B")


def test_parts_of_an_invalid_answer_are_its_score_and_a_missing_part_is_an_error() -> None:
    def parts(parts):
        return torch.stack([parts["right"], parts["reward"]]).sum(0)

    whole = [member("a", 2.0, parts={"right": 1.0}), member("b", -1.0, "invalid")]
    assert advantages(parts, [Group(Task("t", ""), tuple(whole))]).tolist() == [3, -2]
    holed = [whole[0], member("c", 0.5)]
    with pytest.raises(ConfigError, match="reward of c has no part 'right'"):
        advantages(parts, [Group(Task("t", ""), tuple(holed))])


def test_a_reward_may_name_the_cluster() -> None:
    def clusters(cluster_B):
        return cluster_B.double()

    rows = (member("a", parts={"cluster": 7.0}), member("b", parts={"cluster": -1.0}))
    assert advantages(clusters, [Group(Task("t", ""), rows)]).tolist() == [7, -1]


def test_a_parameter_that_cannot_be_read_is_named() -> None:
    def mine(reward, group_B):
        return reward

    with pytest.raises(PluginError, match=r"mine reads 'reward', which there is not.*'reward_B'"):
        reads(mine)
    with pytest.raises(PluginError, match=r"returned \[1\], expected one number a row: \[4\]"):
        advantages(lambda reward_B: reward_B[:1], two_groups())


@pytest.mark.parametrize("name", registry.short_names("advantage"))
def test_every_registered_advantage_runs_on_groups_as_they_come(name: str) -> None:
    rows = [
        member(
            f"{i}", float(i % 3 == 0), parts={"right": float(i % 2)}, text=str(i % 3), tokens=i + 1
        )
        for i in range(8)
    ]
    groups = [Group(Task("t", ""), tuple(rows)), Group(Task("u", ""), tuple(reversed(rows)))]
    adv_B = advantages(registry.build("advantage", name), groups)
    if isinstance(adv_B, StepAdvantages):
        adv_B = torch.tensor([sum(z for _, z in row) for row in adv_B.rows])
    assert adv_B.isfinite().all() and adv_B.abs().sum() > 0
    torch.testing.assert_close(adv_B[:8], adv_B[8:].flip(0))


# -- filters


def test_flat_by_a_part_of_the_reward() -> None:
    a = Group(
        Task("a", ""), (member("a0", 1, parts={"right": 1}), member("a1", 2, parts={"right": 1}))
    )
    b = Group(
        Task("b", ""), (member("b0", 1, parts={"right": 1}), member("b1", 1, parts={"right": 0}))
    )
    c = Group(Task("c", ""), (member("c0", 1, parts={"right": 1}), member("c1", 1, "invalid")))
    assert drop_flat([a, b, c]) == [a]
    assert drop_flat([a, b, c], "right") == [b, c]
    with pytest.raises(ConfigError, match=r"no part 'rigt'.*'right'"):
        drop_flat([a], "rigt")


def test_truncated_rows_leave_after_they_counted() -> None:
    groups, adv_B = drop_truncated(two_groups(), torch.tensor([1.0, -1.0, 0.5, 2.0]))
    assert [m.id for g in groups for m in g.members] == ["a0", "a1", "b1"]
    assert adv_B.tolist() == [1.0, -1.0, 2.0]


# -- GRPO


class FakeRun:
    """Rewards by task: a task of an even number is flat; keeps what it was asked and given."""

    def __init__(self, flat=lambda number: number % 2 == 0) -> None:
        self.flat, self.asked, self.keys = flat, [], []
        self.cfg = SimpleNamespace(sampler=SimpleNamespace(max_tokens=8))

    async def rollout(self, tasks, *, n, key):
        self.asked.append([t.id for t in tasks])
        self.keys.append(key)
        return [Group(t, tuple(member(f"{t.id}.{i}") for i in range(n))) for t in tasks]

    async def score(self, groups, least=2):
        scored = []
        for g in groups:
            spread = 0 if self.flat(int(g.task.id)) else 1
            members = tuple(
                replace(m, outcome=Outcome("value", float(spread * i)))
                for i, m in enumerate(g.members)
            )
            scored.append(replace(g, members=members))
        return scored

    def fit(self, groups, adv, **more):
        self.fitted = groups, adv, more
        return "update"


def stream(num: int = 200) -> TaskStream:
    return TaskStream([Task(str(i), "") for i in range(num)], 8, Key(3))


def collect(algo: GRPO, run: FakeRun, index: int = 0) -> list[Group]:
    return asyncio.run(algo.collect(run, stream().ticket(index)))


@pytest.mark.parametrize(
    "advantage, size, least",
    [
        ({"name": "poly_epo", "size": 3}, 3, 4),
        ("poly_epo", 4, 5),
        ({"name": "pass_at_k", "k": 3}, 2, 3),
        ({"name": "pass_at_k", "k": 3, "baseline": "loo"}, 3, 4),
    ],
)
def test_a_group_that_could_only_get_zeros_is_refused(advantage, size, least) -> None:
    with pytest.raises(ConfigError, match=rf"group_size is {size}.*at least {least}.*Raise"):
        GRPO(group_size=size, advantage=advantage)
    assert GRPO(group_size=least, advantage=advantage)


def test_a_group_that_failed_rewards_made_too_small_is_counted_and_dropped() -> None:
    class Failing(FakeRun):
        async def score(self, groups, least=2):
            first, *others = await super().score(groups)
            none = [replace(m, outcome=Outcome("error", None)) for m in first.members[:2]]
            short = replace(first, members=(*none, *first.members[2:]))
            self.counted = collected([short, *others], least)["groups/short"]
            return [replace(first, members=first.members[2:]), *others]

    run = Failing(flat=lambda number: False)
    groups = collect(GRPO(group_size=4, advantage={"name": "poly_epo", "size": 2}), run)
    assert run.counted == 1
    assert len(groups) == 7 and {len(g.members) for g in groups} == {4}


def test_refill_replaces_flat_groups_until_the_batch_is_full() -> None:
    run = FakeRun()
    groups = collect(GRPO(group_size=2, refill=50), run)
    assert len(groups) == 8 and all(int(g.task.id) % 2 for g in groups)
    assert len(run.asked[0]) == 8 and len(run.asked) < 12
    missing = 8 - sum(int(i) % 2 for i in run.asked[0])
    assert len(run.asked[1]) == missing
    assert len({str(k) for k in run.keys}) == len(run.keys), "a key was used twice"


def test_refill_is_capped_and_the_same_again() -> None:
    never = FakeRun(flat=lambda number: True)
    assert collect(GRPO(group_size=2, refill=3), never) == []
    assert [len(asked) for asked in never.asked] == [8, 8, 8, 8]
    again, other = FakeRun(), FakeRun()
    collect(GRPO(group_size=2, refill=3), again)
    collect(GRPO(group_size=2, refill=3), other)
    assert again.asked == other.asked and again.keys == other.keys
    elsewhere = FakeRun(flat=lambda number: True)
    collect(GRPO(group_size=2, refill=3), elsewhere, index=1)
    assert elsewhere.asked[1:] != never.asked[1:]


def test_without_refill_nothing_more_is_asked() -> None:
    run = FakeRun()
    assert len(collect(GRPO(group_size=2), run)) < 8 and len(run.asked) == 1


def test_the_overlong_penalty_shapes_what_is_learnt_and_not_what_is_filtered() -> None:
    run = FakeRun(flat=lambda number: True)
    long = Group(Task("1", ""), (member("a", 1.0, tokens=8), member("b", 1.0, tokens=2)))
    algo = GRPO(group_size=2, std="none", overlong_buffer=4, overlong_penalty=0.5)
    assert drop_flat([long]) == []
    assert algo.learn(run, [long]) == "update"
    assert run.fitted[1].tolist() == pytest.approx([-0.25, 0.25])


def test_truncated_answers_are_not_trained_on_but_count() -> None:
    run = FakeRun()
    rows = (member("a", 1.0), member("b", 0.0, cut=True), member("c", 0.5))
    GRPO(std="none", drop_truncated=True).learn(run, [Group(Task("1", ""), rows)])
    groups, adv_B, _ = run.fitted
    assert [m.id for m in groups[0].members] == ["a", "c"] and adv_B.tolist() == [0.5, 0]


def test_a_loss_brings_its_aggregation_unless_it_is_said() -> None:
    assert GRPO().aggregate == "token"
    assert GRPO(loss="gspo").aggregate == "sequence"
    assert GRPO(loss="gspo", aggregate="token").aggregate == "token"


def test_a_key_of_the_default_plug_in_is_refused_beside_another() -> None:
    with pytest.raises(
        ConfigError, match=r"algo\.clip_high belongs to the default loss.*clip_high: 0.3"
    ):
        GRPO(loss="gspo", clip_high=0.3)
    with pytest.raises(ConfigError, match=r"algo\.std belongs to the default advantage"):
        GRPO(advantage="rloo", std="none")
    with pytest.raises(ConfigError, match="refill replaces flat groups"):
        GRPO(refill=1, drop_flat=False)


# -- the adaptive coefficient


def test_the_coefficient_follows_the_paper_s_rule() -> None:
    rule = AdaptiveKL(**{"from": 0.1, "target": 0.02})
    assert rule.after(0.1, 0.02) == pytest.approx(0.1)
    assert rule.after(0.1, 0.04) == pytest.approx(0.102)  # the error is clipped at 0.2
    assert rule.after(0.1, 0.0) == pytest.approx(0.098)
    assert rule.after(0.1, 0.022) == pytest.approx(0.101)
    assert rule.after(0.1, float("nan")) == 0.1


def test_the_coefficient_is_state_of_the_run() -> None:
    algo = registry.build(
        "algo", {"name": "grpo", "kl_coef": {"kind": "adaptive", "from": 0.1, "target": 0.02}}
    )
    state = algo.init_state()
    assert value_at(algo.terms[1].coef, 5, state) == 0.1
    state = algo.next_state(state, {"loss/kl": 9.0})
    assert value_at(algo.terms[1].coef, 5, state) == pytest.approx(0.102)
    assert GRPO().init_state() is None and GRPO().next_state(None, {}) is None
