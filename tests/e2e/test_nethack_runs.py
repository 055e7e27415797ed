"""NetHack with real Ray and DeepSpeed: cloned window by window, then fine-tuned while runners run ahead."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import metrics, weights

from rlft.config import parse_config
from rlft.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")

DATA = Path(__file__).parents[1] / "data/nethack"
NET = {
    "name": "envs.nethack.network:NetHackNet",
    **{"channels": [4], "screen": 8, "around": 8, "message": 8, "statistics": 8, "memory": 8},
}
BASE = {
    "name": "nethack",
    "steps": 2,
    "tasks_per_step": 1,
    "env": {"name": "nethack", "max_steps": 40},
    "model": {"build": NET, "dtype": "float32"},
    "runner": {"blocks": 2, "envs": 2},
    "learner": {"lr": 3e-3, "max_grad_norm": 4.0},
    "save": {"every": 1, "keep": 4},
    "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
}
CLONE = {
    **{"name": "clone", "path": str(DATA), "held_out": 0, "entropy_coef": 0},
    **{"batch": 128, "window": 16, "minibatches": 3},
}
APPO = {
    **{"name": "control_ppo", "steps": 16, "vtrace": True, "reward_clip": 10, "clip": 0.1},
    **{"epochs": 1, "minibatches": 2},
}


def run(folder, *, resume=False, **changes):
    return train(parse_config({**BASE, **changes}, "nethack"), folder, resume=resume)


@pytest.mark.long
def test_a_clone_is_fine_tuned_with_its_critic_first_and_runners_ahead(tmp_path):
    run(tmp_path / "clone", algo=CLONE)
    cloned = metrics(tmp_path / "clone")
    assert cloned[1]["loss/nll"] < cloned[0]["loss/nll"]
    assert 0 <= cloned[1]["clone/accuracy"] <= 1
    assert cloned[0]["tokens/trained"] == 128 * 3

    start = {"path": str(tmp_path / "clone/checkpoints/step_000002/model"), "dtype": "float32"}
    algo = {**APPO, "critic_only": 2}
    run(tmp_path / "tuned", algo=algo, model=start, steps=4, max_staleness=1)
    rows = metrics(tmp_path / "tuned")
    assert [row["env/steps"] for row in rows] == [64.0] * 4
    assert max(row["staleness/max"] for row in rows) == 1, "runners were ahead"
    lines = (tmp_path / "tuned/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["time/lag_wait_s"] >= 0 for line in lines)
    ended = next(row for row in rows if row["episode/count"])
    assert ended["episode/depth"] >= 1 and ended["episode/turns"] >= 1
    two, four = weights(tmp_path / "tuned", 2), weights(tmp_path / "tuned", 4)
    before = weights(tmp_path / "clone", 2)
    moved = {name for name in before if not torch.equal(before[name], two[name])}
    assert {name.split(".")[0] for name in moved} <= {"value_head", "returns"}
    assert "value_head.weight" in moved, "the critic alone learnt"
    assert not torch.equal(four["policy_head.weight"], before["policy_head.weight"])


@pytest.mark.long
def test_a_clone_that_was_resumed_is_the_same_with_its_readers_states(tmp_path):
    run(tmp_path / "whole", algo=CLONE)
    run(tmp_path / "halves", algo=CLONE, steps=1)
    run(tmp_path / "halves", algo=CLONE, resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    for name, tensor in weights(tmp_path / "whole", 2).items():
        assert torch.equal(tensor, weights(tmp_path / "halves", 2)[name]), name


@pytest.mark.long
def test_two_steps_in_the_middle_of_games_and_two_resumed_are_four(tmp_path):
    """Steps of 16 in games of up to 40 moves: the games are played again to where they were left."""
    run(tmp_path / "whole", algo=APPO, steps=4)
    run(tmp_path / "halves", algo=APPO, steps=2)
    run(tmp_path / "halves", algo=APPO, steps=4, resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    for name, tensor in weights(tmp_path / "whole", 4).items():
        assert torch.equal(tensor, weights(tmp_path / "halves", 4)[name]), name
