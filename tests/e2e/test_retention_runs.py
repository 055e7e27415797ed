"""A run that keeps what its start policy knows: every term at once, resumed bit for bit."""

import json

import pytest
import torch
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
    "learner": {"lr": 1e-3, "freeze": [{"names": ["memory.*"], "until": 2}]},
    "save": {"every": 2},
    "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
}  # fmt: skip


def rows_of(folder):
    """The probes of a run, without their clock."""
    rows = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_every_term_is_in_the_metrics_and_a_resumed_run_is_the_whole_one(tmp_path):
    recipe = MiniGrid(configurations=4, max_steps=20, view="dict")
    write(tmp_path / "demos.npz", demonstrations(recipe, 4)[0])
    path = str(tmp_path / "demos.npz")
    retention = [
        {"name": "kickstarting", "coef": {"kind": "decay", "from": 0.5, "factor": 0.9, "floor": 0.3}},
        {"name": "behavioural_cloning", "path": path, "batch": 16, "unroll": 8, "burn_in": 4},
        {"name": "ewc", "coef": 10.0, "path": path, "states": 20},
        {"name": "l2", "coef": 0.01},
    ]  # fmt: skip

    probes = [
        {"name": "restart", "env": {"held_out_start": "other_room"}, "tasks": 4, "called": "moved"},
        {"name": "teacher_likelihood", "path": path},
    ]

    def run(name, *, resume=False, **changes):
        kept = {"retention": retention, "probes": {"every": 2, "fns": probes}}
        cfg = parse_config({**BASE, **kept, **changes}, "keeping")
        train(cfg, tmp_path / name, resume=resume)
        return metrics(tmp_path / name)

    whole = run("whole")
    for row in whole:
        assert {"loss/kickstarting", "loss/behavioural_cloning", "loss/ewc", "loss/l2"} <= set(row)
    # Two optimizer steps a row: the coefficient of the last one.
    assert [r["coef/kickstarting"] for r in whole] == pytest.approx(
        [max(0.3, 0.5 * 0.9**n) for n in (1, 3, 5, 7)]
    )
    assert whole[0]["loss/ewc"] < 1e-4 < whole[-1]["loss/l2"]
    fisher = read_fisher(tmp_path / "whole/retention/ewc.safetensors").fisher
    assert not [n for n in fisher if n.startswith("value")]
    half, end = weights(tmp_path / "whole", 2), weights(tmp_path / "whole", 4)
    from safetensors.torch import load_file

    start = load_file(tmp_path / "whole/start/model.safetensors")
    for name in start:
        if name.startswith("memory."):
            assert torch.equal(start[name], half[name]), f"{name} was frozen"
            assert not torch.equal(start[name], end[name]), f"{name} was thawed"
    probed = rows_of(tmp_path / "whole")
    assert [row["step"] for row in probed] == [0, 2, 4]
    assert all({"moved/success", "teacher/logp"} <= set(row) for row in probed)
    assert probed[0]["teacher/logp"] < probed[-1]["teacher/logp"], "it was cloned"
    assert not list((tmp_path / "whole/probes").iterdir()), "what was measured is gone"
    assert "<h2>Forgetting</h2>" in (tmp_path / "whole/report.html").read_text()
    run("halves", steps=2)
    assert run("halves", resume=True) == whole
    assert rows_of(tmp_path / "halves") == probed
    for name, tensor in weights(tmp_path / "halves", 4).items():
        assert torch.equal(tensor, end[name]), name


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
