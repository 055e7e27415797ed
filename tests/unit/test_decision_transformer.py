"""A language model that reads episodes, and environments that say how much is still wanted."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from envs.conditioned import Conditioned
from rlft import registry
from rlft.cloning import strips_of
from rlft.config import parse_config
from rlft.demonstrations import Demonstration, write
from rlft.errors import ConfigError
from rlft.learning.control_learner import ControlLearner
from rlft.learning.language_buffer import LanguageBuffer
from rlft.policy.actor_critic import as_tensors, load_policy, new_policy
from rlft.policy.context import Context
from rlft.policy.decision_transformer import DecisionTransformer
from rlft.policy.observed import as_arrays
from rlft.retention.language import Language
from rlft.retention.term import check_retention
from rlft.seeding import Key

MAZE = {"name": "minigrid", "id": "MiniGrid-Empty-5x5-v0", "max_steps": 12, "configurations": 2}


@pytest.fixture(scope="module")
def policy(tiny_model):
    env = Conditioned(MAZE, 0.9).make()
    torch.manual_seed(0)
    net = DecisionTransformer(str(tiny_model), lora=4, steps=4, hidden=16)
    return net(env.observation_space, env.action_space).eval()


def episode(steps, seed=0, target=0.9):
    """Observations `[T, ...]` and rewards of an episode with random actions."""
    env = Conditioned(MAZE, target).make()
    rng = np.random.default_rng(seed)
    seen, actions, rewards = [env.reset(seed=seed)[0]], [], []
    while len(seen) < steps:
        action = int(rng.integers(3))
        observation, reward, *ended, _ = env.step(action)
        actions.append(action)
        rewards.append(reward)
        if any(ended[:2]):
            break
        seen.append(observation)
    arrays = [as_arrays(o) for o in seen]
    return {n: np.stack([a[n] for a in arrays]) for n in arrays[0]}, actions, rewards


def test_the_wanted_return_falls_by_what_was_earned_and_the_action_before_is_seen():
    class Inner:
        action_space = spaces.Discrete(3)
        observation_space = spaces.Box(0, 1, (2,), np.float32)

    import gymnasium

    class Bare(gymnasium.Env):
        action_space, observation_space = Inner.action_space, Inner.observation_space

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.ones(2, np.float32), 0.25 * (action + 1), False, False, {}

    from envs.conditioned.wrapper import ToGo

    env = ToGo(Bare(), 2.0)
    first, _ = env.reset(seed=0)
    assert (first["to_go"][0], first["before"]) == (2.0, 3)
    second, *_ = env.step(2)
    assert (second["to_go"][0], second["before"]) == (1.25, 2)
    assert env.observation_space.contains(second)
    again, _ = env.reset(seed=0)
    assert (again["to_go"][0], again["before"]) == (2.0, 3)


def test_recordings_of_the_environment_inside_are_seen_from_outside(tmp_path):
    inner = Conditioned(MAZE).inner.make()
    seen = [inner.reset(seed=1)[0] for _ in range(3)]
    rewards = np.array([0.0, 0.5, 0.25], np.float32)
    demo = Demonstration(np.stack(seen), np.array([2, 0, 1]), rewards, 1)
    write(tmp_path / "d.npz", [demo])
    [strip] = strips_of(str(tmp_path / "d.npz"), Conditioned(MAZE))
    assert strip.obs["to_go"].ravel().tolist() == [0.75, 0.75, 0.25]
    assert strip.obs["before"].tolist() == [7, 2, 0], "none, then what was done"
    assert np.array_equal(strip.obs["observation"], np.stack(seen))


def test_a_step_at_a_time_says_what_a_stretch_says(policy):
    obs, *_ = episode(9)
    tensors = as_tensors(obs, torch.device("cpu"))
    blank = torch.zeros(1, policy.state_size)
    with torch.no_grad():
        whole, *_ = policy({n: x[None] for n, x in tensors.items()}, blank)
        state, singles = blank, []
        for t in range(len(whole[0])):
            params, _, state = policy.act({n: x[t : t + 1] for n, x in tensors.items()}, state)
            singles.append(params[0])
        # From the middle, with the state that was carried there.
        half = blank
        for t in range(5):
            _, _, half = policy.act({n: x[t : t + 1] for n, x in tensors.items()}, half)
        rest, *_ = policy({n: x[None, 5:] for n, x in tensors.items()}, half)
    assert torch.allclose(whole[0], torch.stack(singles), atol=1e-5)
    assert torch.allclose(whole[0, 5:], rest[0], atol=1e-5)


def test_it_sees_so_many_steps_and_nothing_later_or_of_another_episode(policy):
    obs, *_ = episode(9)
    tensors = {n: x[None] for n, x in as_tensors(obs, torch.device("cpu")).items()}
    blank = torch.zeros(1, policy.state_size)

    def said(changed):
        to_go = tensors["to_go"].clone()
        to_go[0, changed] += 5.0
        with torch.no_grad():
            return policy({**tensors, "to_go": to_go}, blank)[0][0]

    with torch.no_grad():
        plain = policy(tensors, blank)[0][0]
        # What lies in the state of an episode that has no past is not read.
        noise = torch.randn(1, policy.state_size)
        noise[0, -1] = 0
        assert torch.equal(policy(tensors, noise)[0][0], plain)
    moved = (said(2) - plain).abs().amax(-1) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, False, False, False]


def test_steps_that_are_none_of_an_episode_are_not_read_and_change_nothing(policy, monkeypatch):
    obs, *_ = episode(8)
    batch = {n: torch.stack([torch.as_tensor(x)] * 2) for n, x in as_tensors(obs, "cpu").items()}
    steps = len(obs["to_go"])
    mask = torch.ones(2, steps, dtype=torch.bool)
    mask[1, 3:] = False
    sizes, body = [], Context._said
    monkeypatch.setattr(
        Context, "_said", lambda self, x, *a: sizes.append(len(x)) or body(self, x, *a)
    )

    def told(real):
        policy.zero_grad()
        params, value = policy(batch, torch.zeros(2, policy.state_size), real=real)
        (params[mask].square().sum() + value[mask].square().sum()).backward()
        grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        return params[mask], value[mask], grads

    whole, real = told(None), told(mask.flatten().nonzero()[:, 0])
    assert sizes == [2 * steps, steps + 3]
    for a, b in zip(whole[:2], real[:2], strict=True):
        torch.testing.assert_close(a, b)
    assert whole[2].keys() == real[2].keys()
    for name, grad in whole[2].items():
        torch.testing.assert_close(grad, real[2][name], rtol=1e-4, atol=1e-6)


def test_lora_leaves_the_language_model_and_everything_else_learns(policy):
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    frozen = {n for n, p in policy.named_parameters() if not p.requires_grad}
    assert all("lora_" in n for n in trained if ".lm." in n)
    assert all(".lm." in n for n in frozen) and frozen
    obs, *_ = episode(4)
    tensors = {n: x[None] for n, x in as_tensors(obs, torch.device("cpu")).items()}
    params, value = policy(tensors, torch.zeros(1, policy.state_size))
    (params.square().sum() + value.sum()).backward()
    silent = {n for n in trained if dict(policy.named_parameters())[n].grad is None}
    assert not silent


def test_nothing_is_left_of_the_language_model_but_its_shape(tiny_model):
    env = Conditioned(MAZE).make()
    nets = [DecisionTransformer(str(tiny_model), pretrained=p, steps=2) for p in (True, False)]
    known, new = (n(env.observation_space, env.action_space).state_dict() for n in nets)
    assert known.keys() == new.keys()
    name = "memory.lm.model.layers.0.self_attn.q_proj.weight"
    assert known[name].shape == new[name].shape and not torch.equal(known[name], new[name])


def test_what_does_not_fit_is_refused(tmp_path, tiny_model):
    space = Conditioned(MAZE).inner.make().observation_space
    with pytest.raises(ConfigError, match="reads the observations of `env: conditioned`"):
        DecisionTransformer(str(tiny_model))(space, spaces.Discrete(3))
    env = Conditioned(MAZE).make()
    with pytest.raises(ConfigError, match=r"no folder with a config\.json"):
        DecisionTransformer(str(tmp_path))(env.observation_space, env.action_space)
    with pytest.raises(ConfigError, match="expected Discrete"):
        Conditioned({"name": "gym", "id": "Pendulum-v1"}).make()


def test_one_step_alone_is_a_context_too():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 4}
    lm = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **shape)).eval()
    memory = Context(lm, 8, 1)
    x = torch.randn(2, 3, 24)
    with torch.no_grad():
        together, state = memory.read(x, torch.zeros(2, memory.state_size))
        alone, _ = memory.read(x[:, 2:], torch.zeros(2, memory.state_size))
    assert torch.allclose(together[:, 2:], alone, atol=1e-6)
    assert state.shape == (2, 1)


# -- language beside actions -----------------------------------------------------------------------


def test_language_is_learnt_by_the_model_inside_alone(policy, tiny_model, tmp_path, monkeypatch):
    """Its gradient is that of the mean -logp of the texts' tokens, computed here in the plain way."""
    rows = [{"text": t} for t in ("12+34=", "1+2=3", "7")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    term = Language(str(tmp_path / "t.jsonl"), batch=4, longest=5, tokenizer=str(tiny_model))
    made = LanguageBuffer(term, Key(3), longest=term.longest, budget=10)
    drawn = np.random.default_rng(Key(3).child(7).seed()).integers(0, len(made), 4)
    assert max(len(ids) for ids in made._texts) <= 5 and len({*drawn.tolist()}) > 1

    class Learner:
        world, device = 1, torch.device("cpu")

        def __init__(self):
            self.policy = policy

        def backward(self, loss):
            loss.backward()

    policy.zero_grad()
    shapes, loss = [], made.loss
    monkeypatch.setattr(made, "loss", lambda who, *x: shapes.append(x[0].shape) or loss(who, *x))
    value = made.backward(Learner(), 0.5, taken=7, rank=0)
    assert len(shapes) > 1 and all(rows * longest <= 10 for rows, longest in shapes), "the budget"
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    total, count = 0.0, 0
    for i in drawn:
        ids = torch.tensor([made._texts[i]])
        logp = policy.memory.lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total = total - logp.gather(1, ids[0, 1:, None]).sum()
        count += ids.shape[1] - 1
    (0.5 * total / count).backward()
    assert value == pytest.approx(float(total.detach()) / count, rel=1e-5)
    assert found and all(".lm." in n for n in found)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_language_asks_for_a_policy_with_a_model_inside(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    cfg = parse_config(
        {
            "name": "x",
            "steps": 1,
            "tasks_per_step": 1,
            "algo": {"name": "clone", "path": "d.npz"},
            "env": MAZE,
            "model": {"build": {"name": "mlp"}},
            "retention": [{"name": "language", "path": str(tmp_path / "t.jsonl")}],
        },
        "x",
    )
    with pytest.raises(
        ConfigError, match=r"needs a policy with a language model inside, got .*mlp"
    ):
        check_retention(cfg, registry.build("algo", cfg.algo), registry.build("env", cfg.env))


def test_what_a_learner_saves_of_it_is_loaded_again(tiny_model, tmp_path):
    """Its model has buffers that no file holds."""
    env, folder = Conditioned(MAZE, 0.9).make(), tmp_path / "model"
    spec = {
        "name": "decision_transformer",
        "lm": str(tiny_model),
        "lora": 4,
        "steps": 4,
        "hidden": 16,
    }
    new_policy(spec, env, 0, folder)
    trained = load_policy(folder, env)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    assert dict(trained.named_buffers()).keys() - trained.state_dict().keys()
    stub = SimpleNamespace(policy=trained, _gathered=lambda parameters: nullcontext())
    saved = {n: t.clone() for n, t in ControlLearner.full_tensors(stub)}
    assert saved.keys() == trained.state_dict().keys()
    of_before = {n: b.clone() for n, b in trained.named_buffers()}
    for more in ({}, of_before):
        save_file({**saved, **more}, folder / "model.safetensors")
        for name, tensor in load_policy(folder, env).state_dict().items():
            assert torch.equal(tensor, saved[name]), name


def test_a_language_model_with_a_tied_head_is_saved_and_loaded(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlft.policy.actor_critic import load_policy, new_policy

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 20}
    lm = LlamaForCausalLM(
        LlamaConfig(num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    )
    lm.save_pretrained(tmp_path / "lm")
    env = Conditioned(MAZE, 0.9).make()
    spec = {"name": "decision_transformer", "lm": str(tmp_path / "lm"), "steps": 4, "hidden": 16}
    made = load_policy(new_policy(spec, env, 0, tmp_path / "policy"), env)
    memory = made.memory.lm
    head, tokens = memory.get_output_embeddings().weight, memory.get_input_embeddings().weight
    assert torch.equal(head, lm.lm_head.weight) and head.data_ptr() != tokens.data_ptr()
