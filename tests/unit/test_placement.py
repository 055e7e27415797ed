"""Who runs where: refusals before anything starts, and never more threads than cores."""

import itertools

import pytest

from rlft.cluster.placement import actor_options, make_plan
from rlft.config import parse_config
from rlft.errors import ResourceError


def config(samplers=1, learners=1, *, sampler_gpus=0.0, learner_gpus=0.0, workers=1, **cluster):
    tree = {
        "name": "p",
        "steps": 1,
        "tasks_per_step": 1,
        "algo": "grpo",
        "env": "addition",
        "model": {"path": "m"},
        "sampler": {"num": samplers, "gpus": sampler_gpus},
        "learner": {"num": learners, "gpus": learner_gpus},
        "rewards": {"workers": workers},
        "cluster": cluster,
    }
    return parse_config(tree, "here")


def refusal(cfg, **have):
    with pytest.raises(ResourceError) as caught:
        make_plan(cfg, have)
    return str(caught.value)


EVERY = list(itertools.product(range(0, 6), range(1, 6), (1, 2, 3, 4, 7, 16)))
PLACEMENTS = ("colocated", "disaggregated")


def test_a_phase_never_runs_more_threads_than_there_are_cores():
    for samplers, learners, cores in EVERY:
        plan = make_plan(config(samplers, learners), {"CPU": float(cores)})
        for count, threads in ((samplers, plan.sampler_threads), (learners, plan.learner_threads)):
            assert threads >= 1
            assert count * threads <= cores or (threads == 1 and count > cores)
            # Nor does a core idle that could be given to each.
            assert count == 0 or (threads + 1) * count > cores


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_actor_has_a_bundle_and_all_bundles_fit_on_one_core(placement):
    for samplers, learners, _ in EVERY:
        plan = make_plan(config(samplers, learners, workers=4, placement=placement), {"CPU": 1.0})
        assert len(plan.sampler_bundle) == samplers and len(plan.learner_bundle) == learners
        users = [*plan.sampler_bundle, *plan.learner_bundle]
        assert set(users) == set(range(len(plan.bundles))), "no bundle is idle, none is missing"
        assert sum(b["CPU"] for b in plan.bundles) <= 1
        asked = dict.fromkeys(range(len(plan.bundles)), 0.0)
        options = {"bundle": 0, "threads": 1, "gpus": 0, "shared": False}
        share = actor_options(object(), **options)["num_cpus"]
        for bundle in [*users, *[plan.reward_bundle] * 4]:
            asked[bundle] += share
        assert all(asked[i] <= b["CPU"] + 1e-9 for i, b in enumerate(plan.bundles))


def test_colocated_pairs_share_a_bundle_and_disaggregated_actors_share_none():
    pair = make_plan(config(3, 2, placement="colocated"), {"CPU": 8.0})
    assert pair.sampler_bundle[:2] == pair.learner_bundle and len(pair.bundles) == 3
    apart = make_plan(config(3, 2, placement="disaggregated"), {"CPU": 8.0})
    assert not set(apart.sampler_bundle) & set(apart.learner_bundle)
    assert len(apart.bundles) == 5


@pytest.mark.parametrize(
    "samplers, learners, placement, gpus",
    [
        (2, 2, "colocated", 2),
        (1, 4, "colocated", 4),
        (2, 2, "disaggregated", 4),
        (0, 3, "colocated", 3),
    ],
)
def test_gpus_are_counted_once_where_they_are_shared(samplers, learners, placement, gpus):
    cfg = config(samplers, learners, sampler_gpus=1, learner_gpus=1, placement=placement)
    plan = make_plan(cfg, {"CPU": 8.0, "GPU": float(gpus)})
    assert plan.gpus == gpus == sum(b.get("GPU", 0) for b in plan.bundles)
    text = refusal(cfg, CPU=8.0, GPU=float(gpus - 1))
    assert f"asks for {gpus} GPUs" in text and f"the cluster has {gpus - 1}" in text
    assert placement in text and "lower sampler.gpus" in text


def test_without_gpus_no_bundle_asks_for_one():
    assert all("GPU" not in b for b in make_plan(config(), {"CPU": 2.0}).bundles)


def test_more_cores_than_there_are_is_refused_and_fewer_are_kept_to():
    text = refusal(config(cpus=9), CPU=8.0)
    assert "asks for 9 cores, the cluster has 8" in text and "lower it" in text
    plan = make_plan(config(2, 1, cpus=4), {"CPU": 8.0})
    assert (plan.sampler_threads, plan.learner_threads) == (2, 4)


@pytest.mark.parametrize(
    "role, count", [("sampler", {"samplers": 2}), ("learner", {"learners": 2})]
)
def test_too_many_threads_are_refused_and_as_many_as_there_are_is_fine(role, count):
    key = f"threads_per_{role}"
    text = refusal(config(**count, **{key: 5}), CPU=8.0)
    assert f"2 {role}s x 5 threads" in text and "8 cores" in text and f"cluster.{key}" in text
    assert getattr(make_plan(config(**count, **{key: 4}), {"CPU": 8.0}), f"{role}_threads") == 4


def test_a_rank_takes_one_gpu_or_none():
    assert "0 or 1 GPU" in refusal(config(learner_gpus=2), CPU=8.0, GPU=8.0)
    assert "0 or 1 GPU" in refusal(config(learner_gpus=0.5), CPU=8.0, GPU=8.0)


def test_the_plan_is_said_in_words():
    lines = "\n".join(make_plan(config(2, 1), {"CPU": 8.0}).lines)
    assert "8 cores" in lines and "2 sampler x 4" in lines and "1 learner x 8" in lines


def options(**changes):
    given = {"bundle": 0, "threads": 3, "gpus": 0, "shared": False}
    return actor_options(object(), **{**given, **changes})


def test_an_actor_gets_its_threads_sees_no_gpu_of_others_and_never_restarts_silently():
    env = options()["runtime_env"]["env_vars"]
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert options()["max_restarts"] == 0
    assert "CUDA_VISIBLE_DEVICES" not in options(gpus=1)["runtime_env"]["env_vars"]


def test_two_actors_on_one_gpu_ask_for_half_each():
    assert options(gpus=1, shared=True)["num_gpus"] * 2 == options(gpus=1)["num_gpus"] == 1
