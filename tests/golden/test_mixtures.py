"""The limits of mixing ground truth into groups: with nothing given it is GRPO, with all given it is SFT;
real Ray and DeepSpeed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, run, weights

from rlft.config import load_config

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROOT = Path(__file__).parents[2]
MINE = {"epochs": 2, "minibatches": 2, "group_size": 4, "drop_flat": False}
ROOM = {"sampler__max_tokens": 16, "steps": 3, "save__every": 0}
"""A demonstration of addition has 14 tokens."""

ALONE = {"sampler__num": 0, "rewards": {"fns": []}}
"""What learns from demonstrations needs nobody that samples or scores."""

LUFFY = {"reference_loss": {"name": "rlft.losses.guided:LikelihoodRatio"}, "std": "none"}


def ran(folder, model, **algo):
    run(folder, model, **ROOM, algo={**MINE, **algo})
    return folder


@pytest.fixture(scope="module")
def grpo(tmp_path_factory, ray_cluster, tiny_model):
    return ran(tmp_path_factory.mktemp("grpo") / "run", tiny_model, name="grpo")


@pytest.fixture(scope="module")
def tempsamp(tmp_path_factory, ray_cluster, tiny_model):
    return ran(tmp_path_factory.mktemp("tempsamp") / "run", tiny_model, name="tempsamp")


def same_weights(a, b):
    ours, theirs = weights(a, 3), weights(b, 3)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_luffy_without_reference_rows_is_grpo_bit_for_bit(grpo, tmp_path, tiny_model):
    luffy = {"name": "tempsamp", "references": 0, "stabiliser": "joint", **LUFFY, "std": "group"}
    other = ran(tmp_path / "run", tiny_model, **luffy)
    assert same_weights(grpo, other)
    ours = [
        {k: v for k, v in row.items() if not k.startswith("reference/")} for row in metrics(other)
    ]
    assert ours == metrics(grpo)


@pytest.mark.parametrize(
    "prefix",
    [
        {"low": 0.0, "high": 0.0},
        # What is given of chunks, unit/test_reference.py says.
        pytest.param({"chunks": 5, "high": 0.0}, marks=pytest.mark.long),
    ],
    ids=["share 0", "no chunk"],
)
def test_a_prefix_of_no_token_is_plain_sampling_bit_for_bit(grpo, tmp_path, tiny_model, prefix):
    other = ran(
        tmp_path / "run",
        tiny_model,
        name="tempsamp",
        references=2,
        prefix=prefix,
        stabiliser="joint",
        **{**LUFFY, "std": "group"},
    )
    assert same_weights(grpo, other)
    assert metrics(other)[0]["reference/not_given"] == 4


def test_a_whole_prefix_is_the_demonstration_bit_for_bit(tempsamp, tmp_path, tiny_model):
    prefix = {"low": 1.0, "high": 1.0}
    other = ran(tmp_path / "run", tiny_model, name="tempsamp", prefix=prefix)
    assert same_weights(tempsamp, other)
    assert metrics(tempsamp) == metrics(other)


def test_all_rows_given_and_likelihood_alone_is_sft(tmp_path, tiny_model):
    """UFT at p = 1. SFT sees each demonstration once, here four times: equal but for rounding."""
    sft, uft = tmp_path / "sft", tmp_path / "uft"
    run(sft, tiny_model, **ROOM, **ALONE, algo={"name": "sft"})
    everything = {"references": 4, "prefix": {"chunks": 5, "high": 1.0}, "reference_loss": None}
    algo = {"name": "tempsamp", "stabiliser": "joint", "sft_coef": 1.0, "drop_flat": False}
    run(uft, tiny_model, **ROOM, algo={**algo, "group_size": 4, **everything})
    expected, before = weights(sft, 3), load_file(tiny_model / "model.safetensors")
    moved = 0.0
    for name, tensor in weights(uft, 3).items():
        # Adam divides by the size of gradients: where those are rounding, so is its step.
        assert torch.allclose(tensor, expected[name], atol=2e-4), name
        moved = max(moved, float((tensor - before[name]).abs().max()))
    assert moved > 2e-3, "nothing was learnt, so nothing was compared"
    assert metrics(uft)[0]["tokens/completion"] == 0, "nothing was sampled"


def test_the_reference_is_in_the_group_and_in_no_mean(grpo, tempsamp):
    rows = [json.loads(line) for line in (tempsamp / "samples.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["step"] == 1]
    assert [row["origin"] for row in first] == ["policy", "policy", "policy", "demo"] * 4
    sampled = [row["reward"] for row in first if row["origin"] == "policy"]
    given = [row["reward"] for row in first if row["origin"] == "demo"]
    step = metrics(tempsamp)[0]
    assert step["reward/mean"] == pytest.approx(sum(sampled) / len(sampled))
    assert step["reward/given_mean"] == pytest.approx(sum(given) / len(given))
    assert step["rows"] == 16
    assert step["reference/rows"] == 4
    assert step["tokens/completion"] == sum(
        row["tokens"] for row in first if row["origin"] == "policy"
    )
    # Its log-probs are the learner's own, so it has no gap to the engine.
    assert step["mismatch/max_logp_gap"] < 1e-4
    plain = [json.loads(line) for line in (grpo / "samples.jsonl").read_text().splitlines()]
    same = [a["completion"] == b["completion"] for a, b in zip(first, plain, strict=False)]
    assert [i for i, equal in enumerate(same) if not equal] == [3, 7, 11, 15]


def test_a_prefix_is_continued_and_the_policy_s_part_is_corrected(tmp_path, tiny_model):
    folder = ran(
        tmp_path / "run",
        tiny_model,
        name="tempsamp",
        prefix={"low": 0.5, "high": 0.5},
        stabiliser="joint",
        top_entropy=0.2,
    )
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    mixed = [row for row in rows if row["origin"] == "mixed"]
    assert len(mixed) == 3 * 4
    for row in mixed:
        # Half of 14 tokens, one a character: the letter of the habit and two column sums.
        assert row["completion"][0] in "hc" and row["completion"][3] == ","
        assert 7 < row["tokens"] <= 16
    step = metrics(folder)[0]
    assert step["reference/rows"] == 4
    assert step["skipped_updates"] == 0, "a missing log-prob reached the loss"
    sampled = [row for row in rows if row["step"] == 1]
    expected = sum(row["tokens"] - 7 * (row["origin"] == "mixed") for row in sampled)
    assert step["tokens/completion"] == expected


@pytest.mark.long  # as unit/test_reference.py says, here through a run
def test_a_reference_longer_than_the_budget_is_counted_and_the_group_sampled(tmp_path, tiny_model):
    changes = {**ROOM, "sampler__max_tokens": 12, "steps": 1}
    run(tmp_path / "run", tiny_model, **changes, algo={**MINE, "name": "tempsamp"})
    step = metrics(tmp_path / "run")[0]
    assert step["reference/not_given"] == 4
    assert step["reference/rows"] == 0
    assert step["rows"] == 16
    assert "reward/given_mean" not in step


@pytest.mark.parametrize("name", ["tempsamp", "luffy", "srft", "uft", "prefix_rft"])
@pytest.mark.long
def test_a_shipped_method_takes_two_steps(name, tmp_path, tiny_model):
    algo = dict(load_config(ROOT / f"configs/{name}.yaml").algo)
    algo.pop("task_part", None)  # the reward here has other parts
    run(tmp_path / "run", tiny_model, **{**ROOM, "steps": 2}, algo=algo)
    rows = metrics(tmp_path / "run")
    assert all(row["grad_norm"] > 0 and row["skipped_updates"] == 0 for row in rows)
    assert rows[0]["reference/rows"] >= 4
    assert all(value is not None for value in rows[0].values()), "a metric is not a number"
