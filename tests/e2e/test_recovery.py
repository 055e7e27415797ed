"""What is killed or frozen is started again, and the result is that of an undisturbed run, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import metrics, run, weights

from rlft.errors import ActorFailed

MARK = "RLFT_TEST_RECOVERY"
STEPS = 4


def settings(model: Path) -> dict:
    """Two samplers and two reward workers, with every plug-in that may be told to die."""
    deaths = str(model / "deaths")
    return {
        "steps": STEPS,
        "save__every": 2,
        "eval": {"every": 2, "at_start": True, "at_end": True, "max_tasks": 8},
        "sampler__engine": "deaths:Engine",
        "sampler__num": 2,
        "rewards": {"workers": 2, "fns": [{"fn": "deaths:reward", "args": {"folder": deaths}}]},
        "algo": {
            "name": "deaths:Algo",
            "group_size": 4,
            "epochs": 2,
            "minibatches": 2,
            "drop_flat": False,
            "loss": {"name": "deaths:Loss", "folder": deaths},
            "deaths": deaths,
        },
    }


@pytest.fixture
def plan(tmp_path, tiny_model):
    """Makes a model folder with planned deaths."""

    def make(*moments: str) -> Path:
        model = tmp_path / "model"
        shutil.copytree(tiny_model, model)
        (model / "deaths").mkdir()
        for moment in moments:
            (model / "deaths" / moment).touch()
        return model

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster, tiny_model):
    folder = tmp_path_factory.mktemp("undisturbed")
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    run(folder / "run", model, **settings(model))
    return folder / "run"


def numbers(folder, file="metrics.jsonl"):
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    clocks = ("time/", "recovery/")
    return [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows]


def assert_same(ours, theirs):
    assert numbers(ours) == numbers(theirs)
    assert numbers(ours, "eval.jsonl") == numbers(theirs, "eval.jsonl")
    assert numbers(ours, "samples.jsonl") == numbers(theirs, "samples.jsonl")
    a, b = weights(ours, STEPS), weights(theirs, STEPS)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def restarts(folder):
    return [row["recovery/restarts"] for row in metrics(folder)]


def unmet(model):
    return sorted(p.name for p in (model / "deaths").iterdir())


@pytest.mark.timeout(240)
def test_samplers_and_reward_workers_are_replaced_alone(plan, tmp_path, undisturbed, capsys):
    model = plan("reward.3", "rollout.3", "publish.3", "idle.3", "freeze.4")
    run(tmp_path / "run", model, **settings(model), recovery__max_restarts=5)
    said = capsys.readouterr().out
    assert not unmet(model), "every planned moment came"
    assert sum(restarts(tmp_path / "run")) == 5
    assert "reward worker" in said and "died at reward" in said
    assert "died at rollout" in said and "died at publish" in said
    assert "is frozen at rollout" in said
    assert said.count("is back after") == 5
    assert "resumed from" not in said
    assert_same(tmp_path / "run", undisturbed)
    stacks = "".join(p.read_text() for p in (tmp_path / "run/stacks").iterdir())
    assert "generate" in stacks, "what the frozen one was doing"


@pytest.mark.timeout(240)
def test_a_lost_learner_is_taken_back_to_the_checkpoint(plan, tmp_path, undisturbed, capsys):
    model = plan("learn.1", "learn.20")
    run(tmp_path / "run", model, **settings(model))
    said = capsys.readouterr().out
    assert not unmet(model)
    assert said.count("all actors are started again") == 2
    assert "learner 0 died at learn" in said
    assert f"resumed from {tmp_path / 'run/checkpoints/step_000002'}" in said
    assert sum(restarts(tmp_path / "run")) >= 1
    assert_same(tmp_path / "run", undisturbed)


def test_an_actor_that_always_dies_ends_the_run_with_its_name(plan, tmp_path, undisturbed):
    model = plan("rollout.1", "rollout.2", "reward.9999")
    changes = settings(model)
    (model / "deaths/rollout.2").unlink()
    with pytest.raises(ActorFailed, match=r"sampler . died at rollout"):
        run(tmp_path / "none", model, **changes, recovery__max_restarts=0)
