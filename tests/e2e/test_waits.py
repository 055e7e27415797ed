"""Late, dead, failing and frozen actors: each named, with its stacks."""

import os
import signal
import time

import patience
import pytest
import ray

from rlft.cluster.waits import Owner, Waits
from rlft.errors import ActorDied, ActorFailed, DeadlineExceeded, SourceLost

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def owner():
    actor = ray.remote(concurrency_groups={"control": 1})(patience.Worker)
    handle = actor.options(num_cpus=0.01).remote("sampler 1")
    where = ray.get(handle.whereabouts.remote(), timeout=60)
    yield Owner("sampler 1", handle, "completions", where)
    ray.kill(handle)


@pytest.fixture
def said():
    return []


@pytest.fixture
def waits(said, tmp_path):
    made = Waits(said.append, tmp_path / "stacks", notice_s=1.0)
    made.stage = "step 4"
    return made


def test_a_late_actor_is_mentioned_with_its_progress_and_then_awaited(owner, waits, said):
    [slept] = waits.get([(owner, owner.handle.nap_in_here.remote(2.5))], "rollout", 30)
    assert slept == 2.5
    assert said[0] == "step 4: waiting 1 s for sampler 1, 12 of 32 completions"
    assert len(said) == 2


def test_values_keep_their_order_whoever_is_first(owner, waits):
    slow, fast = owner.handle.nap_in_here.remote(0.3), ray.put("fast")
    assert waits.get([(owner, slow), (Owner("store"), fast)], "both", 30) == [0.3, "fast"]


def test_the_deadline_names_the_owner_and_saves_what_it_was_doing(owner, waits, tmp_path):
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        waits.get([(owner, owner.handle.nap_in_here.remote(60))], "rollout", 1.5)
    assert time.monotonic() - began < 1.5 + 5
    text = str(caught.value)
    assert "step 4" in text
    assert "sampler 1, 12 of 32 completions" in text
    stacks = (tmp_path / "stacks" / "sampler_1.txt").read_text()
    assert "nap_in_here" in stacks


def test_a_frozen_process_is_named_long_before_its_deadline_and_its_memory_read(
    owner, waits, tmp_path
):
    reference = owner.handle.nap_in_here.remote(60)
    time.sleep(0.5)
    os.kill(owner.where.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(ActorDied, match=r"sampler 1 is frozen at rollout: process \d+"):
            waits.get([(owner, reference)], "rollout", 300)
    finally:
        os.kill(owner.where.pid, signal.SIGCONT)
    assert time.monotonic() - began < 30
    assert "nap_in_here" in (tmp_path / "stacks" / "sampler_1.txt").read_text()


def test_a_frozen_process_is_named_at_a_deadline_that_comes_first(owner, waits, tmp_path):
    reference = owner.handle.nap_in_here.remote(60)
    time.sleep(0.5)
    os.kill(owner.where.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises((DeadlineExceeded, ActorDied), match="sampler 1"):
            waits.get([(owner, reference)], "rollout", 0.5)
    finally:
        os.kill(owner.where.pid, signal.SIGCONT)
    assert time.monotonic() - began < 0.5 + 5
    assert "nap_in_here" in (tmp_path / "stacks" / "sampler_1.txt").read_text()


def test_a_long_native_call_is_not_taken_for_frozen(owner, waits):
    [held] = waits.get([(owner, owner.handle.hold_the_lock.remote(6))], "rollout", 60)
    assert held


def test_a_dead_actor_is_named_at_once(owner, waits):
    began = time.monotonic()
    with pytest.raises(ActorFailed, match="sampler 1 died at rollout"):
        waits.get([(owner, owner.handle.die.remote())], "rollout", 300)
    assert time.monotonic() - began < 30


def test_an_actor_that_raised_is_named_with_its_traceback_while_others_still_work(owner, waits):
    actor = ray.remote(concurrency_groups={"control": 1})(patience.Worker)
    other = Owner("sampler 2", actor.options(num_cpus=0.01).remote("sampler 2"))
    began = time.monotonic()
    with pytest.raises(ActorFailed) as caught:
        waits.get(
            [(owner, owner.handle.nap_in_here.remote(60)), (other, other.handle.fail.remote())],
            "rollout",
            300,
        )
    assert time.monotonic() - began < 30
    assert "sampler 2 failed at rollout" in str(caught.value)
    assert "a column" in str(caught.value)
    assert "in fail" in str(caught.value)


def test_who_answered_while_another_was_started_again_is_not_late(owner, waits):
    @ray.remote(num_cpus=0)
    def answer():
        return "answered"

    others = [answer.remote(), answer.remote()]
    ray.kill(owner.handle)
    revived = []

    def revive(place, error):
        revived.append(place)
        ray.wait(others, num_returns=2, timeout=60)
        time.sleep(1.1)
        return Owner("sampler 1"), ray.put("again")

    lost = owner.handle.nap_in_here.remote(60)
    pending = [(owner, lost), *((Owner(f"sampler {i}"), ref) for i, ref in enumerate(others, 2))]
    values = waits.get(pending, "rollout", 1.0, revive, then=lambda place, value: None)
    assert values == ["again", "answered", "answered"]
    assert revived == [0]


def test_what_was_made_by_a_process_that_is_gone_is_nobodys_failure(waits):
    @ray.remote(num_cpus=0)
    class Actor:
        def make(self):
            return ray.put(b"weights"), os.getpid()

        def act(self, seconds):
            time.sleep(seconds)

        def take(self, weights):
            return len(weights)

    learner, runner = Actor.remote(), Actor.remote()
    (weights, pid), _ = ray.get([learner.make.remote(), runner.take.remote(b"")], timeout=60)
    runner.act.remote(4)
    taking = runner.take.remote(weights)  # after that
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)

    def revive(place, error):
        raise AssertionError("the runner is well")

    with pytest.raises(SourceLost, match="runner 0 could not take what it was sent at publish"):
        waits.get([(Owner("runner 0", runner), taking)], "publish", 60, revive)
    ray.kill(runner)
