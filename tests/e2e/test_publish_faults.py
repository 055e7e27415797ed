"""Weights that silently did not arrive: each fault is planted in a real run and caught by name."""

import pytest
from planted_faults import DROPPED, SWAPPED
from small_runs import run

from rlft.errors import WeightsMismatch

pytestmark = pytest.mark.usefixtures("ray_cluster")


def stopped(tmp_path, model, **changes):
    with pytest.raises(WeightsMismatch) as caught:
        run(tmp_path / "run", model, steps=2, **changes)
    return str(caught.value)


def test_a_dropped_tensor_and_two_that_were_swapped_are_named(tmp_path, tiny_model):
    text = stopped(tmp_path, tiny_model, publish__transport="planted_faults:FaultyTransport")
    assert f"{DROPPED} is missing" in text
    assert "sampler 0" in text
    assert "3 of" in text
    assert all(name in text for name in SWAPPED)


def test_an_engine_that_kept_its_old_weights_is_caught_even_by_a_tiny_change(tmp_path, tiny_model):
    # The learning rate is so small that no tolerance on log-probs could see one step.
    text = stopped(
        tmp_path, tiny_model, sampler__engine="planted_faults:StaleEngine", learner__lr=1e-7
    )
    assert "sampler 0 is stale" in text


def test_an_engine_that_mixed_up_its_layers_is_caught_by_the_canary(tmp_path, tiny_model):
    text = stopped(tmp_path, tiny_model, sampler__engine="planted_faults:MixingEngine")
    assert "does not use the published weights" in text
    assert "nats" in text
