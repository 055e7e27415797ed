"""Two same-seed runs are bit-equal, and a resumed run equals an uninterrupted one: real vLLM, Ray and
DeepSpeed."""

import json
import shutil

import pytest
import torch
from small_runs import metrics, run, weights

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = {"sampler__engine": "vllm", "algo__drop_flat": False}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, ray_cluster, tiny_model):
    folder = tmp_path_factory.mktemp("golden") / "whole"
    run(folder, tiny_model, **SETTINGS)
    return folder


def assert_same(a, b):
    assert metrics(a) == metrics(b)
    ours, theirs = weights(a, 6), weights(b, 6)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_two_runs_of_one_seed_are_bit_equal_and_so_is_one_that_is_resumed(
    uninterrupted, tmp_path, tiny_model
):
    folder = tmp_path / "again"
    run(folder, tiny_model, **SETTINGS, save__every=3)
    assert_same(uninterrupted, folder)
    shutil.rmtree(folder / "checkpoints/step_000006")
    run(folder, tiny_model, resume=True, **SETTINGS, save__every=3)
    assert_same(uninterrupted, folder)


@pytest.mark.long  # seeds of requests and of tasks have unit tests; this is a start of vLLM
def test_another_seed_is_another_run(uninterrupted, tmp_path, tiny_model):
    run(tmp_path / "other", tiny_model, seed=1, steps=1, **SETTINGS)
    assert metrics(tmp_path / "other")[0]["reward/mean"] != metrics(uninterrupted)[0]["reward/mean"]


def test_a_step_says_what_it_promises(uninterrupted):
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        for key in ("step_s", "rollout_s", "learn_s", "publish_s"):
            assert row[f"time/{key}"] > 0
        assert row["tokens/prompt"] == 16 * 8, "sixteen prompts of eight characters"
        assert 16 <= row["tokens/completion"] <= 16 * 12
        assert row["version"] == row["step"]
        # The same weights in engine and learner: float32 kernels differ in the last bits only.
        assert row["mismatch/max_logp_gap"] < 1e-4
        assert row["publish/canary_gap"] < 1e-4


def test_its_checkpoint_loads_in_transformers_and_scores_alike(uninterrupted):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlft.policy.lm import load_lm

    folder = uninterrupted / "checkpoints/step_000006/model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("123+456=").input_ids])
    expected = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    expected = expected.gather(1, ids[0, 1:, None]).squeeze(1)
    position = torch.arange(1, ids.shape[1])[None]
    logp, _ = load_lm(folder, "float32")(ids, position, torch.ones_like(position, dtype=torch.bool))
    assert torch.allclose(logp[0], expected, atol=1e-5)
