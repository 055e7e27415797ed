"""A crash loop ends in a clear error; deaths far apart do not add up."""

import pytest

from rlft.cluster.budget import Budget
from rlft.config import Recovery
from rlft.errors import ActorDied, RecoveryFailed

DIED = ActorDied("step 3: sampler 0 died at rollout")


def test_more_restarts_than_allowed_are_an_error_that_holds_the_cause():
    budget = Budget(Recovery(max_restarts=2), clock=lambda: 0.0)
    assert budget.spend("sampler 0", DIED) == "restart 1 of 2"
    assert budget.spend("sampler 0", DIED) == "restart 2 of 2"
    with pytest.raises(RecoveryFailed, match=r"sampler 0 .* 2 times .*died at rollout") as caught:
        budget.spend("sampler 0", DIED)
    assert caught.value.__cause__ is DIED
    assert budget.spend("sampler 1", DIED) == "restart 1 of 2"


def test_restarts_outside_the_window_do_not_count():
    now = [0.0]
    budget = Budget(Recovery(max_restarts=1, window=60), clock=lambda: now[0])
    for now[0] in (0.0, 61.0, 122.0):
        assert budget.spend("sampler 0", DIED) == "restart 1 of 1"
    now[0] = 130.0
    with pytest.raises(RecoveryFailed):
        budget.spend("sampler 0", DIED)


def test_without_restarts_the_cause_itself_is_raised():
    with pytest.raises(ActorDied) as caught:
        Budget(Recovery(max_restarts=0)).spend("sampler 0", DIED)
    assert caught.value is DIED
