"""Rejection sampling and what is trained on its rows, in small real runs."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import metrics, run, weights

from rlft.record.compare import compare

pytestmark = pytest.mark.usefixtures("ray_cluster")
# The model is untrained: an answer is "right" if it is long enough, and each text is a path.
SAMPLING = {"name": "rft", "num_samples": 4, "threshold": 0.3, "check": None, "key": "text"}


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, ray_cluster, tiny_model):
    folder = tmp_path_factory.mktemp("rejection") / "whole"
    run(folder, tiny_model, steps=3, save__every=2, algo=SAMPLING)
    return folder


def test_sampling_writes_rows_and_trains_nothing(sampled, tiny_model):
    found = rows(sampled)
    assert {r["origin"] for r in found} == {"gold", "sample"}
    for row in found:
        if row["origin"] == "sample":
            assert (row["model"], row["version"], row["seed"]) == (str(tiny_model), 0, 0)
    before = weights_of(tiny_model)
    assert all((before[k] == v).all() for k, v in weights(sampled, 3).items())
    steps = metrics(sampled)
    assert [r["version"] for r in steps] == [0, 0, 0]
    assert steps[-1]["rft/rows"] == len(found)
    assert all(r["tokens/sampled"] > 0 == r["tokens/trained"] for r in steps)
    assert all(r["reward/calls"] == 16 for r in steps)  # four tasks, four answers


def test_a_resumed_sampling_has_the_rows_of_an_uninterrupted_one(sampled, tmp_path, tiny_model):
    shutil.copytree(sampled, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_000003")
    run(tmp_path / "cut", tiny_model, steps=3, save__every=2, algo=SAMPLING, resume=True)
    assert rows(tmp_path / "cut") == rows(sampled)
    ledgers = [compare([str(f)]).lines[0].curves[0].total for f in (sampled, tmp_path / "cut")]
    assert ledgers[0]["tokens/sampled"] == ledgers[1]["tokens/sampled"] > 0


def test_the_base_model_is_trained_on_the_rows(sampled, tmp_path, tiny_model):
    algo = {"name": "sft", "rows": str(sampled / "rows.jsonl")}
    alone = {"sampler__num": 0, "rewards": {"fns": []}}
    run(tmp_path / "run", tiny_model, steps=2, algo=algo, tasks_per_step=8, **alone)
    steps = metrics(tmp_path / "run")
    assert [r["rows"] for r in steps] == [8, 8]
    assert all(r["tokens/trained"] > 0 == r["tokens/sampled"] == r["reward/calls"] for r in steps)
    chain = compare([f"{sampled}+{tmp_path / 'run'}"], "loss/nll").lines[0].curves[0]
    assert chain.total["tokens/sampled"] == sum(r["tokens/sampled"] for r in metrics(sampled))


@pytest.mark.long
def test_packed_rows_teach_what_rows_alone_do_on_two_ranks(sampled, tmp_path, tiny_model):
    losses, trained = [], []
    for packing in (False, True):
        algo = {"name": "sft", "rows": str(sampled / "rows.jsonl"), "packing": packing}
        ranks = {"learner__num": 2, "learner__zero_stage": 1}
        run(tmp_path / str(packing), tiny_model, steps=2, algo=algo, tasks_per_step=8, **ranks)
        losses.append([r["loss/nll"] for r in metrics(tmp_path / str(packing))])
        trained.append(weights(tmp_path / str(packing), 2))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all((trained[0][k] - v).abs().max() < 1e-4 for k, v in trained[1].items())


def weights_of(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
