"""Ctrl-C and SIGTERM end a run and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
import uuid

import pytest
import yaml
from interruptible import interruptible
from marked import processes_with
from small_runs import tree

MARK = "RLFT_TEST_SIGNAL"
PATIENCE_S = 90


@pytest.fixture
def running(tmp_path, tiny_model):
    """A run of many steps that has finished its first, its lines, and its mark."""
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump(tree(tiny_model, steps=100_000, algo__drop_flat=False)))
    mark = uuid.uuid4().hex
    support = os.path.join(os.path.dirname(os.path.dirname(__file__)), "support")
    env = {**os.environ, MARK: mark, "PYTHONPATH": support, "PYTHONUNBUFFERED": "1"}
    env.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "rlft", "run", str(config), "--dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        preexec_fn=interruptible,
        start_new_session=True,  # a terminal's Ctrl-C reaches a whole group: this one
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 1/"):
            break
    else:
        pytest.fail("the run ended before its first step:\n" + "".join(lines))
    assert len(processes_with(MARK, mark)) > 4, "driver, raylet, gcs, actors"
    yield process, mark
    for left in processes_with(MARK, mark):
        left.kill()


def ends_cleanly(process, mark):
    output, _ = process.communicate(timeout=PATIENCE_S)
    end = time.monotonic() + 15
    while processes_with(MARK, mark) and time.monotonic() < end:
        time.sleep(0.2)
    left = [" ".join(p.cmdline())[:120] for p in processes_with(MARK, mark)]
    assert not left, f"left behind: {left}"
    return output


def test_ctrl_c_leaves_nothing_behind(running):
    process, mark = running
    os.killpg(process.pid, signal.SIGINT)
    output = ends_cleanly(process, mark)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in output
    assert "Traceback" not in output


@pytest.mark.long  # test_recovery.py and test_launch.py end such a driver by it too
def test_sigterm_leaves_nothing_behind(running):
    process, mark = running
    process.send_signal(signal.SIGTERM)
    output = ends_cleanly(process, mark)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in output
    assert "Traceback" not in output


def test_a_second_ctrl_c_during_the_clean_up_changes_nothing(running):
    process, mark = running
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    ends_cleanly(process, mark)
    assert process.returncode in (130, -signal.SIGINT)
