"""A runner is lost while the driver publishes and collects beside each other: whoever is asked holds what
it should. Actors here are threads that do one thing after the other, as Ray's are; the rest is real."""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from rlft.cluster import fleet as fleets
from rlft.cluster.fleet import Fleet, Post
from rlft.cluster.waits import Owner
from rlft.config import parse_config
from rlft.errors import ActorDied, SourceLost, WeightsMismatch
from rlft.types import WeightUpdate
from rlft.weights.publisher import Publisher


class Actor:
    """As a runner or a learner, with a number for weights. stuck: it answers the canary by other ones."""

    def __init__(self, name, start_s=0.0, stuck=False):
        self.name, self.start_s, self.stuck = name, start_s, stuck
        self.version, self.log, self.dead = -1, [], False
        self.inbox, self.asked = queue.Queue(), []
        threading.Thread(target=self.work, daemon=True).start()

    def __getattr__(self, method):
        return Remote(self, method)

    def work(self):
        while True:
            answer, method, args = self.inbox.get()
            try:
                result = getattr(self, f"do_{method}")(*args)
            except BaseException as error:  # it belongs to who asked
                result = error
            if self.dead:
                return
            if isinstance(result, BaseException):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def kill(self):
        self.dead = True
        for answer in self.asked:
            if not answer.done():
                answer.set_exception(ActorDied(f"{self.name} died"))

    def do_start(self):
        time.sleep(self.start_s)

    def do_whereabouts(self):
        return None

    def do_serve(self, job):
        return None

    def do_between(self, job, method, *args):
        return getattr(self, f"do_{method}")(*args)

    def do_load(self, update, payload):
        if update.version <= self.version:
            raise WeightsMismatch(f"{self.name} holds {self.version}, was sent {update.version}")
        self.version = update.version

    def do_score(self, canary):
        return np.full(4, float(self.version) + 10 * self.stuck)

    def do_adopt(self, update, payload, canary):
        if update.version < self.version:
            return None
        if update.version > self.version:
            self.do_load(update, payload)
        return self.do_score(canary)

    def do_act(self, ticket, seconds):
        time.sleep(seconds)
        if not self.dead:
            self.log.append((ticket, self.version))
        return self.version

    def do_send(self, version):
        self.version = version
        return WeightUpdate(version, version - 1, "full", ())

    do_canary = do_score


class Remote:
    def __init__(self, actor, method):
        self.actor, self.method = actor, method

    def remote(self, *args):
        answer = Future()
        if self.actor.dead:
            answer.set_exception(ActorDied(f"{self.actor.name} died"))
        else:
            self.actor.asked.append(answer)
            self.actor.inbox.put((answer, self.method, args))
        return answer


class Waits:
    """As the real one: it looks up when all have answered, and once in a while."""

    def say(self, line): ...

    def get(self, pending, what, deadline_s, revive=None, then=None):
        waits, values = [answer for _, answer in pending], {}
        while left := [i for i in range(len(waits)) if i not in values]:
            until = time.monotonic() + 0.3
            while time.monotonic() < until and not all(waits[i].done() for i in left):
                time.sleep(0.002)
            for i in (i for i in left if waits[i].done()):
                try:
                    values[i] = waits[i].result()
                    assert then is None or then(i, values[i]) is None
                except ActorDied as error:
                    if revive is None:
                        raise
                    _, waits[i] = revive(i, error)
        return [values[i] for i in range(len(waits))]


@pytest.fixture
def run(monkeypatch):
    """(fleet of two runners, publisher) one step ahead; `run.newcomer` are the keys of who comes later."""
    newcomer = {}
    monkeypatch.setattr(
        fleets, "_started", lambda post: Owner(post.name, Actor(post.name, **newcomer))
    )
    monkeypatch.setattr(fleets, "end", lambda owner: owner.handle.kill())
    tree = {"name": "x", "steps": 9, "tasks_per_step": 1, "max_staleness": 1, "env": "addition",
            "algo": "grpo", "model": {"path": "x"}, "sampler": {"num": 2}}  # fmt: skip
    cfg = parse_config(tree, "test")
    posts = {
        role: [Post(name, "", object, (), {}) for name in names]
        for role, names in {
            "samplers": ("runner 0", "runner 1"),
            "learners": ("learner 0",),
            "rewards": (),
            "hosts": (),
        }.items()
    }
    fleet = Fleet(cfg, posts, None, Waits())
    publisher = Publisher(cfg, fleet, [1], in_order=True)
    publisher.send(0)
    return fleet, publisher, newcomer


def act(fleet, runner, ticket, seconds=0.0):
    """The version that acted."""
    owner = fleet.samplers[runner]
    return fleet.ask([(owner, lambda h: h.act.remote(ticket, seconds))], "rollout", 9)[0]


def beside(work, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(work(*args)))
    thread.start()
    return thread, results


def being_started_again(fleet, newcomer, start_s):
    """Runner 0 was lost, and whoever asked it for a ticket waits until the new one is up."""
    newcomer["start_s"] = start_s
    fleet.samplers[0].handle.kill()
    asking = beside(act, fleet, 0, 1)
    time.sleep(0.2)
    return asking


def lost_after_it_adopted(run):
    """Runner 0 takes version 1, begins the ticket that this allows, and dies, while runner 1 is slow."""
    fleet, publisher, _ = run
    slow, _ = beside(act, fleet, 1, 1, 0.8)
    time.sleep(0.1)
    begun = []
    victim = fleet.samplers[0].handle
    threading.Timer(0.2, victim.kill).start()
    publisher.prove(publisher.begin(1, lambda: begun.append(beside(act, fleet, 0, 2, 0.4))))
    slow.join()
    [(thread, drawn)] = begun
    thread.join()
    return victim, drawn


def test_who_comes_while_weights_are_published_acts_with_them_and_is_proved(run):
    fleet, publisher, _ = run
    victim, drawn = lost_after_it_adopted(run)
    assert victim.log == [] and victim.version == 1, "it died at the ticket that version 1 allows"
    assert drawn == [1]
    assert [o.handle.version for o in fleet.samplers] == [1, 1]
    assert fleet.restarts() == 1 and fleet.restarts() == 0
    assert publisher.send(2) == 0


def test_who_comes_while_weights_are_published_and_does_not_use_them_is_found(run):
    run[2]["stuck"] = True
    with pytest.raises(WeightsMismatch, match="runner 0 does not use the published weights"):
        lost_after_it_adopted(run)


def test_who_came_between_two_publishes_is_proved_before_its_samples_count(run):
    fleet, publisher, newcomer = run
    newcomer["stuck"] = True
    first = publisher.begin(1)
    fleet.samplers[0].handle.kill()
    assert act(fleet, 0, 2) == 1
    publisher.begin(2)
    with pytest.raises(WeightsMismatch, match="runner 0 does not use the published weights"):
        publisher.prove(first)


def test_what_a_lost_runner_said_is_not_forgotten_for_who_came_in_its_place(run):
    fleet, publisher, _ = run
    fleet.samplers[0].handle.stuck = True
    first = publisher.begin(1)
    assert act(fleet, 0, 2) == 1, "it sampled with them"
    fleet.samplers[0].handle.kill()
    assert act(fleet, 0, 3) == 1
    with pytest.raises(WeightsMismatch, match="runner 0 does not use the published weights"):
        publisher.prove(first)


def test_two_publishes_are_proved_in_order_also_of_who_came_between_them(run):
    fleet, publisher, _ = run
    slow, _ = beside(act, fleet, 1, 1, 0.5)
    lost, drawn = beside(act, fleet, 0, 1, 0.5)
    time.sleep(0.1)
    first, second = publisher.begin(1), publisher.begin(2)
    fleet.samplers[0].handle.kill()
    lost.join()
    assert drawn == [2], "the newcomer holds what was sent last"
    assert publisher.prove(first) == 0, "which it cannot say anything of any more"
    assert publisher.prove(second) == 0
    slow.join()
    assert [o.handle.version for o in fleet.samplers] == [2, 2]


def test_a_publish_waits_for_who_is_being_started_again(run):
    fleet, publisher, newcomer = run
    lane, drawn = being_started_again(fleet, newcomer, 0.5)
    assert publisher.send(1) == 0
    lane.join()
    assert drawn == [0], "it was asked before"
    assert [o.handle.version for o in fleet.samplers] == [1, 1]


def test_nobody_asks_who_does_not_hold_the_weights_yet(run):
    fleet, publisher, newcomer = run
    publisher.send(1)
    lane, _ = being_started_again(fleet, newcomer, 0.5)
    assert act(fleet, 0, 2) == 1
    assert fleet.share_out([lambda h: h.act.remote(3, 0)] * 2, "evaluation", 9) == [1, 1]
    lane.join()


def test_who_cannot_be_started_is_nobody(run, monkeypatch):
    fleet, _, _ = run
    lost = fleet.samplers[0].handle
    lost.kill()

    def fails(self):
        raise RuntimeError("no memory")

    monkeypatch.setattr(Actor, "do_start", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        act(fleet, 0, 1)
    assert fleet.samplers[0].handle is lost


def test_the_learner_does_not_wait_for_who_is_being_started_again(run):
    fleet, _, newcomer = run
    lane, drawn = being_started_again(fleet, newcomer, 0.8)
    assert fleet.all(fleet.learners, "canary", [1], what="learn", deadline_s=9)[0][0] == 0
    assert drawn == [], "it is not back yet"
    lane.join()
    assert drawn == [0]


def test_a_learner_lost_while_a_sampler_is_caught_up_is_not_taken_for_the_sampler(run):
    fleet, publisher, _ = run
    publisher._held = replace(
        publisher._held, kind="noise"
    )  # then the learner is asked for weights
    fleet.learners[0].handle.kill()
    fleet.samplers[0].handle.kill()
    with pytest.raises(SourceLost, match="learner 0 died"):
        act(fleet, 0, 1)
    assert fleet.restarts() == 1


def test_at_the_end_who_is_lost_is_not_started_again_and_the_others_are_proved(run):
    fleet, publisher, _ = run
    first = publisher.begin(1)
    fleet.samplers[0].handle.kill()
    assert publisher.prove(first, last=True) == 0
    assert fleet.restarts() == 0
    fleet.samplers[1].handle.stuck = True
    second = publisher.begin(2)
    with pytest.raises(WeightsMismatch, match="runner 1 does not use the published weights"):
        publisher.prove(second, last=True)


def test_ahead_an_answer_may_take_as_long_as_what_the_other_thread_asked_and_itself(run):
    fleet, _, _ = run
    assert fleet.limit_s("rollout") == 2 * fleet.deadlines.rollout
    assert fleet.limit_s("reward") == 2 * fleet.deadlines.reward
