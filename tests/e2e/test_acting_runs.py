"""Runs of policies that act, with real Ray and DeepSpeed: bit-equal, resumed, and recovered."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import metrics, weights

from rlft.cluster.fleet import Fleet
from rlft.config import parse_config
from rlft.errors import CheckpointError, ConfigError, EpisodesFailed
from rlft.evaluate import find_subject
from rlft.evaluate_acting import evaluate_acting
from rlft.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "name": "acting",
    "steps": 4,
    "tasks_per_step": 2,
    "env": {"name": "minigrid", "configurations": 4, "max_steps": 20},
    "model": {"build": {"name": "cnn_gru", "channels": [4], "width": 16, "memory": 8}, "dtype": "float32"},
    "runner": {"blocks": 2, "envs": 3},
    "learner": {"lr": 1e-3, "eps": 1e-5, "max_grad_norm": 0.5},
    "save": {"every": 2},
    "eval": {"at_end": True, "max_tasks": 4, "episodes": 2, "greedy": False},
    "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
}  # fmt: skip
SEGMENTS = {"algo": {"name": "control_ppo", "steps": 16, "minibatches": 2, "ucb": 0.1},
            "env": {**BASE["env"], "view": "dict"}}  # fmt: skip
SAME = {"gamma": 1.0, "value_clip": None, "entropy_coef": 0.0, "kl_coef": 0.05, "epochs": 2,
        "minibatches": 4}  # fmt: skip
MLP = {"build": {"name": "mlp", "hidden": [16]}, "dtype": "float32"}


def run(folder, *, resume=False, **changes):
    return train(parse_config({**BASE, **changes}, "acting"), folder, resume=resume)


def assert_same(a, b, step):
    assert metrics(a) == metrics(b)
    ours, theirs = weights(a, step), weights(b, step)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("acting") / "whole"
    run(folder, **SEGMENTS)
    return folder


def test_the_first_held_out_episodes_are_filmed_for_the_report(uninterrupted):
    films = sorted(path.name for path in (uninterrupted / "films").iterdir())
    assert films == [f"step_000004.{number}.gif" for number in range(3)]
    page = (uninterrupted / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 3
    assert "Where episodes went, evaluation after step 4" in page


def test_a_budget_for_two_steps_and_two_resumed_are_four_in_the_middle_of_episodes(
    uninterrupted, tmp_path
):
    two = {**SEGMENTS, "budget": {"env/steps": 2 * 6 * 16}}
    run(tmp_path / "halves", **two)
    assert [row["step"] for row in metrics(tmp_path / "halves")] == [1, 2]
    with pytest.raises(CheckpointError, match=r"raise budget.env/steps to train further"):
        run(tmp_path / "halves", resume=True, **two)
    run(tmp_path / "halves", resume=True, **SEGMENTS)
    assert_same(uninterrupted, tmp_path / "halves", 4)


@pytest.mark.long
def test_two_runners_of_which_one_is_killed_are_one(uninterrupted, tmp_path, monkeypatch):
    killed = []
    ask = Fleet.ask

    def lethal(self, questions, what, deadline_s):
        if what == "rollout" and len(self.samplers) == 2 and not killed:
            killed.append(self.samplers[1].where.pid)
            os.kill(killed[0], signal.SIGKILL)
        return ask(self, questions, what, deadline_s)

    monkeypatch.setattr(Fleet, "ask", lethal)
    run(tmp_path / "two", **SEGMENTS, sampler={"num": 2})
    assert killed
    ours, theirs = metrics(uninterrupted), metrics(tmp_path / "two")
    assert sum(row.pop("recovery/restarts") for row in theirs) == 1
    assert [row.pop("recovery/restarts") for row in ours] == [0] * 4
    assert ours == theirs
    for name, tensor in weights(uninterrupted, 4).items():
        assert torch.equal(tensor, weights(tmp_path / "two", 4)[name]), name


@pytest.mark.long
def test_vines_and_episodes_do_not_depend_on_how_many_runners_there_are(tmp_path):
    poly = {"name": "polychromic", "seeds": 2, "vines": 5, "sets": 3, **SAME}
    env = {**SEGMENTS["env"], "configurations": 6}
    keys = {"algo": poly, "env": env, "tasks_per_step": 6, "steps": 2}  # three units of work
    run(tmp_path / "one", **keys)
    run(tmp_path / "two", **keys, sampler={"num": 2})
    assert_same(tmp_path / "one", tmp_path / "two", 2)


def test_without_rollout_states_polychromic_is_ppo_of_whole_episodes(tmp_path):
    same = {**SAME, "critic_only": 1, "critic_lr": 1e-2}
    ppo = {"name": "control_ppo", "unit": "episode", "episodes": 3, "normalise": "none", **same}
    poly = {"name": "polychromic", "rollout_states": 0, "seeds": 3, **same}
    one_trunk = {"build": {"name": "mlp", "hidden": [16], "shared": True}, "dtype": "float32"}
    run(tmp_path / "ppo", algo=ppo, model=one_trunk, steps=2)
    run(tmp_path / "poly", algo=poly, model=one_trunk, steps=2, save={"every": 1})
    ours, theirs = weights(tmp_path / "ppo", 2), weights(tmp_path / "poly", 2)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    rows = metrics(tmp_path / "poly")
    assert rows[0]["mismatch/max_logp_gap"] < 1e-5, "the first ratio is 1"
    start, first = (
        load_file(tmp_path / "poly/start/model.safetensors"),
        weights(tmp_path / "poly", 1),
    )
    moved = {name: (start[name] - first[name]).abs().max() for name in start}
    assert {name for name, by in moved.items() if by > 0} == {
        "value_head.weight",
        "value_head.bias",
    }
    assert max(moved.values()) > 1e-2, "at its own rate: 8 steps at 1e-3 go no further than 8e-3"


def test_vines_and_a_broken_environment_are_counted(tmp_path):
    poly = {"name": "polychromic", "seeds": 2, "vines": 5, "sets": 3, **SAME}
    run(tmp_path / "poly", algo=poly, model=MLP, steps=1)
    [row] = metrics(tmp_path / "poly")
    assert row["env/strips"] == 2 * (2 + 2 * 2 * 5)
    assert 0 <= row["sets/zero"] <= 1 and row["vines/errors"] == 0
    assert row["loss/behaviour_kl"] >= 0
    rows = [json.loads(x) for x in (tmp_path / "poly/samples.jsonl").read_text().splitlines()]
    assert {len(r["traces"]["room"]) - r["tokens"] for r in rows if r["kind"] == "train"} == {1}
    result, episodes = evaluate_acting(
        find_subject(tmp_path / "poly"),
        samples=3,
        ks=[1, 3],
        threshold=1.0,
        greedy=False,
        say=print,
    )
    assert [len(row) for row in episodes] == [3] * 4
    won = np.array([[bool(e.success) for e in row] for row in episodes])
    assert result.success.value == pytest.approx(won.mean())
    assert result.pass_at.value[1] == pytest.approx(won.any(1).mean())


def test_an_environment_that_always_fails_stops_the_run(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import gymnasium\n\n\nclass Broken(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (2,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return self.observation_space.sample(), {}\n\n"
        "    def step(self, action):\n"
        "        raise RuntimeError('the floor gave way')\n"
    )
    env = {"name": "gym", "id": f"{broken}:Broken"}
    algo = {"name": "control_ppo", "steps": 8, "minibatches": 2}
    with pytest.raises(EpisodesFailed, match=r"(?s)100% of the episodes.*the floor gave way"):
        run(tmp_path / "run", env=env, algo=algo, model=MLP, steps=1)


@pytest.mark.long
def test_a_clone_is_where_reinforce_begins(tmp_path):
    """The warm start of policies that act; every algorithm that acts is run in this file."""
    demos = tmp_path / "demos.npz"
    command = ["-m", "envs.minigrid.demonstrations", str(demos), "configurations=4", "max_steps=20"]
    subprocess.run([sys.executable, *command, "--episodes", "6"], check=True, cwd=ROOT)
    clone = {"name": "clone", "path": str(demos), "held_out": 0.5, "minibatches": 2}
    config = {**BASE, "name": "clone", "algo": clone, "model": MLP, "steps": 2, "eval": {}}
    (tmp_path / "clone.yaml").write_text(yaml.safe_dump(config))
    reinforce = {"name": "reinforce", "episodes": 2}
    warm = {"warm_start": str(tmp_path / "clone.yaml"), "model": {"dtype": "float32"}}
    run(tmp_path / "run", algo=reinforce, steps=1, **warm)
    rows = metrics(tmp_path / "run/warm_start")
    assert rows[1]["loss/nll"] < rows[0]["loss/nll"]
    assert rows[1]["held_out/loss/nll"] < rows[0]["held_out/loss/nll"]
    [row] = metrics(tmp_path / "run")
    assert row["updates"] == 1
    assert row["episode/count"] == 4


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trains a policy that writes"):
        run(tmp_path / "a", algo={"name": "grpo"}, model=MLP)
    with pytest.raises(ConfigError, match=r"set model\.dtype=float32"):
        run(tmp_path / "b", **{**SEGMENTS, "model": {"build": {"name": "mlp"}}})
    with pytest.raises(ConfigError, match="holds no policy"):
        run(
            tmp_path / "c", algo=SEGMENTS["algo"], model={"path": str(tmp_path), "dtype": "float32"}
        )
    assert not (tmp_path / "a").exists()
