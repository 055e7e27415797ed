"""A run that keeps what its start policy knows: every term at once, resumed bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, weights
from small_runs import run as run_text

from envs.minigrid import MiniGrid
from envs.minigrid.demonstrations import demonstrations
from rlft.config import parse_config
from rlft.demonstrations import write
from rlft.retention.fisher import read_fisher
from rlft.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")

ENV = {"name": "minigrid", "configurations": 4, "max_steps": 20, "view": "dict"}
BASE = {
    "name": "keeping",
    "steps": 4,
    "tasks_per_step": 2,
    "algo": {"name": "control_ppo", "steps": 12, "epochs": 1, "minibatches": 2},
    "env": ENV,
    "model": {"build": {"name": "cnn_gru", "channels": [4], "width": 16, "memory": 8}, "dtype": "float32"},
    "runner": {"blocks": 1, "envs": 3},
    "learner": {
        "lr": 1e-3,
        "freeze": [
            {"names": ["memory.*"], "until": 2},  # thawed where `halves` resumes
            {"names": ["policy_encoder.*"], "until": 1},  # and before: it keeps its moments
        ],
    },
    "save": {"every": 2},
    "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
}  # fmt: skip


def rows_of(folder):
    """The probes of a run, without their clock."""
    rows = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def keep(folder, name, *, resume=False, **changes):
    """Runs it in `folder/name`, on the demonstrations in `folder`; returns the folder."""
    path = str(folder / "demos.npz")
    decay = {"kind": "decay", "from": 0.5, "factor": 0.9, "floor": 0.3}
    retention = [
        {"name": "kickstarting", "coef": decay},
        # What was done, and not what the start policy says: so the expert's actions become likelier.
        {
            **{"name": "behavioural_cloning", "path": path, "target": "actions", "coef": 5.0},
            **{"batch": 16, "unroll": 8, "burn_in": 4},
        },
        {"name": "ewc", "coef": 10.0, "path": path, "states": 20},
        {"name": "l2", "coef": 0.01},
    ]
    probes = [
        {"name": "restart", "env": {"held_out_start": "other_room"}, "tasks": 4, "called": "moved"},
        {"name": "teacher_likelihood", "path": path},
    ]
    kept = {"retention": retention, "probes": {"every": 2, "fns": probes}}
    train(parse_config({**BASE, **kept, **changes}, "keeping"), folder / name, resume=resume)
    return folder / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("keeping")
    recipe = MiniGrid(configurations=4, max_steps=20, view="dict")
    write(folder / "demos.npz", demonstrations(recipe, 4)[0])
    return keep(folder, "whole")


def test_every_term_is_in_the_metrics_and_frozen_weights_are_thawed(whole):
    rows = metrics(whole)
    for row in rows:
        assert {"loss/kickstarting", "loss/behavioural_cloning", "loss/ewc", "loss/l2"} <= set(row)
    # Two optimizer steps a row: the coefficient of the last one.
    expected = [max(0.3, 0.5 * 0.9**n) for n in (1, 3, 5, 7)]
    assert [r["coef/kickstarting"] for r in rows] == pytest.approx(expected)
    assert rows[0]["loss/ewc"] < 1e-4 < rows[-1]["loss/l2"]
    fisher = read_fisher(whole / "retention/ewc.safetensors").fisher
    assert not [n for n in fisher if n.startswith("value")]
    start = load_file(whole / "start/model.safetensors")
    half, end = weights(whole, 2), weights(whole, 4)
    for name in start:
        if name.startswith("memory."):
            assert torch.equal(start[name], half[name]), f"{name} was frozen"
            assert not torch.equal(start[name], end[name]), f"{name} was thawed"
    probed = rows_of(whole)
    assert [row["step"] for row in probed] == [0, 2, 4]
    assert all({"moved/success", "teacher/logp"} <= set(row) for row in probed)
    assert probed[0]["teacher/logp"] < probed[-1]["teacher/logp"], "it was cloned"
    assert not list((whole / "probes").iterdir()), "what was measured is gone"
    assert "<h2>Forgetting</h2>" in (whole / "report.html").read_text()


@pytest.mark.long
def test_two_steps_and_two_resumed_are_four(whole):
    halves = keep(whole.parent, "halves", steps=2)
    keep(whole.parent, "halves", resume=True)
    assert metrics(halves) == metrics(whole)
    assert rows_of(halves) == rows_of(whole)
    ours, theirs = weights(halves, 4), weights(whole, 4)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_language_model_keeps_what_it_is_told_to(tmp_path, tiny_model):
    texts = [{"text": f"{a}+{b}=c{a + b}"} for a, b in ((347, 285), (12, 7), (1, 9), (88, 10))]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    retention = [
        {"name": "kickstarting", "top_k": 4},
        {"name": "text_replay", "path": str(path), "batch": 2},
        {"name": "ewc", "coef": 5.0, "path": str(path)},
        {"name": "reference", "coef": 0.05},
    ]
    probes = {"every": 1, "fns": [{"name": "text_forgetting", "path": str(path)}]}
    run_text(tmp_path / "run", tiny_model, steps=2, retention=retention, probes=probes)
    rows = metrics(tmp_path / "run")
    names = {"loss/kickstarting", "loss/text_replay", "loss/ewc", "loss/reference", "loss/policy"}
    assert all(names <= set(row) for row in rows)
    assert rows[0]["loss/ewc"] >= 0
    assert rows[1]["loss/ewc"] > rows[0]["loss/ewc"]
    probed = rows_of(tmp_path / "run")
    assert probed[0]["text/kl"] == pytest.approx(0, abs=1e-6)
    assert probed[0]["text/soft_ce"] == pytest.approx(probed[0]["text/entropy"], rel=1e-6)
    assert probed[-1]["text/kl"] > 1e-6
    assert probed[-1]["text/entropy"] == pytest.approx(probed[0]["text/entropy"], rel=1e-6)
