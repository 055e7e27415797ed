"""Every way to choose what is trained, Muon and clipping by parameter in small runs of GRPO, supervised
fine-tuning and rejection sampling that learns."""

import json
import random

import pytest
from small_runs import metrics, run, weights

pytestmark = pytest.mark.usefixtures("ray_cluster")

LEARNERS = {
    "patterns": {"trainable": {"name": "patterns", "train": ["mlp"]}},
    "staged": {"trainable": {"name": "staged", "stages": {0: ["lm_head"], 2: ["mlp"]}}},
    "hft": {"trainable": {"name": "hft", "every": 2}},
    "lift": {"trainable": {"name": "lift", "rank": 8, "every": 2}},
    "top_k": {"trainable": {"name": "top_k", "by": "gradient"}},
    "s2ft": {"trainable": {"name": "s2ft", "heads": 0.25}},
    "selective_lora": {"trainable": {"name": "selective_lora", "rank": 4}},
    "vera": {"trainable": {"name": "peft", "config": "VeraConfig", "args": {"r": 16}}},
    "oft": {
        "trainable": {"name": "peft", "config": "OFTConfig", "args": {"oft_block_size": 8, "r": 0}}
    },
    "randlora": {"trainable": {"name": "peft", "config": "RandLoraConfig", "args": {"r": 8}}},
    "eva": {
        "trainable": {
            **{"name": "peft", "config": "LoraConfig"},
            "args": {"r": 4, "init_lora_weights": "eva"},
        },
        "zero_stage": 2,
    },
    "muon": {"optimizer": "muon"},
    "muon8": {"optimizer": {"name": "muon", "bits": 8}, "clip": "parameter"},
}
ALGOS = {
    "grpo": {"name": "grpo", "group_size": 4, "minibatches": 2},
    "sft": {"name": "sft"},
    "rft": {"name": "rft", "num_samples": 4, "threshold": 0.3, "check": None, "online": True},
}


def learner_of(name, folder):
    """The section `learner`; EVA begins from texts, which are written into `folder`."""
    found = LEARNERS[name]
    if name == "eva":
        texts = folder / "texts.jsonl"
        rng = random.Random(0)
        sums = [(rng.randrange(900), rng.randrange(900)) for _ in range(64)]
        rows = [json.dumps({"text": f"{a}+{b}={a + b}"}) for a, b in sums]
        texts.write_text("\n".join(rows) + "\n")
        found = {**found, "trainable": {**found["trainable"], "texts": str(texts)}}
    return {"lr": 1e-3, "token_budget": 128, **found}


def taken(name, algo, tmp_path, tiny_model, **changes):
    learner = {"weight_decay": 0.1, **learner_of(name, tmp_path)}
    run(tmp_path / "run", tiny_model, steps=2, algo=ALGOS[algo], learner=learner, **changes)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["version"] == 2  # published, and both proofs passed
    assert all(row["grad_norm"] > 0 for row in rows)
    return rows


def changed(tmp_path, tiny_model):
    from safetensors.torch import load_file

    start = load_file(tiny_model / "model.safetensors")
    after = weights(tmp_path / "run", 2)
    return {n: (start[n] != t).double().mean().item() for n, t in after.items()}


@pytest.mark.long
def test_a_run_steps_what_is_chosen_and_nothing_else(tmp_path, tiny_model):
    rows = taken("lift", "grpo", tmp_path, tiny_model)
    assert all(0 < row["trained_share"] < 0.06 for row in rows)
    for name, share in changed(tmp_path, tiny_model).items():
        assert (0 < share < 0.11) if name.endswith("proj.weight") else share == 0, name


@pytest.mark.long
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("name", LEARNERS)
def test_it_works_with_every_kind_of_algorithm(name, algo, tmp_path, tiny_model):
    taken(name, algo, tmp_path, tiny_model)
    assert any(changed(tmp_path, tiny_model).values())


@pytest.mark.long
@pytest.mark.parametrize("name", ["hft", "lift", "vera", "eva", "muon8"])
def test_a_resumed_run_is_an_uninterrupted_one(name, tmp_path, tiny_model):
    learner = learner_of(name, tmp_path)
    keys = {"algo": ALGOS["grpo"], "learner": learner}
    run(tmp_path / "whole", tiny_model, steps=4, **keys)
    run(tmp_path / "cut", tiny_model, steps=2, **keys)
    run(tmp_path / "cut", tiny_model, steps=4, resume=True, **keys)
    one, other = weights(tmp_path / "whole", 4), weights(tmp_path / "cut", 4)
    assert all((one[k] == other[k]).all() for k in one)
