"""Evolution strategies and MeZO as runs with actors: engines, losses, deaths, resuming, bad input."""

import pytest
import torch
from small_runs import metrics, run, weights

pytestmark = pytest.mark.usefixtures("ray_cluster")

ES = {"name": "es", "population": 6, "sigma": 0.02, "lr": 0.02}


def small(folder, model, **changes):
    keys = {"steps": 3, "algo": ES, "save__every": 0, **changes}
    run(folder, model, **keys)
    return metrics(folder), weights(folder, keys["steps"])


def numbers(rows):
    """Metrics without what describes the machines."""
    return [{k: v for k, v in r.items() if k != "recovery/restarts"} for r in rows]


def assert_same(one, other):
    assert numbers(one[0]) == numbers(other[0])
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][n], other[1][n]) for n in one[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model):
    return small(tmp_path_factory.mktemp("es") / "run", tiny_model)


def test_it_moves_and_says_how(undisturbed):
    rows, _ = undisturbed
    assert [r["version"] for r in rows] == [1, 2, 3]
    assert all(r["update_norm"] > 0 and r["es/fitness_std"] > 0 for r in rows)
    assert rows[2]["distance"] > rows[0]["distance"] > 0


def test_three_engines_give_the_weights_of_one(undisturbed, tmp_path, tiny_model):  # I9, I12
    assert_same(undisturbed, small(tmp_path / "run", tiny_model, sampler__num=3))
