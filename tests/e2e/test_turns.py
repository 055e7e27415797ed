"""Runs of several turns, whole: real engines, learner, Ray, and an environment that fails now and then."""

import json
import shutil

import pytest
from small_runs import metrics, replayed, run

pytestmark = pytest.mark.usefixtures("ray_cluster")

ECHO = {"name": "rooms_in_words:Echo", "turns": 3}
SHORT = {
    "rewards": {"timeout": 20},
    "turns": {"max": 4, "max_tokens": 40},
    "steps": 2,
    "sampler__max_tokens": 5,
    "algo": {"name": "grpo", "group_size": 4, "drop_flat": False, "epochs": 2},
}


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_episodes_that_fail_are_counted_and_the_run_is_bit_equal_resumed_and_replayed(
    tmp_path, tiny_model
):
    settings = {
        **{**SHORT, "env": {**ECHO, "broken": "raises"}},
        **{"record": {"bundles": [2]}, "save": {"every": 1}},
    }
    folder = tmp_path / "run"
    run(folder, tiny_model, **settings)
    rows = metrics(folder)
    assert replayed(folder / "bundles/step_000002")
    shutil.rmtree(folder / "checkpoints/step_000002")
    run(folder, tiny_model, resume=True, **settings)
    assert rows == metrics(folder)
    assert any(0 < row["reward/errors"] < 1 for row in rows)
    for row in rows:
        assert row["mismatch/max_logp_gap"] < 1e-4
        assert row["episode/turns"] > 1
        # Three tokens of the environment a turn: learnt from are the others.
        assert row["tokens/environment"] > 0
        assert row["tokens/trained"] <= 2 * row["tokens/completion"]
    failed = [s for s in samples(folder) if s["outcome"] == "error"]
    assert all(s["reward"] is None and "planned" in s["reason"] for s in failed)


@pytest.mark.long
def test_vllm_plays_turns_and_ppo_learns_from_them(tmp_path, tiny_model):
    ppo = {"name": "ppo", "group_size": 2, "critic_lr": 1e-3}
    settings = {**SHORT, "env": "calculator", "algo": ppo, "sampler__engine": "vllm", "steps": 1}
    run(tmp_path / "run", tiny_model, **settings, eval={"at_end": True, "max_tasks": 4})
    [row] = metrics(tmp_path / "run")
    assert row["mismatch/max_logp_gap"] < 1e-4
    # An untrained model neither asks nor answers: each episode ends at a limit.
    assert row["completion/truncated"] == 1
    assert row["reward/unread"] > 1
    shown = samples(tmp_path / "run")
    assert {s["kind"] for s in shown} == {"train", "eval"}
    assert all(s["turns"][1::2] == ["?"] * (len(s["turns"]) // 2) for s in shown)
