"""Collecting ahead of learning with both real engines: bound, versions, proofs, resume."""

import json
import shutil

import pytest
from small_runs import metrics, run, tree

from rlft.check import check_plugins, check_tasks
from rlft.config import parse_config
from rlft.errors import ConfigError, WeightsMismatch
from rlft.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")


def task_ids(folder):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [(row["step"], row["task"]) for row in rows if row["kind"] == "train"]


def in_turn(model):
    """What a run of six steps that does not run ahead has to take: the tickets say."""
    cfg = parse_config(tree(model), "in turn")
    _, env = check_plugins(cfg)
    tasks, _ = check_tasks(cfg, env)
    tickets = [tasks.ticket(i) for i in range(6)]
    return [(t.index + 1, one.id) for t in tickets for one in t.tasks for _ in range(4)]


@pytest.mark.e2e
@pytest.mark.parametrize("engine", [pytest.param("transformers", marks=pytest.mark.long), "vllm"])
def test_a_run_ahead_keeps_the_bound_and_takes_each_task_once(tiny_model, tmp_path, engine):
    ahead = {"max_staleness": 2, "sampler__engine": engine, "sampler__min_tokens": 10}
    run(tmp_path / "run", tiny_model, **ahead, steps=6, save__every=3)
    rows = metrics(tmp_path / "run")
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["staleness/max"] for row in rows) <= 2
    assert max(row["staleness/max"] for row in rows) >= 1, "it never ran ahead"
    assert all(row["mismatch/max_logp_gap"] is not None for row in rows)
    assert task_ids(tmp_path / "run") == in_turn(tiny_model)


@pytest.mark.e2e
def test_a_resumed_run_issues_again_what_was_in_flight(tiny_model, tmp_path):
    folder = tmp_path / "run"
    run(folder, tiny_model, max_staleness=1, steps=6, save__every=3)
    shutil.rmtree(folder / "checkpoints/step_000006")  # when 3 was saved, step 4 was under way
    run(folder, tiny_model, max_staleness=1, steps=6, save__every=3, resume=True)
    assert task_ids(folder) == in_turn(tiny_model)
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.e2e
def test_a_stale_engine_is_caught_while_requests_are_in_flight(tiny_model, tmp_path):
    with pytest.raises(WeightsMismatch, match="sampler 0"):
        run(
            tmp_path / "run",
            tiny_model,
            max_staleness=1,
            sampler__engine="planted_faults:StaleEngine",
            learner__lr=1e-2,
        )


def test_an_algorithm_that_wants_fresh_data_refuses(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"max_staleness is 1, but algo SFT .* at most 0"):
        run(tmp_path / "run", tiny_model, max_staleness=1, algo={"name": "sft"})


_WAITING = '''
import os
import time
from pathlib import Path

import gymnasium
import numpy as np

HERE = Path(__file__).parent


class Waiting(gymnasium.Env):
    """The runner that begins first waits, at the end of each of its first three stretches of four steps,
    until the other has begun the stretch after it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Waiting.steps += 1
        try:
            (HERE / "waits").touch(exist_ok=False)
            (HERE / "waits").write_text(str(os.getpid()))
        except FileExistsError:
            pass
        stretch, step = divmod(Waiting.steps - 1, 4)
        if (HERE / "waits").read_text() != str(os.getpid()):
            if (HERE / f"dies_at_{stretch}").exists():
                (HERE / f"dies_at_{stretch}").rename(HERE / "died")
                (HERE / "died").write_text(str(stretch))
                os._exit(1)
            if (HERE / "died").exists():  # this is another process, which begins there
                stretch += int((HERE / "died").read_text())
            (HERE / f"other_{stretch}").touch()
        elif step == 3 and stretch < 3:
            end = time.monotonic() + 30
            while not (HERE / f"other_{stretch + 1}").exists():
                if time.monotonic() > end:
                    raise RuntimeError(f"the other runner waits for stretch {stretch} of this one")
                time.sleep(0.01)
        return np.zeros(2, np.float32), 0.0, False, False, {}
'''


def waiting(folder, **changes):
    """A run of two runners, of which one is the slower."""
    (folder / "waiting.py").write_text(_WAITING)
    cfg = {
        "name": "ahead",
        "steps": 4,
        "tasks_per_step": 1,
        "max_staleness": 1,
        "env": {"name": "gym", "id": f"{folder / 'waiting.py'}:Waiting"},
        "algo": {"name": "control_ppo", "steps": 4, "minibatches": 1},
        "model": {"build": {"name": "mlp", "hidden": [4]}, "dtype": "float32"},
        "sampler": {"num": 2},
        "runner": {"blocks": 2, "envs": 1},
        "eval": {"at_start": False, "at_end": False},
        "save": {"every": 0},
        "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
    }
    train(parse_config({**cfg, **changes}, "ahead"), folder / "run")
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.e2e
def test_runners_wait_for_the_bound_and_not_for_each_other(tmp_path):
    """Also where the slower one has not yet taken the weights that the bound waits for."""
    rows = waiting(tmp_path)
    assert [row["reward/errors"] for row in rows] == [0, 0, 0, 0]
    assert [row["staleness/max"] for row in rows] == [0, 1, 1, 1]
    assert all(row["time/lag_wait_s"] >= 0 for row in rows)


@pytest.mark.e2e
def test_a_runner_lost_while_the_other_is_at_the_step_before_keeps_the_bound(tmp_path):
    """It has taken the weights of a publish that is not over, and dies at the step that they allow."""
    (tmp_path / "dies_at_2").touch()
    rows = waiting(tmp_path, recovery={"max_restarts": 3})
    assert (tmp_path / "died").read_text() == "2"
    assert sum(row["recovery/restarts"] for row in rows) == 1
    assert [row["reward/errors"] for row in rows] == [0, 0, 0, 0]
    assert [row["staleness/max"] for row in rows] == [0, 1, 1, 1]
    assert [row["env/steps"] for row in rows] == [8] * 4


@pytest.mark.e2e
def test_what_evaluations_and_probes_prove_and_wait_for_is_in_the_row_of_the_step_after(tmp_path):
    """And of what was collected for steps that the budget no longer allowed, nothing is left."""
    cfg = {
        "name": "proved",
        "steps": 50,
        "budget": {"env/steps": 48},
        "tasks_per_step": 1,
        "max_staleness": 1,
        "env": {"name": "minigrid", "configurations": 4, "max_steps": 8},
        "algo": {"name": "control_ppo", "steps": 8, "minibatches": 1},
        "model": {"build": {"name": "mlp", "hidden": [4]}, "dtype": "float32"},
        "runner": {"blocks": 2, "envs": 1},
        "eval": {"every": 1, "max_tasks": 2},
        "probes": {"every": 1, "fns": [{"name": "restart", "env": {"max_steps": 6}, "tasks": 2}]},
        "save": {"every": 0},
        "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60},
    }
    train(parse_config(cfg, "proved"), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["publish/canary_gap"] < 1e-4 and row["time/probe_wait_s"] >= 0 for row in rows)
    assert {step for step, _ in task_ids(tmp_path / "run")} == {1, 2, 3}
