"""One run in other shapes: several samplers and ranks, ZeRO-3, LoRA in bfloat16, real GSM8K rows."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import metrics, run, weights

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = Path(__file__).parents[1] / "data" / "gsm8k"


def test_two_samplers_and_two_zero3_ranks_learn_what_one_of_each_does(tmp_path, tiny_model):
    run(tmp_path / "one", tiny_model, steps=2, algo__drop_flat=False)
    shape = {"sampler__num": 2, "learner__num": 2, "learner__zero_stage": 3}
    run(tmp_path / "two", tiny_model, steps=2, algo__drop_flat=False, **shape)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one[0]["reward/mean"] == two[0]["reward/mean"], "the same seeds drew the same answers"
    for key in ("loss/policy", "loss/kl", "entropy", "grad_norm"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-3, abs=1e-5), key
    ours, theirs = weights(tmp_path / "one", 2), weights(tmp_path / "two", 2)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=2e-4), name


def test_lora_in_bfloat16_publishes_merged_weights(tmp_path, tiny_model):
    lora = {"rank": 4, "alpha": 8}
    run(
        tmp_path / "run",
        tiny_model,
        steps=2,
        model__lora=lora,
        model__dtype="bfloat16",
        learner__lr=1e-2,
        learner__zero_stage=2,
    )
    rows = metrics(tmp_path / "run")
    assert rows[-1]["version"] == 2
    assert rows[0]["loss/kl"] >= 0, "the reference is the base under a disabled adapter"
    trained = weights(tmp_path / "run", 2)
    assert not any("lora" in name for name in trained)
    from safetensors.torch import load_file

    start = load_file(tiny_model / "model.safetensors")
    changed = {n for n in start if not torch.equal(start[n].bfloat16(), trained[n])}
    assert changed
    assert all(n.endswith("proj.weight") for n in changed)


def test_real_gsm8k_rows_go_through_the_engines(tmp_path, tiny_model):
    env = {
        "name": "gsm8k",
        "path": str(ROWS / "train.jsonl"),
        "held_out_path": str(ROWS / "test.jsonl"),
        "chat": False,
    }
    run(
        tmp_path / "run",
        tiny_model,
        steps=1,
        env=env,
        model__max_length=2048,
        rewards={"fns": [{"fn": "gsm8k"}]},
        algo__drop_flat=False,
        eval={"at_start": True, "max_tasks": 4},
    )
    samples = [json.loads(s) for s in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    questions = {json.loads(row)["question"] for row in (ROWS / "train.jsonl").open()}
    trained = [s for s in samples if s["kind"] == "train"]
    assert len(trained) == 16
    assert all(any(q in s["prompt"] for q in questions) for s in trained)
    assert all(s["outcome"] == "value" and s["reward"] == 0 for s in trained)
