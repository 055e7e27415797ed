"""Episodes on the driver, with samplers and environments in this process: who is asked what, in which
order, with which seeds, and how episodes end."""

import numpy as np
import pytest

from rlft.config import parse_config
from rlft.policy.text import Text
from rlft.rewards.scorer import Scored
from rlft.sampling.sampler import Sampler
from rlft.seeding import Key
from rlft.turns import Table
from rlft.types import Completion, Outcome, Sampling, Task

SAMPLING = Sampling(max_tokens=4)
TASKS = [Task(f"t{i}", f"{i}+1=") for i in range(3)]


class Ref:
    """An object of the store."""

    def __init__(self, value):
        self.value = value


class Handle:
    """An actor's handle whose actor is here."""

    def __init__(self, actor):
        self.actor = actor

    def __getattr__(self, name):
        method = getattr(self.actor, name)

        class Call:
            def options(self, num_returns):
                return self

            def remote(self, *args):
                found = method(*(a.value if isinstance(a, Ref) else a for a in args))
                return (found[0], Ref(found[1])) if isinstance(found, tuple) else found

        return Call()


class Fleet:
    def __init__(self, samplers, hosts):
        self.samplers, self.hosts = [Handle(s) for s in samplers], [Handle(h) for h in hosts]
        self.asked = []

    def ask(self, questions, what, deadline_s):
        self.asked.append((what, len(questions)))
        return [question(owner) for owner, question in questions]

    def limit_s(self, work):
        return 60.0

    def was_busy(self, role, seconds):
        pass


class Seeded:
    """An engine whose tokens are a function of the request's seed and prompt."""

    def __init__(self, log):
        self.log = log

    def generate(self, requests, sampling):
        done = []
        for request in requests:
            self.log.append(request)
            rng = np.random.default_rng([request.seed, *request.prompt_ids])
            ids = rng.integers(4, 14, min(3, sampling.max_tokens)).astype(np.int32)
            done.append(Completion(ids, np.full(len(ids), -1.0, np.float32), True))
        return done


class Host:
    """Answers as scripted: by the task's id and the number of the turn."""

    def __init__(self, script):
        self.script, self.given_up, self.told = script, [], []

    def score(self, items):
        import pickle

        found = []
        for item in items:
            attempt, task = pickle.loads(item)
            turn = (len(attempt.messages) + 1) // 2
            if attempt.truncated:
                self.given_up.append(attempt.id)
                found.append(Outcome("value", 0.0))
                continue
            self.told.append((attempt.id, attempt.text, attempt.seed))
            found.append(self.script(task, turn, attempt))
        return Scored(found, 0, "")


def answered(reward=1.0, over=False, behind=0.0, reply="7+"):
    parts = {"over": float(over), "behind": behind, "calls": 2.0}
    return Outcome("value", reward, parts, seconds=0.5, reply=reply)


def set_up(tiny_model, script, *, samplers=1, hosts=1, **turns):
    tree = {
        **{"name": "table", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "calculator"},
        "model": {"path": str(tiny_model), "max_length": 40, "dtype": "float32"},
        "sampler": {"max_tokens": 4},
        "turns": turns,
    }
    cfg, log = parse_config(tree, "table"), []
    made = [Sampler(f"sampler {i}", cfg, tiny_model) for i in range(samplers)]
    for one in made:
        one._engine = Seeded(log)
    asked = [Host(script) for _ in range(hosts)]
    fleet = Fleet(made, asked)
    return Table(cfg, fleet, Text(tiny_model)), fleet, asked, log


def whole(groups):
    """What came out, the rows with it."""
    rows = [(m, m.row.ref.value[m.row.index]) for g in groups for m in g.members]
    return [
        (m.id, m.turns, m.num_tokens, m.env_tokens, m.truncated, m.outcome, r.ids.tolist())
        for m, r in rows
    ]


def test_an_episode_does_not_depend_on_who_plays_it(tiny_model):
    def script(task, turn, attempt):
        return answered(turn, over=turn == 1 + int(task.id[1:]))

    key = Key(3).child("ticket", 0)
    found = []
    for samplers, hosts in ((1, 1), (2, 1), (3, 2), (2, 4)):
        table, _, _, _ = set_up(tiny_model, script, samplers=samplers, hosts=hosts)
        found.append(whole(table.play(TASKS, 2, key, SAMPLING)[0]))
    assert all(one == found[0] for one in found)
    assert [len(turns) for _, turns, *_ in found[0]] == [2, 2, 4, 4, 6, 6]


def test_who_is_done_leaves_and_rewards_of_turns_add_up(tiny_model):
    def script(task, turn, attempt):
        return answered(turn, over=turn == 1 + int(task.id[1:]))

    table, fleet, _, log = set_up(tiny_model, script)
    groups, told = table.play(TASKS, 1, Key(0).child(0), SAMPLING)
    assert fleet.asked == [("rollout", 1), ("the environment", 1)] * 3
    assert len(log) == 3 + 2 + 1
    assert len(told) == 3
    [last] = groups[2].members
    assert last.outcome.reward == 1 + 2 + 3
    assert last.outcome.parts == {"calls": 2.0}
    assert last.outcome.seconds == 1.5
    ends = [len("\n".join(last.turns[: 2 * i + 1 : 2])) for i in range(3)]
    assert last.outcome.steps == tuple(zip(ends, (1.0, 2.0, 3.0), strict=True))
    assert last.text == "\n".join(last.turns[::2])
    assert not last.truncated


def test_every_turn_has_a_seed_of_its_own_and_an_episode_one_for_its_environment(tiny_model):
    table, _, [host], log = set_up(tiny_model, lambda *_: answered(), max=2)
    key = Key(5).child("ticket", 4)
    table.play(TASKS[:2], 2, key, SAMPLING)
    seeds = [request.seed for request in log]
    members = [key.child(place, j) for place in range(2) for j in range(2)]
    # The first turn's is that of an answer of one turn.
    assert seeds[:4] == [m.seed(31) for m in members]
    assert seeds[4:] == [m.child("turn", 1).seed(31) for m in members]
    assert {seed for _, _, seed in host.told} == {m.child("dialogue").seed(31) for m in members}
    assert len(set(seeds)) == 8


@pytest.mark.parametrize(
    "limits, turns, length",
    [({"max": 2}, 2, None), ({"max": 9, "max_tokens": 9}, 2, 9), ({"max": 99}, 8, None)],
)
def test_an_episode_that_meets_a_limit_is_cut_off_with_the_reward_that_it_has(
    tiny_model, limits, turns, length
):
    table, _, [host], _ = set_up(tiny_model, lambda *_: answered(), **limits)
    [group], _ = table.play(TASKS[:1], 1, Key(0).child(0), SAMPLING)
    [member] = group.members
    assert member.truncated
    assert member.outcome.reward == turns == (len(member.turns) + 1) // 2
    assert host.given_up == [member.id]
    assert length is None or member.num_tokens + member.env_tokens <= length
    assert member.length <= 40
    row = member.row.ref.value[member.row.index]
    assert member.length == len(row.ids)
    assert member.num_tokens == (len(row.ids) - 4 if row.mask is None else row.mask.sum())


def test_failures_and_invalid_turns_end_an_episode_and_are_no_zero(tiny_model):
    failed = Outcome("error", None, reason="it hung", seconds=1.0, fault="timeout")
    invalid = Outcome("invalid", -1.0, reason="no such move", seconds=1.0)

    def script(task, turn, attempt):
        return {0: answered(over=turn == 2), 1: failed, 2: invalid}[int(task.id[1:])]

    table, fleet, _, _ = set_up(tiny_model, script)
    groups, _ = table.play(TASKS, 1, Key(0).child(0), SAMPLING)
    good, bad, wrong = (g.members[0] for g in groups)
    assert (good.outcome.kind, good.reward) == ("value", 2.0)
    assert (bad.outcome.kind, bad.reward, bad.outcome.fault) == ("error", None, "timeout")
    assert (wrong.outcome.kind, wrong.reward) == ("invalid", -1.0)
    assert len(bad.turns) == len(wrong.turns) == 1
    assert fleet.asked[-1] == ("the environment", 1)


def test_a_process_that_lost_its_episodes_is_asked_until_it_is_no_longer_behind(tiny_model):
    lag = {"left": 2}

    def script(task, turn, attempt):
        if turn == 2 and task.id == "t1" and lag["left"]:
            lag["left"] -= 1
            return answered(9.0, behind=float(lag["left"] + 1), reply="of an earlier turn")
        return answered(over=turn == 2, reply="last")

    table, fleet, _, _ = set_up(tiny_model, script)
    groups, told = table.play(TASKS, 1, Key(0).child(0), SAMPLING)
    assert [g.members[0].reward for g in groups] == [2.0, 2.0, 2.0]
    assert "of an earlier turn" not in groups[1].members[0].turns
    assert [what for what, _ in fleet.asked] == ["rollout", "the environment"] + ["rollout"] + [
        "the environment"
    ] * 3
    assert len(told) == 4


def test_a_sum_of_rewards_that_is_no_number_is_an_error(tiny_model):
    table, _, _, _ = set_up(tiny_model, lambda *_: answered(1e308), max=3)
    [group], _ = table.play(TASKS[:1], 1, Key(0).child(0), SAMPLING)
    assert group.members[0].outcome.kind == "error"
    assert group.members[0].reward is None
