"""PPO with its critic, and process supervision, through the whole runtime."""

import shutil
import subprocess
import sys

import pytest
import torch
from small_runs import metrics, run, weights

from algos.ppo import PPO
from envs.addition import step_reward
from rlft import registry
from rlft.config import load_config
from rlft.errors import ConfigError
from rlft.types import Task

pytestmark = pytest.mark.usefixtures("ray_cluster")
PPO_KEYS = {
    "name": "ppo",
    "group_size": 4,
    "epochs": 2,
    "minibatches": 2,
    "lam": 0.9,
    "kl_reward": 0.01,
    "critic_lr": 1e-3,
    "critic_warmup": 1,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, ray_cluster, tiny_model):
    folder = tmp_path_factory.mktemp("ppo") / "whole"
    run(folder, tiny_model, steps=4, save__every=2, algo=PPO_KEYS, record={"bundles": [1, 3]})
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one_critic_included(
    uninterrupted, tmp_path, tiny_model
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    assert (folder / "checkpoints/step_000002/critic_state").is_dir()
    shutil.rmtree(folder / "checkpoints/step_000004")
    run(folder, tiny_model, resume=True, steps=4, save__every=2, algo=PPO_KEYS)
    assert metrics(folder) == metrics(uninterrupted)
    ours, theirs = weights(folder, 4), weights(uninterrupted, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    part = "checkpoints/step_000004/critic_state/learner/mp_rank_00_model_states.pt"
    ours, theirs = (
        torch.load(f / part, weights_only=False)["module"] for f in (folder, uninterrupted)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
@pytest.mark.parametrize("step", [1, 3], ids=["critic alone", "both"])
def test_a_step_is_replayed_with_its_critic(uninterrupted, step):
    # In a process of its own, as a user replays (tests/e2e/test_records.py says why).
    bundle = uninterrupted / f"bundles/step_{step:06d}"
    assert (bundle / "critic_state").is_dir()
    command = [sys.executable, "-m", "rlft", "replay", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "numbers are the same, bit for bit" in done.stdout, done.stdout + done.stderr
    shown = {words[0] for line in done.stdout.splitlines() if (words := line.split())}
    assert {"loss/value", "value/explained_variance"} <= shown
    assert ("loss/policy" in shown) == (step == 3)
    changed = [*command, "algo.lam=0.5"]
    done = subprocess.run(changed, capture_output=True, text=True, timeout=200)
    assert "numbers differ" in done.stdout, done.stdout + done.stderr


def test_while_the_critic_warms_up_the_policy_stays(uninterrupted):
    rows = metrics(uninterrupted)
    assert [row["version"] for row in rows] == [0, 1, 2, 3]
    assert "loss/policy" not in rows[0] and "grad_norm" not in rows[0]
    assert rows[0]["loss/value"] > 0
    assert rows[1]["grad_norm"] > 0


def test_the_critic_learns_what_to_expect(uninterrupted):
    rows = metrics(uninterrupted)
    assert rows[0]["value/mean"] == 0, "a new head expects nothing"
    assert rows[-1]["value/mean"] != 0
    assert rows[-1]["loss/value"] < rows[0]["loss/value"]
    for row in rows:
        assert row["critic/grad_norm"] > 0
        assert row["critic/lr"] == 1e-3
        assert row["value/explained_variance"] <= 1


def test_process_supervision_takes_steps_from_the_reward(tmp_path, tiny_model):
    rewards = {"fns": [{"fn": "envs.addition:step_reward"}]}
    algo = {"name": "grpo", "group_size": 4, "advantage": "process", "drop_flat": False}
    run(tmp_path / "run", tiny_model, steps=2, algo=algo, rewards=rewards)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["version"] == 2
    assert all("loss/policy" in row for row in rows)


def test_a_step_of_addition_is_right_with_its_carry():
    task = Task("1", "347+285=", "632")
    assert step_reward("c12,13,06=632", task)["steps"] == [(4, 1), (7, 1), (10, 1), (13, 1)]
    assert step_reward("h12,12,05=522", task)["steps"] == [(4, 1), (7, 0), (10, 0), (13, 0)]
    assert step_reward("", task)["steps"] == []


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"lam": 1.5}, "lam"),
        ({"value_clip": -1.0}, "value_clip"),
        ({"loss": "clipped_surogate"}, "Did you mean"),
        ({"critic_wormup": 3}, "Did you mean 'critic_warmup'"),
    ],
)
def test_a_wrong_key_of_ppo_is_refused(keys, match):
    with pytest.raises(ConfigError, match=match):
        registry.build("algo", {"name": "ppo", **keys})


def test_a_critic_that_is_not_there_is_an_error_before_anything_starts(tmp_path, tiny_model):
    (tmp_path / "empty").mkdir()
    algo = {**PPO_KEYS, "critic": str(tmp_path / "empty")}
    with pytest.raises(ConfigError, match=r"algo\.critic .*without a config\.json"):
        run(tmp_path / "run", tiny_model, algo=algo)
    assert not (tmp_path / "run").exists()


def test_a_penalty_in_the_reward_asks_for_the_reference():
    assert PPO().needs == {"value"}
    assert PPO(kl_reward=0.1).needs == {"value", "ref_logp"}
    assert load_config("configs/family/ppo.yaml").algo["critic_warmup"] == 3
