"""What is killed or frozen is started again, and the result is that of an undisturbed run, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import torch
import yaml
from interruptible import interruptible
from marked import processes_with
from small_runs import metrics, run, tree, weights

from rlft.errors import ActorDied, ActorFailed, ConfigError

pytestmark = pytest.mark.usefixtures("ray_cluster")

MARK = "RLFT_TEST_RECOVERY"
STEPS = 4


ONE = {"sampler__num": 1}
"""For runs whose driver is killed: they start often, and an actor takes seconds to import."""


def settings(model: Path) -> dict:
    """Two samplers, with every plug-in that may be told to die."""
    deaths = str(model / "deaths")
    return {
        "steps": STEPS,
        "cluster__cpus": 1,  # the same threads in the shared cluster and in a run's own
        "save__every": 2,
        "eval": {"every": 2, "at_start": True, "at_end": True, "max_tasks": 8},
        "sampler__engine": "deaths:Engine",
        "sampler__num": 2,
        "rewards": {"fns": [{"fn": "planned:reward", "args": {"folder": deaths}}]},
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


def calm(folder, tiny_model, **changes):
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    run(folder / "run", model, **{**settings(model), **changes})
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster, tiny_model):
    return calm(tmp_path_factory.mktemp("undisturbed"), tiny_model)


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
    evaluations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return [row["recovery/restarts"] for row in (*metrics(folder), *evaluations)]


def unmet(model):
    return sorted(p.name for p in (model / "deaths").iterdir())


@pytest.mark.timeout(600)
def test_samplers_and_reward_workers_are_replaced_alone(plan, tmp_path, undisturbed, capsys):
    model = plan("worker.1", "rollout.3", "publish.3", "idle.3", "freeze.4")
    run(tmp_path / "run", model, **settings(model), recovery__max_restarts=5)
    said = capsys.readouterr().out
    assert not unmet(model), "every planned moment came"
    assert sum(restarts(tmp_path / "run")) == 5, "each counted once, in a step or an evaluation"
    assert "reward worker" in said and "died at reward" in said
    assert "died at rollout" in said and "died at publish" in said
    assert "is frozen at rollout" in said
    assert said.count("is back after") == 5
    assert "resumed from" not in said
    assert_same(tmp_path / "run", undisturbed)
    stacks = "".join(p.read_text() for p in (tmp_path / "run/stacks").iterdir())
    assert "generate" in stacks, "what the frozen one was doing"


@pytest.mark.timeout(600)
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


@pytest.mark.long
def test_without_restarts_a_death_ends_the_run_by_name(plan, tmp_path):
    model = plan("rollout.1")
    with pytest.raises(ActorDied, match=r"sampler \d died at rollout"):
        run(tmp_path / "run", model, **settings(model), recovery__max_restarts=0)


@pytest.mark.long
def test_what_raises_at_its_first_step_is_not_tried_again(plan, tmp_path, capsys):
    model = plan("raise.1")
    with pytest.raises(ActorFailed, match="ZeroDivisionError"):
        run(tmp_path / "run", model, **settings(model))
    assert "started again" not in capsys.readouterr().out


@pytest.mark.long
def test_what_raises_later_is_tried_once_more(plan, tmp_path, undisturbed, capsys):
    model = plan("raise.20")
    run(tmp_path / "run", model, **settings(model))
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert_same(tmp_path / "run", undisturbed)


# -- the driver -----------------------------------------------------------------------------------


def gone(mark, patience_s=20):
    end = time.monotonic() + patience_s
    while (left := processes_with(MARK, mark)) and time.monotonic() < end:
        time.sleep(0.2)
    return [" ".join(p.cmdline())[:100] for p in left]


@pytest.fixture
def launch(tmp_path):
    """Starts the command line on a configuration, in a cluster of its own; ends what it leaves."""
    mark = uuid.uuid4().hex

    def start(model, *arguments, **changes):
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump(tree(model, **{**settings(model), **changes})))
        root = Path(__file__).resolve().parents[2]
        paths = os.pathsep.join([str(root), str(root / "tests/support")])
        env = {**os.environ, MARK: mark, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        env.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "rlft", "run", str(config), "--dir", str(tmp_path / "run")]
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            preexec_fn=interruptible,
            start_new_session=True,
        )

    start.mark = mark
    yield start
    for left in processes_with(MARK, mark):
        left.kill()


def until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return
    pytest.fail(f"the run ended before it said {start!r}")


@pytest.mark.timeout(600)
def test_a_killed_driver_comes_back_before_and_after_its_first_checkpoint_and_mid_save(
    plan, tmp_path, tmp_path_factory, launch, tiny_model
):
    model = plan("driver.2", "save.2")  # no checkpoint yet; then while the one of step 4 is written
    process = launch(model, "--retries", "2", **ONE)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    assert not unmet(model)
    assert "the run was killed (SIGKILL) after step 1; starting it again (1 of 2 retries)" in output
    assert "the run was killed (SIGKILL) after step 4; starting it again (2 of 2 retries)" in output
    assert "resumed from" in output
    assert_same(tmp_path / "run", calm(tmp_path_factory.mktemp("calm"), tiny_model, **ONE))
    root = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["step_000002", "step_000004"]
    assert (tmp_path / "run/result.json").exists()
    assert not gone(launch.mark)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_driver_leaves_nothing_behind_even_a_frozen_actor(plan, tmp_path, launch):
    process = launch(plan(), steps=100_000, **ONE)
    until(process, "step 1/")
    actor = next(
        p for p in processes_with(MARK, launch.mark) if p.cmdline()[0].startswith("ray::Sampler")
    )
    actor.suspend()
    # Meanwhile the folder is taken.
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on .* another --dir"):
        run(tmp_path / "run", tmp_path / "model", **settings(tmp_path / "model"), resume=True)
    process.kill()
    process.wait()
    assert not gone(launch.mark)


@pytest.mark.timeout(600)
def test_sigterm_to_a_supervisor_ends_the_run_and_is_not_retried(plan, launch):
    process = launch(plan(), "--retries", "3", steps=100_000, **ONE)
    until(process, "step 1/")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in output and "starting it again" not in output
    assert not gone(launch.mark)


# -- chaos ----------------------------------------------------------------------------------------

ROLES = ("ray::Sampler", "ray::RewardWorker", "ray::LearnerRank", "driver")


def driver_of(mark):
    """The process that runs the loop: the child of the supervisor."""
    for process in processes_with(MARK, mark):
        if "--retries" not in process.cmdline() and "rlft" in process.cmdline():
            return process
    return None


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_twenty_kills_at_random_moments_change_nothing(plan, tmp_path, launch, undisturbed):
    rng = random.Random(0)
    long = {"steps": 400, "save__every": 10, "eval__every": 100, "learner__lr": 1e-5}
    long |= {"recovery": {"max_restarts": 100}}
    calm_model = plan()
    calm = settings(calm_model) | long
    run(tmp_path / "calm", calm_model, **calm)
    process = launch(calm_model, "--retries", "100", **long)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()
    kills = []
    while len(kills) < 20 and process.poll() is None:
        seen = len(output)
        running = time.monotonic() + 60 * (
            rng.random() < 0.7
        )  # else while it may still be starting
        while time.monotonic() < running and not any(x.startswith("step ") for x in output[seen:]):
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 4))
        role = rng.choice(ROLES)
        if role == "driver":
            victims = [p for p in [driver_of(launch.mark)] if p]
        else:
            found = processes_with(MARK, launch.mark)
            victims = [p for p in found if (p.cmdline() or [""])[0].startswith(role)]
        if victims:
            rng.choice(victims).kill()
            kills.append(role)
    process.wait(timeout=600)
    reader.join(timeout=30)
    print("kills:", kills)
    print("".join(output))
    assert process.returncode == 0, "".join(output)[-3000:]
    assert len(kills) == 20, f"the run was over after {len(kills)} kills: raise its steps"
    ours, theirs = tmp_path / "run", tmp_path / "calm"
    assert numbers(ours) == numbers(theirs)
    a, b = weights(ours, 400), weights(theirs, 400)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert not gone(launch.mark)
