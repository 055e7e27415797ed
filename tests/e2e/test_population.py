"""Evolution strategies and MeZO as runs with actors: engines, losses of actors, resuming."""

import json

import pytest
import torch
from small_runs import metrics, run, weights

from rlft.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("ray_cluster")

ES = {"name": "es", "population": 6, "sigma": 0.02, "lr": 0.02}


def small(folder, model, **changes):
    keys = {"steps": 2, "algo": ES, "save__every": 0, **changes}
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
    assert [r["version"] for r in rows] == [1, 2]
    assert all(r["update_norm"] > 0 and r["es/fitness_std"] > 0 for r in rows)
    assert rows[1]["distance"] > rows[0]["distance"] > 0
    assert all(r["tokens/sampled"] == r["tokens/completion"] > 0 for r in rows), "what runs cost"


def test_three_engines_that_replay_seeds_and_of_which_one_dies_give_the_weights_of_one(
    undisturbed, tmp_path, tiny_model
):  # I9, I12; a lost member is redone
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "deaths").mkdir()
    (model / "deaths" / "rollout.2").touch()
    disturbed = small(
        tmp_path / "run",
        model,
        sampler__num=3,
        sampler__engine="deaths:Engine",
        algo={**ES, "update": "seeds"},
        recovery={"max_restarts": 5},
    )
    assert not list((model / "deaths").iterdir()), "the engine died"
    assert sum(r["recovery/restarts"] for r in disturbed[0]) == 1
    assert_same(undisturbed, disturbed)


@pytest.mark.long
def test_a_resumed_run_with_more_engines_equals_an_uninterrupted_one(
    undisturbed, tmp_path, tiny_model
):
    folder = tmp_path / "run"
    run(folder, tiny_model, steps=1, algo=ES, save__every=1)
    run(folder, tiny_model, resume=True, steps=2, algo=ES, save__every=1, sampler__num=2)
    assert_same(undisturbed, (metrics(folder), weights(folder, 2)))
    other = tmp_path / "other"
    from envs.addition import build_model

    model, tokenizer = build_model(seed=1)
    model.save_pretrained(other / "model")  # of the same name, with other weights
    tokenizer.save_pretrained(other / "model")
    with pytest.raises(CheckpointError, match="started from another model"):
        run(folder, other / "model", resume=True, steps=3, algo=ES, save__every=1)


def test_members_whose_reward_fails_are_asked_again_and_left_out(tmp_path, tiny_model):
    fns = {"fns": [{"fn": "plain_rewards:failing"}]}
    rows, _ = small(tmp_path / "run", tiny_model, rewards=fns, algo={**ES, "population": 12})
    assert any(0 < r["es/lost"] < 12 and r["es/redone"] == r["es/lost"] for r in rows)


@pytest.mark.long
@pytest.mark.parametrize(
    "algo, lora",
    [
        ({"population": 4, "sigma": 0.3, "lr": 0.1, "rank": 1, "antithetic": True}, None),
        ({"name": "mezo", "objective": "reward", "eps": 0.05, "lr": 1e-3}, None),
        ({"name": "mezo", "objective": "reward", "eps": 0.3, "lr": 1e-2}, {"rank": 4}),
    ],
    ids=["low rank", "mezo on rewards", "mezo on rewards, adapter"],
)
def test_other_ways_take_their_steps(tmp_path, tiny_model, algo, lora):
    algo = {"name": "es", **algo}
    rows, _ = small(tmp_path / "run", tiny_model, algo=algo, model__lora=lora)
    assert rows[-1]["version"] == sum(r["es/flat"] == 0 for r in rows) >= 1
    assert all(r["update_norm"] > 0 and r["distance"] > 0 for r in rows if r["es/flat"] == 0)


@pytest.mark.long
@pytest.mark.parametrize("adapters", [False, True], ids=["streamed weights", "adapters"])
def test_members_on_vllm_answer_as_on_transformers(tmp_path, tiny_model, adapters):
    """Perturbed weights stream through a reload, or members are vLLM's adapters, three slots for six."""
    keys = {"algo": {**ES, "rank": 2 * adapters}, "eval__at_end": True, "deadlines__start": 300}
    slots = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3, "max_cpu_loras": 3}
    built = {"sampler__engine_args": slots} if adapters else {}
    ours = small(tmp_path / "a", tiny_model, sampler__engine="vllm", **built, **keys)
    theirs = small(tmp_path / "b", tiny_model, **keys)
    assert [r["reward/mean"] for r in ours[0]] == [r["reward/mean"] for r in theirs[0]]
    assert all(torch.equal(ours[1][n], theirs[1][n]) for n in ours[1])
    assert any(not r["es/flat"] for r in ours[0]), "members differ"
    perturbing = [r["time/perturb_s"] for r in raw(tmp_path / "a")]
    assert all((s == 0) == adapters for s in perturbing), "with adapters, no weights are reloaded"


def raw(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
