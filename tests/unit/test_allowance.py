"""When a run's budget is spent."""

import pytest

from rlft.errors import ConfigError
from rlft.record.allowance import Allowance


def test_it_is_spent_when_the_sum_reaches_the_limit_also_after_a_restart():
    limits = {"tokens/sampled": 100, "reward/calls": 50}
    rows = [{"step": i, "tokens/sampled": 30, "reward/calls": 1} for i in range(1, 5)]
    allowance = Allowance(limits, rows[:3])
    assert allowance.spent is None
    allowance.add(rows[3])
    assert allowance.spent == "tokens/sampled"
    assert allowance.share == 1
    assert Allowance(limits, rows).spent == "tokens/sampled"
    assert Allowance({}, rows).spent is None


def test_a_metric_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"budget\.env/steps: step 1 has no .* it has reward/calls"
    ):
        Allowance({"env/steps": 5}).add({"step": 1, "reward/calls": 1})
