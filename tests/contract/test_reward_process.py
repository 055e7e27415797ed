"""Rewards that raise, hang, fork, print, allocate and die, in real processes: only the guilty call is an
error, and nothing is left of it."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from rlft.config import Rewards
from rlft.errors import PluginError
from rlft.rewards.scorer import Scorer
from rlft.types import Attempt, Task

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "support" / "faulty_rewards.py"
TIMEOUT_S = 0.6


def items(*completions, target="7321"):
    """Calls with those completions; `target` is also how long the children sleep, to know them by."""
    task = Task("t", "prompt", target=target)
    return [pickle.dumps((Attempt(f"a{i}", "policy", c), task)) for i, c in enumerate(completions)]


@pytest.fixture
def scorer():
    """Makes scorers of one function, and closes them."""
    made = []

    def make(attr="reward", args=None, **keys):
        fns = [{"fn": f"{FILE}:{attr}", "args": args or {}}]
        rewards = Rewards(**{"fns": fns, "timeout": TIMEOUT_S, "invalid_score": -1.0, **keys})
        made.append(Scorer(rewards, [str(ROOT)], 60))
        return made[-1]

    yield make
    for one in made:
        one.close()


def gone(find, patience_s=10.0):
    """Whether `find()` is empty, now or soon."""
    deadline = time.monotonic() + patience_s
    while find() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not find()


def sleepers(seconds):
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


def seen(outcome):
    return json.loads(outcome.reason)


# -- one guilty call among others --------------------------------------------------------------------


@pytest.mark.parametrize(
    "guilty, fault, said, restarts",
    [
        ("raises", "raised", "KeyError: 'gold'", 0),
        ("nan", "raised", "expected a finite number", 0),
        ("text", "raised", "str '0.5'; expected a number", 0),
        ("nothing", "raised", "NoneType", 0),
        ("memory", "raised", "MemoryError", 0),
        ("raises at length", "raised", "[...]", 0),
        ("hangs", "timeout", "in _hang", 1),
        ("hangs deaf", "timeout", "timed out after 0.6 s (rewards.timeout)", 1),
        ("too many", "died", "processes, above rewards.max_processes", 1),
        ("children's memory", "died", "GB, above rewards.memory_gb", 1),
        ("exits", "died", "exit code 3", 1),
        ("sys.exit", "died", "exit code 4", 1),
        ("kills its group", "died", "SIGKILL", 1),
        ("segfault", "died", "SIGSEGV", 1),
    ],
)
def test_only_the_guilty_call_is_an_error(scorer, guilty, fault, said, restarts):
    slow = guilty in ("too many", "children's memory")
    limits = {"timeout": 20.0, "memory_gb": 0.6} if slow else {}
    one = scorer(**limits)
    result = one.score(items("0.25", guilty, "0.5", "invalid"))
    before, failed, after, invalid = result.outcomes
    assert [before.reward, after.reward] == [0.25, 0.5]
    assert (invalid.kind, invalid.reward, invalid.reason) == ("invalid", -1.0, "no answer tag")
    assert (failed.kind, failed.reward, failed.fault) == ("error", None, fault)
    assert said in failed.reason
    assert len(failed.reason) < 10_000
    assert result.restarts == restarts
    assert one.done == one.asked == 4


def test_a_hang_ends_at_its_timeout_and_its_process_is_gone(scorer):
    one = scorer()
    [pid] = one.score(items("pid")).outcomes
    began = time.monotonic()
    [failed] = one.score(items("hangs deaf")).outcomes
    assert TIMEOUT_S <= failed.seconds <= time.monotonic() - began < TIMEOUT_S + 5
    assert not psutil.pid_exists(int(pid.reward))


def test_every_call_may_hang(scorer):
    result = scorer(timeout=0.2).score(items("hangs", "hangs", "hangs", "1"))
    assert [o.fault for o in result.outcomes] == ["timeout"] * 3 + [""]
    assert result.restarts == 3


# -- nothing is left ---------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["closes", "hangs", "exits"])
def test_what_a_reward_started_ends_with_its_process(scorer, then):
    one, mark = scorer(), f"73{os.getpid()}{len(then)}"
    assert one.score(items("children", target=mark)).outcomes[0].reward == 1.0
    assert gone(lambda: len(sleepers(mark)) != 2), "a session of its own, and an orphan"
    if then == "closes":
        one.close()
    else:
        one.score(items(then))
    assert gone(lambda: sleepers(mark))


def test_a_fork_that_sleeps_is_no_second_worker_and_ends_too(scorer):
    one = scorer()
    assert [o.reward for o in one.score(items("forks", "1", "2")).outcomes] == [1.0, 1.0, 2.0]
    family = psutil.Process(int(one.score(items("pid")).outcomes[0].reward)).children()
    assert len(family) == 1
    one.close()
    assert gone(lambda: [p for p in family if p.is_running()])


def test_nothing_survives_whoever_asked(tmp_path):
    """Killed as the system kills: no handler runs, and the reward and its children still end."""
    mark = f"74{os.getpid()}"
    code = f"""
        import pickle, sys, time
        sys.path.insert(0, {str(ROOT / "tests/contract")!r})
        from test_reward_process import items
        from rlft.config import Rewards
        from rlft.rewards.scorer import Scorer
        one = Scorer(Rewards(fns=[{{"fn": {f"{FILE}:reward"!r}}}]), [], 60)
        one.score(items("children", target={mark!r}))
        print(int(one.score(items("pid")).outcomes[0].reward), flush=True)
        one.score(items("hangs"))
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as asker:
        pid = int(asker.stdout.readline())
        assert len(sleepers(mark)) == 2
        assert len(list(tmp_path.iterdir())) == 1
        asker.send_signal(signal.SIGKILL)
    assert gone(lambda: psutil.pid_exists(pid) or sleepers(mark))
    assert gone(lambda: list(tmp_path.iterdir())), "the scratch folder"


# -- what it sees ------------------------------------------------------------------------------------


def test_credentials_are_not_there(scorer, monkeypatch):
    secrets = (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "RAY_AUTH_TOKEN",
        "MY_PASSWORD",
    )
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("JUDGE_KEY", "for the judge")
    [outcome] = scorer("looks_around", env=["JUDGE_KEY"]).score(items("environment")).outcomes
    # The reason of an Invalid is cut: what is looked for stands in the process's own record.
    assert outcome.kind == "invalid"
    one = scorer("looks_around", env=["JUDGE_KEY"])
    pid = seen(one.score(items("pid")).outcomes[0])
    environment = psutil.Process(pid).environ()
    assert environment["JUDGE_KEY"] == "for the judge"
    assert not environment.keys() & set(secrets)
    assert "secret" not in environment.values()


def test_the_environment_is_the_allowed_one(monkeypatch):
    from rlft.rewards.process import clean_environment

    monkeypatch.setattr(
        os, "environ", {"PATH": "/bin", "LC_ALL": "C", "X_TOKEN": "1", "HOME": "/h"}
    )
    settings = {"HF_HUB_CACHE", "PYTHONPATH", "PYTHONHASHSEED"}
    assert clean_environment([]).keys() == {"PATH", "LC_ALL", *settings}
    assert clean_environment(["HOME"])["HOME"] == "/h"
    with pytest.raises(PluginError, match=r"rewards\.env names JUDGE_KEY, which is not set"):
        clean_environment(["JUDGE_KEY"])


def test_it_has_a_folder_of_its_own_that_is_removed(scorer):
    one, other = scorer("looks_around"), scorer("looks_around")
    folder, tmp, files = (seen(o) for o in one.score(items("cwd", "tmp", "files")).outcomes)
    assert folder == tmp
    assert files == []
    assert folder != seen(other.score(items("cwd")).outcomes[0])
    Path(folder, "deep").mkdir()
    Path(folder, "deep", "left.txt").write_text("x")
    one.close()
    assert not Path(folder).exists()


def test_a_gigabyte_of_output_is_read_away_and_its_end_kept(scorer):
    one = scorer(timeout=60.0)
    one.start()
    before = psutil.Process().memory_info().rss
    result = one.score(items("gigabyte", "1"))
    assert [o.reward for o in result.outcomes] == [1.0, 1.0]
    assert result.printed.endswith("the end\n")
    assert len(result.printed) <= 4096
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_memory_of_children_counts_only_what_they_do_not_share(scorer):
    """A process that holds much and forks is not held to have it twice."""
    one = scorer(timeout=20.0, memory_gb=1.0)
    assert one.score(items("forks", "1")).outcomes[1].reward == 1.0


# -- repeatability -----------------------------------------------------------------------------------


def test_chance_depends_on_what_is_asked_and_not_on_who_was_asked_before(scorer):
    calls = items("random", "random", "hash")
    one, other = scorer(), scorer()
    first = [o.reward for o in one.score(calls).outcomes]
    assert first[0] != first[1], "two members draw differently"
    backwards = [o.reward for o in other.score(calls[::-1]).outcomes]
    assert backwards[::-1] == first


def test_outcomes_keep_their_order_over_restarts(scorer):
    values = [str(i / 8) for i in range(40)]
    calls = [*values[:10], "exits", *values[10:25], "hangs", *values[25:]]
    result = scorer().score(items(*calls))
    got = [o.reward for o in result.outcomes]
    assert got == [None if c in ("exits", "hangs") else float(c) for c in calls]


# -- async -------------------------------------------------------------------------------------------


def test_async_calls_wait_at_the_same_time_up_to_the_bound(scorer):
    one = scorer("waits", timeout=5.0, concurrency=8)
    one.start()
    began = time.monotonic()
    result = one.score(items(*["0.3"] * 16))
    spent = time.monotonic() - began
    assert [o.reward for o in result.outcomes] == [1.0] * 16
    assert 0.6 <= spent < 16 * 0.3, "two rounds of eight, not one after another"


def test_an_async_call_that_passes_its_time_is_cancelled_and_the_process_stays(scorer):
    result = scorer("waits").score(items("0", "forever", "0", "raises"))
    assert [o.fault for o in result.outcomes] == ["", "timeout", "", "raised"]
    assert result.restarts == 0


@pytest.mark.parametrize(
    "guilty, fault", [("uncancellable", "timeout"), ("blocks", "timeout"), ("exits", "died")]
)
def test_what_cannot_be_cancelled_is_killed_and_the_others_asked_again(scorer, guilty, fault):
    result = scorer("waits", timeout=1.0).score(items("0.1", "0.2", guilty, "0.3", "0"))
    assert [o.fault for o in result.outcomes] == ["", "", fault, "", ""]
    assert [o.reward for o in result.outcomes] == [1.0, 1.0, None, 1.0, 1.0]
    assert result.restarts >= 1


def test_async_and_sync_functions_add_up(scorer):
    one = scorer()
    one.close()
    fns = [{"fn": f"{FILE}:{attr}", "weight": w} for attr, w in (("reward", 10.0), ("waits", 1.0))]
    rewards = Rewards(fns=[*fns, {"fn": f"{FILE}:Judge", "args": {"level": 0.5}}])
    mixed = Scorer(rewards, [], 60)
    try:
        [outcome] = mixed.score(items("0.01")).outcomes
    finally:
        mixed.close()
    assert math.isclose(outcome.reward, 10 * 0.01 + 1.0 + 0.5)
    assert outcome.parts["waits/waited"] >= 0.01


# -- trajectories, and what is named -----------------------------------------------------------------


def test_a_function_of_a_trajectory_is_given_the_conversation(scorer):
    asked = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    attempt = Attempt(
        "a", "policy", "hi", (*asked, {"role": "assistant", "content": "hi"}), 3, True
    )
    item = pickle.dumps((attempt, Task("t", asked)))
    [outcome] = scorer("turns", args={"weight": 2.0}).score([item]).outcomes
    assert (outcome.reward, outcome.parts) == (6.0, {"cut": 1.0})


def test_a_file_is_found_from_the_folder_of_the_run(tmp_path):
    (tmp_path / "words.txt").write_text("a b c")
    (tmp_path / "mine.py").write_text(
        "WORDS = open('words.txt').read().split()\ndef count(completion, task): return len(WORDS)\n"
    )
    one = Scorer(Rewards(fns=[{"fn": "mine.py:count"}]), ["/nowhere", str(tmp_path)], 60)
    assert one.score(items("")).outcomes[0].reward == 3.0
    one.close()


@pytest.mark.parametrize(
    "source, said",
    [
        ("def other(completion, task): return 1\n", "has no 'count'"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("import os; os._exit(5)\n", "exit code 5"),
        ("import time; time.sleep(10_000)\n", 'mine.py", line 1'),
        ("class count:\n    def __init__(self): raise OSError('no model')\n", "OSError: no model"),
    ],
    ids=["attribute", "import", "exit", "hang", "constructor"],
)
def test_what_cannot_be_used_is_said_before_anything_is_scored(tmp_path, source, said):
    (tmp_path / "mine.py").write_text(source)
    one = Scorer(Rewards(fns=[{"fn": "mine.py:count"}]), [str(tmp_path)], 5.0)
    with pytest.raises(PluginError) as caught:
        one.start()
    assert said in str(caught.value)


def test_a_process_that_dies_between_two_scorings_is_replaced_and_no_call_blamed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, threading\n"
        "def count(completion, task):\n"
        "    threading.Timer(0.2, os._exit, (6,)).start()\n"
        "    return 1\n"
    )
    one = Scorer(Rewards(fns=[{"fn": "mine.py:count"}]), [str(tmp_path)], 60)
    assert one.score(items("")).restarts == 0
    time.sleep(1.0)
    result = one.score(items(""))
    one.close()
    assert (result.outcomes[0].kind, result.restarts) == ("value", 1)


def test_a_task_whose_class_is_not_known_there_is_an_error_that_says_so(scorer):
    module = type(sys)("only_here")
    exec("class Target: pass", module.__dict__)
    module.Target.__module__ = "only_here"
    sys.modules["only_here"] = module
    item = pickle.dumps((Attempt("a", "policy", "1"), Task("t", "p", target=module.Target())))
    del sys.modules["only_here"]
    [outcome] = scorer().score([item]).outcomes
    assert outcome.kind == "error"
    assert "keep target and info to plain values" in outcome.reason
