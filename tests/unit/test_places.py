"""Where rewards are worked out, and one outcome from all of them."""

import pytest

from rlft.cluster.placement import make_plan
from rlft.config import Rewards, parse_config
from rlft.errors import ResourceError
from rlft.rewards.places import joined, places
from rlft.types import Outcome

MODEL = {"fn": "reward_model", "args": {"path": "folder"}}
MIXED = [
    {"fn": "addition"},
    {**MODEL, "gpus": 0.5},
    {"fn": "gsm8k", "weight": 0.5},
    {"fn": "countdown", "gpus": 0},
]


def test_models_are_alone_and_the_others_share_workers():
    found = places(Rewards(fns=MIXED, workers=3, memory_gb=2))
    assert [(p.fns, p.num, p.own, p.gpus) for p in found] == [
        ((0, 2), 3, False, 0.0),
        ((1,), 1, True, 0.5),
        ((3,), 1, True, 0.0),
    ]
    assert [p.rewards.memory_gb for p in found] == [2, None, None]
    assert [s.fn for s in found[0].rewards.fns] == ["addition", "gsm8k"]
    assert places(Rewards(fns=[MODEL]))[0].own, "without `gpus`, because it holds a model"
    assert places(Rewards()) == ()


def value(reward, **parts):
    return Outcome("value", reward, parts, seconds=0.5 * reward)


def test_rewards_of_all_places_add_up_and_keep_their_names():
    rewards = Rewards(fns=MIXED)
    where = places(rewards)
    shared = value(1.0, **{"addition/careful": 1.0, "gsm8k/form": 0.0})
    whole = joined(rewards, where, [shared, value(3.0, score=3.0), value(2.0, close=0.25)])
    assert whole.reward == 6.0 and whole.seconds == 1.5
    assert whole.parts == {
        **{"addition/careful": 1.0, "gsm8k/form": 0.0},
        **{"reward_model/score": 3.0, "countdown/close": 0.25},
    }


def test_the_first_failure_decides_and_is_never_a_number():
    rewards = Rewards(fns=[{"fn": "addition"}, MODEL], invalid_score=-1)
    where = places(rewards)
    error = Outcome("error", None, reason="down", seconds=4.0, fault="timeout")
    invalid = Outcome("invalid", -1.0, reason="too long")
    assert joined(rewards, where, [value(1.0), error]).reward is None
    assert joined(rewards, where, [value(1.0), error]).fault == "timeout"
    assert joined(rewards, where, [invalid, error]).kind == "invalid"
    assert joined(rewards, where, [value(1.0), invalid]).reward == -1.0


def test_an_only_place_speaks_for_itself():
    rewards = Rewards(fns=[{"fn": "addition"}])
    said = value(1.0, careful=1.0)
    assert joined(rewards, places(rewards), [said]) is said


def config(**learner):
    return parse_config(
        {
            **{"name": "p", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"},
            "model": {"path": "x"},
            "learner": learner,
            "sampler": {"gpus": learner.get("gpus", 0)},
            "rewards": {"fns": [{"fn": "addition"}, {**MODEL, "gpus": 1}]},
        },
        "p",
    )


def test_a_reward_with_a_gpu_is_planned_for():
    plan = make_plan(config(gpus=1), {"CPU": 8.0, "GPU": 2.0})
    assert plan.gpus == 2
    [own] = plan.own_reward_bundle
    assert plan.bundles[own]["GPU"] == 1.0 and own not in plan.learner_bundle
    assert "reward actor reward_model x 8 to score" in plan.lines[1]
    with pytest.raises(ResourceError, match="asks for 2 GPUs"):
        make_plan(config(gpus=1), {"CPU": 8.0, "GPU": 1.0})
