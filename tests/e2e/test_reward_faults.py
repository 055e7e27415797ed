"""Runs whose rewards fail or hang: they go on, say so, are repeatable, and leave no process."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml
from marked import processes_with
from small_runs import metrics, run, tree, weights

MARK = "RLFT_TEST_REWARD"
SUPPORT = Path(__file__).parents[1] / "support"


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.e2e
def test_a_reward_that_hangs_is_killed_and_the_run_goes_on(tmp_path, tiny_model):
    mark = uuid.uuid4().hex
    config = tree(
        tiny_model,
        steps=2,
        rewards={
            "fns": [{"fn": f"{SUPPORT / 'faulty_rewards.py'}:stuck"}],
            **{"timeout": 0.5, "max_error_share": 0.9, "env": [MARK, "RLFT_TEST_FOLDERS"]},
        },
    )
    (tmp_path / "hang.yaml").write_text(yaml.safe_dump(config))
    env = {**os.environ, MARK: mark, "RLFT_TEST_FOLDERS": str(tmp_path / "folders")}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "rlft", "run", "hang.yaml", "--dir", "run"],
        **{"cwd": tmp_path, "env": env, "capture_output": True, "text": True},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    late = sum(
        round(16 * row["reward/timeouts"]) for row in rows(tmp_path / "run", "metrics.jsonl")
    )
    assert late > 0
    assert "rewards failed; the first:\ntimed out after 0.5 s (rewards.timeout)" in done.stdout
    assert "in stuck" in done.stdout, "where it hung"
    steps = rows(tmp_path / "run", "metrics.jsonl")
    assert sum(row["reward/restarts"] for row in steps) == late
    account = rows(tmp_path / "run", "rewards.jsonl")
    assert sum(row["timeouts"] for row in account) == late
    assert account[0]["slowest"][0]["seconds"] >= 0.5
    deadline = time.monotonic() + 10
    folders = set((tmp_path / "folders").read_text().split())
    while (
        processes_with(MARK, mark) or any(map(os.path.exists, folders))
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_with(MARK, mark), (
        "also what the rewards had started, in sessions of their own"
    )
    assert len(folders) == late + 1
    assert not any(map(os.path.exists, folders))


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("on_error", ["shrink", "refill"])
def test_failures_are_repeatable_whoever_scores(tmp_path, tiny_model, on_error):
    """Also with dice in the reward: what a call is asked decides, and not which worker it comes to."""
    settings = {
        "steps": 3,
        "save__every": 3,
        "rewards": {
            "fns": [{"fn": "faulty_rewards:unlucky"}],
            **{"on_error": on_error, "max_error_share": 1.0},
        },
    }
    for name, workers in (("one", 1), ("two", 2)):
        settings["rewards"]["workers"] = workers
        run(tmp_path / name, tiny_model, **settings)
    one, two = tmp_path / "one", tmp_path / "two"
    assert metrics(one) == metrics(two)
    ours, theirs = weights(one, 3), weights(two, 3)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    failed = [row["reward/errors"] for row in metrics(one)]
    assert max(failed) > 0
    kinds = {row["kind"] for row in rows(one, "rewards.jsonl")}
    assert kinds == ({"train"} if on_error == "shrink" else {"train", "refill"})
    trained = sum(row["rows"] for row in metrics(one))
    asked = sum(row["calls"] for row in rows(one, "rewards.jsonl") if row["kind"] == "train")
    assert asked == 3 * 16
    if on_error == "shrink":
        assert trained < asked
