"""Environments that answer back, in the processes that ask them: turns, failures, episodes played again."""

import pickle
from pathlib import Path

import pytest

from rlft.config import Rewards
from rlft.rewards.dialogues import Dialogues
from rlft.rewards.item import conversation
from rlft.rewards.scorer import Scorer
from rlft.types import Attempt, Task

ROOT = Path(__file__).parents[2]
ENV = f"{ROOT}/tests/support/rooms_in_words.py:Echo"
TIMEOUT_S = 0.6


def task(number=1):
    return Task(f"t{number}", "1+1=")


def asks(number, *turns, over=False, seed=4):
    attempt = Attempt(
        f"a{number}",
        "policy",
        turns[-1] if turns else "",
        conversation("1+1=", turns, "user"),
        truncated=over,
        seed=seed,
    )
    return attempt, task(number)


@pytest.fixture
def scorer():
    """Makes hosts of the environment with these keys, and closes them."""
    made = []

    def make(**keys):
        fns = [{"fn": "rlft.rewards.dialogues:Dialogues", "args": {"env": {"name": ENV, **keys}}}]
        rewards = Rewards(fns=fns, timeout=TIMEOUT_S, invalid_score=-1.0)
        made.append(Scorer(rewards, [str(ROOT)], 60))
        return made[-1]

    yield make
    for one in made:
        one.close()


def said(scorer, *asked):
    return scorer.score([pickle.dumps(one) for one in asked])


def test_turns_are_answered_in_order_and_episodes_are_kept_apart(scorer):
    host = scorer()
    first = said(host, asks(1, "2"), asks(2, "44")).outcomes
    assert [o.reply for o in first] == ["1+4=", "1+4="]
    assert [o.reward for o in first] == [0.1, 0.2]
    second = said(host, asks(2, "44", "1+4=", "1"), asks(1, "2", "1+4=", "2")).outcomes
    assert [o.reply for o in second] == ["2+4=", "2+4="]
    last = said(host, asks(1, "2", "1+4=", "2", "2+4=", "0")).outcomes[0]
    assert last.parts == {"over": 1.0, "behind": 0.0, "heard": 3.0}


@pytest.mark.parametrize(
    "broken, kind, words",
    [
        ("raises", "error", "ZeroDivisionError: planned"),
        ("invalid", "invalid", "planned"),
        ("lies", "error", "expected a finite number"),
        ("mumbles", "error", "expected (text, reward, done)"),
    ],
)
def test_what_an_environment_raises_or_says_wrong_is_an_outcome_of_that_episode(
    scorer, broken, kind, words
):
    host = scorer(broken=broken)
    said(host, asks(4, "2"), asks(1, "2"))
    bad, good = said(host, asks(4, "2", "1+4=", "2"), asks(1, "2", "1+4=", "2")).outcomes
    assert bad.kind == kind
    assert words in bad.reason
    assert good.reply == "2+4="


def test_an_episode_that_hangs_is_an_error_and_the_others_are_played_again(scorer):
    host = scorer(broken="hangs")
    said(host, asks(1, "2"), asks(4, "2"), asks(2, "2"))
    turn = ("2", "1+4=", "6")
    answered = said(host, asks(1, *turn), asks(4, *turn), asks(2, *turn))
    one, bad, other = answered.outcomes
    assert (bad.kind, bad.fault, bad.reward) == ("error", "timeout", None)
    assert answered.restarts == 1
    assert one.reply == "2+4="
    # The process that knew it was killed: the new one is a turn behind, and says so.
    assert other.parts["behind"] == 1.0
    again = said(host, asks(2, *turn)).outcomes[0]
    assert again.parts["behind"] == 0.0
    assert again.reply == "2+4="


def test_an_episode_that_is_given_up_or_fails_is_closed(tmp_path):
    host = Dialogues({"name": ENV, "broken": "raises", "folder": str(tmp_path)})
    host.load()
    host(*asks(4, "2"))
    host(*asks(4, over=True))
    assert len(list(tmp_path.iterdir())) == 1
    host(*asks(4, "2"))
    with pytest.raises(ZeroDivisionError):
        host(*asks(4, "2", "1+4=", "2"))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_episode_that_begins_again_under_the_same_name_is_a_new_one():
    host = Dialogues({"name": ENV})
    host.load()
    host(*asks(1, "2"))
    assert host(*asks(1, "6"))["reply"] == "1+4="


def test_an_environment_that_forgets_what_it_said_is_told_so():
    class Fickle:
        count = 0

        def dialogue(self, task, seed):
            self.count += 1
            fickle = self.count

            class One:
                def reply(self, text):
                    return "", 0.0, fickle > 1

            return One()

    host = Dialogues(None)
    host._env = Fickle()
    host(*asks(1, "a"))
    host._open.clear()
    with pytest.raises(RuntimeError, match="does not answer the same"):
        host(*asks(1, "a", "", "b"))


def test_a_part_with_a_meaning_of_its_own_is_refused():
    class Env:
        def dialogue(self, task, seed):
            return self

        def reply(self, text):
            return "", 0.0, True, {"over": 1.0}

    host = Dialogues(None)
    host._env = Env()
    with pytest.raises(ValueError, match="rename it"):
        host(*asks(1, "a"))
