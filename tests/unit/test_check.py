"""What `rlft check` computes: the equation of a step, hardware, memory and advice, and what is refused."""

import re
from dataclasses import replace

import pytest

from algos.es import ES
from algos.grpo import GRPO
from algos.mezo import MeZO
from rlft.check.fit import memory_lines
from rlft.check.hardware import assumed
from rlft.check.memory import PROCESS, activations, host_need, kv_bytes, learner_need
from rlft.check.model_shape import ModelShape, Served, model_shape
from rlft.check.plugins import check_plugins
from rlft.check.report import arithmetic, report
from rlft.config import Config, parse_config
from rlft.errors import ConfigError, ResourceError, UserError
from rlft.yaml_tree import set_key

SEVEN_B = ModelShape(
    params=7_615_616_512,
    trained=7_615_616_512,
    layers=28,
    hidden=3584,
    inner=18944,
    kv_width=512,
    vocabulary=152_064,
)
"""Qwen2.5-7B."""


def config(**sections) -> Config:
    tree = {
        "name": "c",
        "steps": 10,
        "tasks_per_step": 6,
        "algo": {"name": "grpo", "group_size": 4},
        "env": "addition",
        "model": {"path": "m", "max_length": 4096},
        "rewards": {"fns": [{"fn": "addition"}]},
    }
    for name, value in sections.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(tree, "here")


def gpus(learners, **sections):
    learner = {"num": learners, "gpus": 1, **sections.pop("learner", {})}
    sampler = {"num": learners, "gpus": 1, **sections.pop("sampler", {})}
    return config(learner=learner, sampler=sampler, **sections)


# -- the equation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("minibatches, ranks, epochs", [(1, 1, 1), (4, 2, 3), (5, 3, 1)])
def test_both_sides_of_the_equation_are_equal(minibatches, ranks, epochs):
    algo = GRPO(group_size=4, minibatches=minibatches, epochs=epochs)
    [line, *_] = arithmetic(config(learner={"num": ranks}), algo)
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", line)]
    tasks, answers, rows, parts, shares, each, passes, updates, in_all = numbers[:9]
    assert tasks * answers == rows == 24
    assert parts * shares * each == pytest.approx(rows, abs=0.05 * parts * shares)
    assert passes * parts == updates and updates * 10 == in_all
    assert ("about" in line) == (24 % (minibatches * ranks) != 0)


# -- hardware --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, nodes, count, gib",
    [
        ("8xH100", 1, 8, 79.6),
        ("2x8xh200", 2, 8, 140.4),
        ("1xA100-40GB", 1, 1, 40.0),
        ("4x24GiB", 1, 4, 24.0),
        ("4x24 GB", 1, 4, 24e9 / 2**30),
    ],
)
def test_hardware_by_name_and_by_memory(text, nodes, count, gib):
    found = assumed(text, config())
    assert (found.nodes, found.gpus) == (nodes, count)
    assert found.gpu_gib == pytest.approx(gib)
    assert found.resources["GPU"] == nodes * count


@pytest.mark.parametrize(
    "text, parts",
    [
        ("8xH10", ["unknown device 'H10'", "Did you mean 'H100'?", "8x24GiB"]),
        ("H100", ["expected COUNTxDEVICE", "8xH100"]),
        ("0xH100", ["at least one device"]),
        ("many", ["expected COUNTxDEVICE"]),
    ],
)
def test_hardware_that_cannot_be_read(text, parts):
    with pytest.raises(ConfigError) as caught:
        assumed(text, config())
    for part in parts:
        assert part in str(caught.value)


# -- memory ----------------------------------------------------------------------------------------


def test_zero_shares_its_state_among_ranks_and_stage_0_does_not():
    def held(stage, ranks):
        cfg = gpus(ranks, learner={"zero_stage": stage})
        need = learner_need(cfg, SEVEN_B, reference=False)
        return need.resident["weights"], need.resident["optimizer"], need.passing["gradients"]

    p = float(SEVEN_B.params)
    assert held(0, 8) == held(0, 1) == (2 * p, 12 * p, 2 * p)
    assert held(1, 8) == (2 * p, 12 * p / 8, 2 * p)
    assert held(2, 8) == (2 * p, 12 * p / 8, 2 * p / 8)
    assert held(3, 8) == (2 * p / 8, 12 * p / 8, 2 * p / 8)


def test_what_moves_by_noise_needs_a_master_and_no_optimizer():
    need = learner_need(gpus(1), replace(SEVEN_B, by_noise=True), reference=False)
    assert need.resident == {"weights": 2.0 * SEVEN_B.params, "master": 4.0 * SEVEN_B.trained}
    assert need.peak < 1.02 * need.idle
    lines = arithmetic(config(), ES(population=30))
    assert "tasks x 30 members = " in lines[0] and lines[0].endswith("in all")
    assert "x 4 members" in arithmetic(config(), MeZO(directions=2))[0]


def test_a_token_of_the_cache_is_as_large_as_published():
    """Qwen2.5-7B: 28 layers x 4 key heads x 128 x (key + value) x 2 bytes = 56 KiB a token."""
    assert kv_bytes(gpus(1), SEVEN_B) == 56 * 2**10


def test_checkpointing_and_a_smaller_budget_save_activations():
    whole = activations(gpus(1, learner={"token_budget": 8192}), SEVEN_B)
    half = activations(gpus(1, learner={"token_budget": 4096}), SEVEN_B)
    saved = activations(
        gpus(1, learner={"token_budget": 8192}, model={"gradient_checkpointing": True}), SEVEN_B
    )
    assert whole == 2 * half and saved < whole / 10
    longest = activations(gpus(1, learner={"token_budget": 16}), SEVEN_B)
    assert longest == half, "a row of model.max_length is its own micro-batch"


def refusal(cfg, hardware, reference=False):
    with pytest.raises(ResourceError) as caught:
        memory_lines(cfg, SEVEN_B, assumed(hardware, cfg), reference)
    return str(caught.value)


def test_what_does_not_fit_says_what_would_and_that_does():
    start = gpus(8, learner={"token_budget": 16384})
    said = refusal(start, "8xH100")
    assert "a learner needs" in said and "of a GPU with 79.6 GiB" in said
    [advice] = re.findall(r"It fits with (.*)", said)
    names = advice.split(" or ")[0].split(" and ")
    assert len(names) > 1
    for left_out in (None, *names):
        cfg = changed(start, [name for name in names if name != left_out])
        if left_out is None:
            assert memory_lines(cfg, SEVEN_B, assumed("8xH100", cfg), False)
        else:
            assert "does not fit" in refusal(cfg, "8xH100"), f"{left_out} was not needed"


def changed(cfg, overrides):
    """`cfg` with overrides as they are written on the command line."""
    tree = cfg.model_dump(mode="json", by_alias=True)
    for override in overrides:
        set_key(tree, override)
    return parse_config(tree, "here")


def test_colocated_engines_and_learners_share_a_gpu_and_apart_they_do_not():
    apart = {"placement": "disaggregated"}
    sharded = {"zero_stage": 3, "token_budget": 4096}
    small = {"gradient_checkpointing": True}
    together = refusal(gpus(8, learner=sharded, model=small), "8xH100")
    assert "(colocated)" in together and "gpu_memory_utilization=" in together
    cfg = gpus(8, learner=sharded, model=small, cluster=apart)
    lines = memory_lines(cfg, SEVEN_B, assumed("16xH100", cfg), False)
    assert any("cache for" in line and "sequences of 4096 tokens" in line for line in lines)


@pytest.mark.parametrize(
    "term, bytes_a_weight",
    [
        ({"name": "kickstarting"}, 2),  # a whole teacher in bfloat16 on every rank
        ({"name": "text_replay", "path": "x.jsonl", "target": "teacher"}, 2),
        ({"name": "text_replay", "path": "x.jsonl"}, 0),
        ({"name": "l2"}, 4 / 8),  # float32, in the shards of eight optimizers
        ({"name": "ewc", "fisher": "f"}, 8 / 8),
    ],
)
def test_what_a_retention_term_holds_is_counted(term, bytes_a_weight):
    def need(*terms):
        cfg = gpus(8, learner={"zero_stage": 3}, retention=list(terms))
        return learner_need(cfg, SEVEN_B, reference=False).idle

    assert need(term) - need() == bytes_a_weight * SEVEN_B.params
    assert need(term, {"name": "kickstarting", "called": "b"}) - need(term) == 2 * SEVEN_B.params


def test_a_reference_model_costs_its_weights():
    with_it = learner_need(gpus(1), SEVEN_B, reference=True).idle
    assert with_it - learner_need(gpus(1), SEVEN_B, reference=False).idle == 2 * SEVEN_B.params


def test_a_reward_s_model_is_counted_where_it_is_served():
    held = {"reward model": 15.2e9, "batch of rewards": 1e9}
    alone = {"rewards": {"fns": [{"fn": "reward_model", "args": {"path": "rm"}}]}}

    def lines(gpus_of_reward, cfg, hardware="8xH100", **more):
        served = (Served("reward actor rm", gpus_of_reward, held | more),)
        shape = replace(SEVEN_B, params=10**8, trained=10**8, served=served)
        return memory_lines(cfg, shape, assumed(hardware, cfg), False)

    without = host_need(config(), SEVEN_B, reference=False)
    shape = replace(SEVEN_B, served=(Served("reward actor rm", 0, held),))
    assert host_need(config(**alone), shape, reference=False) == {
        **{k: v for k, v in without.items() if k != "1 reward worker"},
        "reward actor rm": PROCESS + 16.2e9,
    }
    cfg = gpus(1, **alone, cluster={"placement": "disaggregated"})
    assert "memory of reward actor rm, on the host, estimated: 15.9 GiB" in lines(0, cfg)
    assert any("reward actor rm, estimated: 16.6 of 79.6 GiB" in line for line in lines(1, cfg))
    with pytest.raises(
        ResourceError, match=r"rm needs 16\.6 GiB, and its gpus: 0\.5 are 12\.0 GiB"
    ):
        lines(0.5, cfg, "8x24GiB")


def test_nothing_helps_a_model_that_is_far_too_large():
    assert "a smaller model" in refusal(gpus(1), "1x2GiB")


def test_the_shape_of_a_model_is_read_without_making_it(tiny_model):
    from envs.addition import build_model

    actual = sum(p.numel() for p in build_model(0)[0].parameters())
    for model in ({"path": str(tiny_model)}, {"path": None, "build": "envs.addition:build_model"}):
        shape = model_shape(config(model=model))
        assert isinstance(shape, ModelShape)
        assert (shape.params, shape.layers, shape.kv_width) == (actual, 2, 128)


def test_adapters_are_counted_as_peft_makes_them(tiny_model):
    from rlft.config import Lora
    from rlft.policy.lm import load_lm

    policy = load_lm(tiny_model, "float32", lora=Lora(rank=4))
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    shape = model_shape(config(model={"path": str(tiny_model), "lora": {"rank": 4}}))
    assert isinstance(shape, ModelShape) and shape.trained == trained


def test_a_model_that_is_not_here_is_not_guessed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert isinstance(model_shape(config(model={"path": str(tmp_path)})), str)


# -- what is not built -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section, key, words",
    [
        ("learner", "sequence_parallel_size", "sequence parallelism"),
        ("learner", "tensor_parallel_size", "tensor-parallel learners are not built"),
        ("learner", "megatron", "Megatron is not built"),
        ("save", "sharded", "sharded-engine checkpoints are not built"),
        ("model", "ulysses_size", "Ulysses"),
        ("learner", "pipeline_parallel_size", "pipeline parallelism is not built"),
    ],
)
def test_what_is_not_built_is_refused_with_a_sentence(section, key, words):
    with pytest.raises(ConfigError) as caught:
        config(**{section: {key: 2}})
    assert words in str(caught.value) and "not built" in str(caught.value)


def test_nor_is_it_passed_through_to_deepspeed():
    cfg = config(learner={"deepspeed": {"tensor_parallel": {"autotp_size": 4}}})
    with pytest.raises(ConfigError, match=r"learner\.deepspeed\.tensor_parallel.*not built"):
        check_plugins(cfg)
    check_plugins(config(learner={"deepspeed": {"sequence_parallel_size": 1}}))


# -- the whole -------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Other tests may have started a cluster, whose cores would be asked instead.
    monkeypatch.setattr("rlft.check.hardware.private_resources", lambda cfg: {"CPU": 2.0})
    cfg = config(
        model={"path": str(tiny_model), "dtype": "float32", "max_length": 64},
        sampler={"engine": "transformers", "max_tokens": 60},
        cluster={"cpus": 4096},
    )
    with pytest.raises(UserError) as caught:
        list(report(cfg))
    said = str(caught.value)
    assert "2 problems:" in said
    assert "asks for 4096 cores" in said and "its prompt has" in said
