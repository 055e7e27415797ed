"""`rlft check` tries the rewards on the tasks, in a process like a worker's, before a run does."""

import json
import time

import psutil
import pytest

from rlft.check import as_worker
from rlft.check.as_worker import in_worker
from rlft.check.plugins import check_plugins
from rlft.config import parse_config
from rlft.errors import DataError, PluginError
from rlft.types import Task

TASKS = (
    Task("t1", "1+1=", target="2", demos=("2",), info={"answer": "2", "level": 1}),
    Task("t2", "2+2=", target="4", demos=("4",), info={"answer": "4", "level": 1}),
)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Writes a reward of this source; returns a configuration that names it."""
    monkeypatch.chdir(tmp_path)

    def write(source):
        (tmp_path / "mine.py").write_text(source)
        tree = {"name": "c", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"}
        tree |= {"model": {"path": "m"}, "sampler": {"engine": "transformers"}}
        return parse_config({**tree, "rewards": {"fns": [{"fn": "mine.py:reward"}]}}, "here")

    return write


@pytest.fixture
def tried(given):
    """Tries a reward of this source in a process; returns what is said of it."""

    def attempt(source, tasks=TASKS):
        cfg = given(source)
        algo, _ = check_plugins(cfg)
        return in_worker(cfg, algo, tasks)

    return attempt


@pytest.fixture
def tried_here(given, tmp_path):
    """The same as the process does it, in this one."""
    return lambda source, tasks=TASKS: list(as_worker.rewards(given(source), tasks, tmp_path))


def test_demonstrations_are_told_from_empty_answers(tried):
    said = tried("def reward(completion, task): return float(completion == task.target)")
    assert said == ["reward mine.py:reward: 1.00 on 2 demonstrations, 0.00 on 2 empty answers"]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tried_here):
    with pytest.raises(DataError) as caught:
        tried_here("def reward(completion, task): return float(completion == task.info['anwser'])")
    said = str(caught.value)
    assert "fails on '2' to task 't1'" in said and "KeyError: 'anwser'" in said
    assert "in info: answer, level" in said


@pytest.mark.parametrize(
    "needs, parts",
    [
        ("('info.anwser',)", ["task.info['anwser']", "Did you mean 'answer'?", "answer, level"]),
        ("('target', 'info.answer')", []),
        ("('demos',)", []),
    ],
)
def test_what_a_reward_says_it_needs_is_looked_for(tried_here, needs, parts):
    source = f"def reward(completion, task): return 0.0\nreward.needs = {needs}\n"
    if not parts:
        assert tried_here(source)
        return
    with pytest.raises(DataError) as caught:
        tried_here(source)
    for part in parts:
        assert part in str(caught.value)


def test_a_target_that_is_needed_and_missing(tried_here):
    source = "def reward(completion, task): return 0.0\nreward.needs = ('target',)\n"
    with pytest.raises(DataError, match=r"needs task\.target, and task 'bare' has none"):
        tried_here(source, (Task("bare", "?"),))


def test_a_reward_that_raises_only_on_an_empty_answer(tried):
    with pytest.raises(DataError, match=r"fails on an empty answer to task 't1'"):
        tried("def reward(completion, task): return float(completion[0] == task.target)")


def test_a_reward_that_cannot_be_imported_by_another_process(tried):
    source = "import os\nif 'rlft-check-' in ' '.join(__import__('sys').argv): import no_such\n"
    with pytest.raises(PluginError, match=r"(?s)in a worker's process: .*no_such"):
        tried(source + "def reward(completion, task): return 1.0\n")


def test_a_reward_that_hangs_is_killed_with_what_it_started(tried, tmp_path, monkeypatch):
    monkeypatch.setattr(as_worker, "PATIENCE_S", 15.0)
    source = (
        "import os, subprocess, time\n"
        "def reward(completion, task):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'[{{os.getpid()}}, {{child.pid}}]')\n"
        "    time.sleep(600)\n"
    )
    with pytest.raises(
        PluginError, match=r"reward mine\.py:reward on task 't1' took more than 15 s"
    ):
        tried(source)
    time.sleep(0.2)
    for pid in json.loads((tmp_path / "pids").read_text()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_reward_that_ends_its_process(tried):
    with pytest.raises(PluginError, match="ended with code 5 before it was done"):
        tried("import os\ndef reward(completion, task): os._exit(5)\n")


def test_what_a_reward_prints_stays_out_of_the_report(tried, capfd):
    said = tried("def reward(completion, task):\n    print('x' * 10**6)\n    return 1.0\n")
    assert len(said) == 1 and "xxx" not in capfd.readouterr().out
