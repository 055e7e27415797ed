"""Collecting ahead of learning with both real engines: bound, versions, proofs, resume."""

import json

import pytest
from small_runs import metrics, run

from rlft.errors import ConfigError, WeightsMismatch

pytestmark = pytest.mark.usefixtures("ray_cluster")


def task_ids(folder):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [(row["step"], row["task"]) for row in rows if row["kind"] == "train"]


@pytest.mark.e2e
@pytest.mark.parametrize("engine", [pytest.param("transformers", marks=pytest.mark.long), "vllm"])
def test_a_run_ahead_keeps_the_bound_and_takes_each_task_once(tiny_model, tmp_path, engine):
    ahead = {"max_staleness": 2, "sampler__engine": engine, "sampler__min_tokens": 10}
    run(tmp_path / "run", tiny_model, **ahead, steps=6, save__every=3)
    rows = metrics(tmp_path / "run")
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["staleness/max"] for row in rows) <= 2
    assert max(row["staleness/max"] for row in rows) >= 1, "it never ran ahead"
    assert all(row["mismatch/max_logp_gap"] is not None for row in rows)
    run(tmp_path / "in_turn", tiny_model, steps=6, sampler__engine=engine)
    assert task_ids(tmp_path / "run") == task_ids(tmp_path / "in_turn")


@pytest.mark.e2e
def test_a_resumed_run_issues_again_what_was_in_flight(tiny_model, tmp_path):
    folder = tmp_path / "run"
    run(folder, tiny_model, max_staleness=1, steps=3, save__every=3)
    run(folder, tiny_model, max_staleness=1, steps=6, resume=True)
    run(tmp_path / "whole", tiny_model, steps=6)
    assert task_ids(folder) == task_ids(tmp_path / "whole")
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.e2e
def test_a_stale_engine_is_caught_while_requests_are_in_flight(tiny_model, tmp_path):
    with pytest.raises(WeightsMismatch, match="sampler 0"):
        run(
            tmp_path / "run",
            tiny_model,
            max_staleness=1,
            sampler__engine="planted_faults:StaleEngine",
            learner__lr=1e-2,
        )


def test_an_algorithm_that_wants_fresh_data_refuses(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"max_staleness is 1, but algo SFT .* at most 0"):
        run(tmp_path / "run", tiny_model, max_staleness=1, algo={"name": "sft"})
