"""A real run's records: trackers, guards, traces, best checkpoint, evaluation, and replay."""

import json

import pytest
from small_runs import replayed, run

from rlft.errors import CheckpointError, ConfigError, GuardStop
from rlft.evaluate import evaluate, find_subject
from rlft.record.metrics import JsonLines
from rlft.replay import replay

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, ray_cluster, tiny_model):
    """A run on two ranks that a guard stopped after its second step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    guards = {"truncated": {"above": 0.0, "steps": 2, "action": "stop"}}
    two = {"learner__num": 2, "learner__zero_stage": 1, "algo__drop_flat": False}
    with pytest.raises(GuardStop, match=r"2 steps in a row.*checkpoint of step 2 was saved"):
        run(folder, tiny_model, steps=5, record={"bundles": [1]}, guards=guards, **two)
    return folder


def test_two_ranks_are_replayed_by_two_actors(stopped):
    assert [r.name for r in replay(stopped / "bundles/step_000001") if not r.same] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_cluster, tiny_model):
    folder = tmp_path_factory.mktemp("records") / "run"
    run(
        folder,
        tiny_model,
        steps=3,
        algo__drop_flat=False,
        eval={"every": 1, "at_end": True, "max_tasks": 8},
        save={"every": 1, "keep": 1, "best": "eval/reward/mean", "best_is": "lowest"},
        record={"tensorboard": True, "bundles": [2], "tokens": 3},
    )
    return folder


def test_a_replayed_step_has_the_recorded_numbers_bit_for_bit(folder):
    said = replayed(folder / "bundles/step_000002")
    recorded = {r["step"]: r for r in JsonLines(folder / "metrics.jsonl").rows()}[2]
    shown = {words[0]: words[1] for line in said.splitlines() if (words := line.split())}
    assert {"loss/policy", "loss/kl", "grad_norm", "entropy", "weights"} <= shown.keys()
    assert float(shown["loss/policy"]) == pytest.approx(recorded["loss/policy"], rel=1e-9)


def test_a_changed_loss_shows_its_changed_numbers(folder):
    rows = {r.name: r for r in replay(folder / "bundles/step_000002", ["algo.clip_high=0.001"])}
    assert not rows["loss/policy"].same
    assert not rows["weights after the step"].same
    assert rows["mismatch/kl"].same, "what precedes the first update is as it was"


def test_what_the_state_depends_on_cannot_be_changed(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"learner\.num=1 cannot be replayed with 2"):
        replay(folder / "bundles/step_000002", ["learner.num=2"])
    with pytest.raises(CheckpointError, match="not a bundle"):
        replay(tmp_path)


def test_traces_agree_with_the_metrics(folder):
    rows = JsonLines(folder / "tokens.jsonl").rows()
    assert [r["step"] for r in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    samples = {(s["step"], s["id"]): s for s in JsonLines(folder / "samples.jsonl").rows()}
    largest = {
        r["step"]: r["mismatch/max_logp_gap"] for r in JsonLines(folder / "metrics.jsonl").rows()
    }
    for r in rows:
        gaps = [abs(a - b) for a, b in zip(r["engine_logp"], r["learner_logp"], strict=True)]
        assert max(gaps) <= largest[r["step"]] + 2e-6, "rounded to six digits"
        assert all(x < 0 for x in r["learner_logp"])
        assert (
            "".join(t for t in r["tokens"] if not t.startswith("<"))
            == (samples[r["step"], r["id"]]["completion"])
        )


def test_the_best_checkpoint_survives(folder):
    values = {r["step"]: r["eval/reward/mean"] for r in JsonLines(folder / "eval.jsonl").rows()}
    best = max((s for s in values if s > 0), key=lambda s: (-values[s], s))
    assert (folder / "checkpoints/best").resolve().name == f"step_{best:06d}"
    kept = {p.name for p in (folder / "checkpoints").glob("step_*")}
    assert kept == {f"step_{best:06d}", "step_000003"}


def test_the_run_left_a_report_and_event_files(folder):
    assert "finished" in (folder / "report.html").read_text("utf-8")
    assert list((folder / "tensorboard").glob("events.*"))


def test_evaluation_counts_what_it_sampled(folder):
    subject = find_subject(folder, ["eval.max_tasks=4"])
    keys = {"samples": 3, "ks": [1, 3], "threshold": 0.5, "greedy": False, "say": print}
    result, groups = evaluate(subject, **keys)
    passed = [[r >= 0.5 for r in g.rewards] for g in groups]
    assert (result.tasks, result.samples, result.errors) == (4, 3, 0)
    assert result.pass_at[1] == pytest.approx(sum(map(sum, passed)) / 12)
    assert result.pass_at[3] == pytest.approx(sum(map(any, passed)) / 4)
    assert result.maj_at.keys() == {1, 3}
    assert result.passed == pytest.approx(result.pass_at[1])
    assert 1 == result.distinct_at[1] <= result.distinct_at[3] <= 3
    assert 0 < result.entropy < 3.5  # the model is untrained, of a few dozen tokens
    assert result.longest >= result.tokens
    again, _ = evaluate(subject, **keys)
    assert again == result, "seeded"


def test_an_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a run folder"):
        find_subject(tmp_path)


def test_a_guard_that_stops_saves_first_and_says_why(stopped):
    assert (stopped / "checkpoints/step_000002/state.json").is_file()
    kinds = [json.loads(a)["kind"] for a in (stopped / "alerts.jsonl").open()]
    assert kinds == ["guard", "end"]
    assert "ended early, after step 2" in (stopped / "report.html").read_text("utf-8")
