"""Ways to choose what is trained, without DeepSpeed: adapters against what is published of them, choices,
and what is refused."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from small_runs import tree
from tiny_llama import save_tiny_llama
from transformers import AutoTokenizer

from envs.addition import build_model
from rlft import registry
from rlft.check import check_plugins
from rlft.config import parse_config
from rlft.errors import ConfigError
from rlft.learning.learner import Learner
from rlft.learning.optimizers.muon import BLOCK, dequantised, orthogonal, quantised
from rlft.learning.trained_part import Seen
from rlft.learning.wiring import refuse_elsewhere, trained_part
from rlft.policy.lm import load_lm
from rlft.seeding import Key


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def published(policy):
    """What a learner of this policy would send."""
    model, learner = SimpleNamespace(dtype="float32", lora=None), SimpleNamespace(zero_stage=0)
    stub = SimpleNamespace(
        cfg=SimpleNamespace(model=model, learner=learner),
        policy=policy,
        _gathered=lambda parameters: nullcontext(),
    )
    return {name: tensor.clone() for name, tensor in Learner.full_tensors(stub)}


IDS = torch.arange(20).reshape(2, 10) * 3 % 64
PLACES, MASK = torch.arange(1, 10).expand(2, 9), torch.ones(2, 9, dtype=torch.bool)


@torch.no_grad()
def logp(policy):
    return policy.eval()(IDS, PLACES, MASK)[0]


def peft(config, **args):
    return {"name": "peft", "config": config, "args": args}


ADAPTERS = {
    "lora": peft("LoraConfig", r=4),
    "dora": peft("LoraConfig", r=4, use_dora=True),
    "pissa": peft("LoraConfig", r=4, init_lora_weights="pissa"),
    "vera": peft("VeraConfig", r=8),
    "randlora": peft("RandLoraConfig", r=4),
    "oft": peft("OFTConfig", oft_block_size=8, r=0),
    "ia3": peft("IA3Config", feedforward_modules=["down_proj"]),
    "norms": peft("LNTuningConfig", target_modules=["input_layernorm"]),
    "osf": peft("OSFConfig"),
    "selective": {"name": "selective_lora", "rank": 4},
    "s2ft": {"name": "s2ft", "channels": 0.1, "heads": 0.5},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_published_of_an_adapter_is_what_the_learner_computes(folder, name):
    policy = load_lm(folder, "float32")
    start, names = logp(policy), published(policy).keys()
    policy.lm = registry.build("trainable", ADAPTERS[name]).prepared(policy.lm, 0)
    assert torch.allclose(logp(policy), start, atol=2e-2 if name == "randlora" else 1e-5)
    trained = [p for p in policy.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained:
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    expected = logp(policy)
    assert (expected - start).abs().max() > 1e-3
    sent = published(policy)
    assert torch.equal(logp(policy), expected)  # publishing leaves the model bit for bit as it was
    assert sent.keys() == names
    fresh = load_lm(folder, "float32")
    fresh.lm.load_state_dict(sent, strict=False)
    assert torch.allclose(logp(fresh), expected, atol=1e-5)


SUMS = [f"{a}+{b}={a + b}" for a in range(3, 90, 4) for b in (7, 120, 4321)]


def eva(folder, texts, **args):
    """A model whose adapters begin from these texts."""
    build_model(0)[1].save_pretrained(folder)
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"said": text}) + "\n" for text in texts))
    spec = peft("LoraConfig", **{"r": 4, "init_lora_weights": "eva", **args})
    method = registry.build("trainable", {**spec, "texts": str(path), "column": "said"})
    policy = load_lm(folder, "float32")
    policy.lm = method.prepared(policy.lm, 0)
    return policy


def test_eva_begins_from_the_leading_directions_of_what_a_layer_sees(folder):
    policy = eva(folder, SUMS, eva_config={"rho": 1.0})
    plain, seen = load_lm(folder, "float32"), []
    assert torch.equal(logp(policy), logp(plain)), "it says at first what it said"
    plain.lm.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, given, out: seen.append(given[0][0])
    )
    read = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for text in SUMS:
            plain.lm.model(input_ids=torch.tensor([read(text).input_ids]))
    inputs = torch.cat(seen)
    *_, directions = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    layer = policy.causal_lm().model.layers[1].mlp.down_proj
    rows = layer.lora_A["default"].weight.detach()
    assert rows.shape == (4, 64)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-3, rtol=0)
    overlap = torch.linalg.svdvals(rows @ directions[:4].T)
    assert float(overlap.min()) > 0.95, "peft goes through the texts in batches, and stops early"
    start = published(policy)
    assert start.keys() == published(plain).keys()
    assert all(torch.equal(start[n], t) for n, t in published(plain).items())
    again = eva(folder, SUMS, eva_config={"rho": 1.0})
    for (name, ours), theirs in zip(policy.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), f"{name}: every rank makes the same"


def test_eva_moves_rank_between_layers_and_what_is_published_is_what_it_computes(folder):
    policy = eva(folder, SUMS, eva_config={"rho": 2.0})
    ranks = [p.shape[0] for n, p in policy.named_parameters() if "lora_A" in n]
    assert sum(ranks) == 4 * 14 and min(ranks) < 4 < max(ranks) <= 8
    start, generator = logp(policy), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (p for p in policy.parameters() if p.requires_grad):
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    expected = logp(policy)
    assert (expected - start).abs().max() > 1e-3
    fresh = load_lm(folder, "float32")
    fresh.lm.load_state_dict(published(policy), strict=False)
    assert torch.allclose(logp(fresh), expected, atol=1e-5)


def test_eva_refuses_what_it_cannot_begin(folder):
    with pytest.raises(
        ConfigError, match=r"looks for 34 directions .* and the inputs of .* have 32"
    ):
        eva(folder, SUMS, r=17)
    with pytest.raises(
        ConfigError, match=r"for linear layers, and .*embed_tokens.* is a Embedding"
    ):
        eva(folder, SUMS, target_modules=["embed_tokens", "q_proj"])
    spec = peft("AdaLoraConfig", init_lora_weights="eva", total_step=10)
    with pytest.raises(ConfigError, match="is for LoraConfig"):
        registry.build("trainable", {**spec, "texts": "x.jsonl"}).check()


def small(model, **changes):
    return parse_config(tree(model, **changes), "small")


def test_what_no_model_can_be_trained_by_is_refused_before_anything_starts(tiny_model):
    def refused(match, **trainable):
        with pytest.raises(ConfigError, match=match):
            check_plugins(small(tiny_model, learner={"trainable": trainable}))

    check_plugins(small(tiny_model, learner={"trainable": "hft"}))
    for name in ("VeraConfig", "RandLoraConfig", "OFTConfig", "LoHaConfig", "IA3Config"):
        check_plugins(small(tiny_model, learner={"trainable": {"name": "peft", "config": name}}))
    pissa = {"name": "peft", "config": "LoraConfig", "args": {"init_lora_weights": "pissa"}}
    check_plugins(small(tiny_model, learner={"trainable": pissa}))  # needs weights, says nothing
    refused("no such class.*VeraConfig", name="peft", config="VeraConfg")
    refused("unexpected keyword argument 'rnk'", name="peft", config="VeraConfig", args={"rnk": 2})
    refused("learns a prompt", name="peft", config="PromptTuningConfig")
    refused("ranks are given out anew", name="peft", config="AdaLoraConfig")
    refused("Target modules .* not found", name="peft", config="LoraConfig",
            args={"target_modules": ["nowhere"]})  # fmt: skip
    refused("'nowhere' matches no weight", name="patterns", train=["nowhere"])
    check_plugins(
        small(tiny_model, learner={"trainable": {"name": "patterns", "train": ["lm_head", "norm"]}})
    )


def test_the_new_head_of_a_reward_model_may_be_trained_alone(tiny_model):
    from rlft.check.trained_part import check_trained_part

    cfg = small(tiny_model, learner={"trainable": {"name": "patterns", "train": ["score"]}})
    check_trained_part(cfg, registry.build("algo", "reward_model"))


def test_half_fine_tuning_of_blocks_that_it_does_not_know_is_refused_before_anything_starts(
    tmp_path,
):
    from transformers import Phi3Config

    Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ConfigError, match=r"has no q_proj \(its modules: .*qkv_proj"):
        check_plugins(small(tmp_path, learner={"trainable": "hft"}))


def test_eva_does_not_wait_for_directions_that_so_few_tokens_do_not_have(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"looks for 8 directions .* 1 texts of .* have 4 tokens"):
        eva(folder, ["1+2="])
    monkeypatch.setattr("rlft.learning.eva._FORWARDS", 9)
    same = ["1+1=" * 8] * 16
    with pytest.raises(
        ConfigError, match=r"after 20 forwards .* 32 directions .* have not settled"
    ):
        eva(folder, same, r=16, eva_config={"tau": 1.0})


def test_shut_gates_leave_the_base_bit_for_bit(folder):
    policy = load_lm(folder, "float32")
    start = logp(policy)
    policy.lm = registry.build("trainable", "selective_lora").prepared(policy.lm, 0)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if p.requires_grad:
                p.fill_(0.4 if name.endswith("gate") else 0.1)
    assert torch.equal(logp(policy), start)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.endswith("0.mlp.up_proj.gate"):
                p.fill_(0.6)
    assert not torch.equal(logp(policy), start)
    policy(IDS, PLACES, MASK)[0].sum().backward()
    gates = [p for n, p in policy.named_parameters() if n.endswith(".gate")]
    assert all(p.grad is not None and bool(p.grad != 0) for p in gates)  # a shut one can open again


def test_gradients_of_s2ft_are_those_of_its_rows_and_columns(folder):
    plain, sliced = load_lm(folder, "float32"), load_lm(folder, "float32")
    sliced.lm = registry.build("trainable", ADAPTERS["s2ft"]).prepared(sliced.lm, 3)
    for policy in (plain, sliced):
        policy(IDS, PLACES, MASK)[0].sum().backward()
    modules = dict(sliced.lm.named_modules())
    trained = [n for n, p in sliced.lm.named_parameters() if p.requires_grad]
    assert trained and all(n.endswith(".delta") for n in trained)
    chosen = {}
    for name in trained:
        layer = modules[name.removesuffix(".delta")]
        whole = plain.lm.get_parameter(name.replace(".delta", ".weight")).grad
        expected = whole[layer.index] if layer.rows else whole[:, layer.index]
        assert torch.allclose(layer.delta.grad, expected, atol=1e-5)
        chosen[name.split(".layers.")[1].removesuffix(".delta")] = layer.index.tolist()
    for i in range(2):  # the channels of one block are the same in all three of its matrices
        assert (
            chosen[f"{i}.mlp.up_proj"]
            == chosen[f"{i}.mlp.gate_proj"]
            == chosen[f"{i}.mlp.down_proj"]
        )
        assert chosen[f"{i}.self_attn.q_proj"] == chosen[f"{i}.self_attn.o_proj"]
    assert chosen["0.mlp.up_proj"] != chosen["1.mlp.up_proj"]


def shapes(layers, keys=64):
    found = {"model.embed_tokens.weight": (10, 64), "model.norm.weight": (64,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        found |= {f"{at}self_attn.{r}_proj.weight": (64, 64) for r in "qo"}
        found |= {f"{at}self_attn.{r}_proj.weight": (keys, 64) for r in "kv"}
        found |= {f"{at}mlp.{r}_proj.weight": (96, 64) for r in ("up", "gate", "down")}
        found |= {f"{at}{r}_layernorm.weight": (64,) for r in ("input", "post_attention")}
    return found


@pytest.mark.parametrize("keys", [64, 16])
def test_half_fine_tuning_draws_half_of_each_kind_anew_each_round(keys):
    method, known = registry.build("trainable", {"name": "hft", "every": 10}), shapes(8, keys)

    def trained(step, seed=0):
        seen = Seen(step, Key(seed), known, None, None)
        return {n for n in known if method.kept(n, seen)}

    rounds = [trained(10 * i) for i in range(4)]
    assert len({frozenset(r) for r in rounds}) == 4
    assert trained(3) == rounds[0] and trained(0, seed=1) != rounds[0]
    size = {n: torch.Size(s).numel() for n, s in known.items() if ".layers." in n}
    for chosen in rounds:
        assert {"model.embed_tokens.weight", "model.norm.weight"} <= chosen
        share = sum(size[n] for n in chosen if n in size) / sum(size.values())
        assert share == pytest.approx(0.5, abs=0.01)
        for i in range(8):
            block = [n for n in chosen if f".layers.{i}." in n]
            assert sum("self_attn" in n for n in block) == 2
            assert sum("norm" in n for n in block) == 1


def test_lift_keeps_the_largest_elements_of_the_low_rank_part():
    torch.manual_seed(0)
    u, v = torch.randn(20, 2), torch.randn(2, 30)
    weight = u @ v + 0.1 * torch.randn(20, 30)
    seen = Seen(
        0, Key(0), {"layers.0.up.weight": (20, 30), "embed": (20, 30)}, lambda: weight, None
    )
    method = registry.build("trainable", {"name": "lift", "rank": 2, "share": 0.1})
    kept = method.kept("layers.0.up.weight", seen)
    left, size, right = torch.linalg.svd(weight.double())
    low = sum(size[i] * torch.outer(left[:, i], right[i]) for i in range(2)).abs()
    assert kept.sum() == 60 and low[kept].min() >= low[~kept].max()
    assert method.kept("embed", seen) is False
    assert method.due(100) and not method.due(99)


def test_newton_schulz_makes_singular_values_equal():
    torch.manual_seed(0)
    for shape in ((40, 40), (16, 64), (64, 16)):
        found = orthogonal(torch.randn(shape) * 7)
        assert found.shape == shape
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_eight_bits_are_off_by_half_a_scale_at_most():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(BLOCK), torch.zeros(BLOCK), 1e-3 * torch.randn(700)])
    q, scale = quantised(values)
    assert q.dtype == torch.int8 and q.shape == values.shape and scale.shape == (3,)
    back = dequantised(q, scale)
    limit = scale.repeat_interleave(BLOCK)[: len(values)] / 2
    assert bool(((back - values).abs() <= limit * (1 + 1e-5)).all())
    assert not back[BLOCK : 2 * BLOCK].any()


def config(**learner):
    model = {"path": "x", "lora": learner.pop("lora", None)}
    tree = {"name": "x", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"}
    return parse_config({**tree, "model": model, "learner": learner}, "x")


@pytest.mark.parametrize(
    "learner, message",
    [
        ({"trainable": "hft", "lora": {}}, "model.lora trains adapters"),
        ({"trainable": "lift", "optimizer": "muon"}, "set learner.optimizer=adamw"),
        ({"optimizer": "muon", "deepspeed": {"optimizer": {}}}, "leaves no room"),
        ({"clip": "parameter", "max_grad_norm": 0}, "which is 0"),
        ({"trainable": {"name": "top_k", "share": 2}}, "0 < share <= 1"),
        ({"trainable": {"name": "staged", "stages": {5: ["x"]}}}, "one of them must be 0"),
        ({"trainable": {"name": "hft", "round": 3}}, "unknown key 'round'"),
        ({"trainable": "liftt"}, "Did you mean 'lift'"),
    ],
)
def test_what_does_not_go_together_is_refused(learner, message):
    with pytest.raises(ValueError, match=message):
        trained_part(config(**learner))


def test_policies_that_act_have_the_usual_only():
    refuse_elsewhere(config(), "algo ES")
    with pytest.raises(ConfigError, match="trainable=hft is for language models"):
        refuse_elsewhere(config(trainable={"name": "hft"}), "algo ES")


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "patterns", "train": ["nowhere"]}, "'nowhere' matches no weight; names are like"),
        ({"name": "patterns", "train": ["("]}, "no regular expression"),
        (peft("VeraConfg"), "Did you mean 'VeraConfig'"),
        (peft("VeraConfig", rank=3), "unexpected keyword argument 'rank'"),
        (peft("LoraConfig", init_lora_weights="corda"), "reads data to begin from"),
        (peft("LoraConfig", init_lora_weights="eva"), "give `texts`, a .jsonl file with 'text'"),
        ({**peft("LoraConfig", r=4), "texts": "x.jsonl"}, "read by init_lora_weights: eva alone"),
        (peft("LoraConfig", modules_to_save=["lm_head"]), "whole modules beside adapters"),
        (peft("PromptTuningConfig", num_virtual_tokens=2), "learns a prompt, not weights"),
        (peft("LilyConfig"), "cannot be merged into the weights"),
        ({"name": "s2ft", "channels": 0}, "not both 0"),
    ],
)
def test_what_a_model_cannot_do_is_refused(folder, spec, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("trainable", spec).prepared(load_lm(folder, "float32").lm, 0)
