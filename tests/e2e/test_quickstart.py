"""The shipped quickstart through the command line: real Ray, vLLM and DeepSpeed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def rlft(*arguments, timeout):
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "rlft", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def evaluations(folder):
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]


def learns(folder, seed):
    few = [f"seed={seed}", "eval.every=0"]  # before and after: evaluations change nothing
    done = rlft("run", "configs/quickstart.yaml", *few, "--dir", folder, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *_, last = evaluations(folder)
    assert first["eval/tasks"] == last["eval/tasks"] == 512
    before, after = first["eval/reward/mean"], last["eval/reward/mean"]
    assert f"held-out reward/mean: {before:.3f} before, {after:.3f} after" in done.stdout
    assert done.stdout.rstrip().endswith(f"run folder: {folder}")
    return before, after


@pytest.mark.timeout(600)
def test_quickstart_learns(tmp_path):
    before, after = learns(tmp_path / "run", seed=0)
    assert before <= 0.50
    assert after >= 0.80


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_quickstart_learns_over_three_seeds_and_its_control_does_not(tmp_path):
    pairs = [learns(tmp_path / f"seed{seed}", seed) for seed in (0, 1, 2)]
    print("before and after, seeds 0, 1, 2:", pairs)
    assert max(before for before, _ in pairs) <= 0.50
    assert min(after for _, after in pairs) >= 0.80
    control = tmp_path / "control"
    done = rlft("run", "configs/quickstart_control.yaml", "--dir", control, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    assert evaluations(control)[-1]["eval/reward/mean"] <= 0.50


@pytest.mark.long
@pytest.mark.timeout(900)
def test_smollm2_on_gsm8k_takes_five_steps(tmp_path):
    model = tmp_path / "model"
    fetched = rlft("fetch", "smollm2-135m", "--to", model, timeout=400)
    assert fetched.returncode == 0, fetched.stderr[-3000:]
    rows = "tests/data/gsm8k"
    done = rlft(
        "run",
        "configs/gsm8k_smollm2.yaml",
        f"model.path={model}",
        f"env.path={rows}/train.jsonl",
        f"env.held_out_path={rows}/test.jsonl",
        "--dir",
        tmp_path / "run",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    publish = [json.loads(line)["time/publish_s"] for line in lines]
    print("publish seconds:", publish)
