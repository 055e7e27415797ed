"""A fit on strips in this process: what minibatches, cuts and terms do to the gradient."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from algos.control_ppo import ControlPPO
from rlft.config import Freeze
from rlft.credit.vtrace import VTrace
from rlft.errors import ConfigError
from rlft.learning import objective
from rlft.learning.control_learner import ControlLearner
from rlft.learning.freeze import Frozen, begin_anew
from rlft.learning.retained import Retained
from rlft.learning.strip_fit import _minibatches, fit_strips
from rlft.learning.strip_job import StripJob
from rlft.losses.entropy import EntropyBonus
from rlft.policy.actor_critic import ActorCritic, Normaliser
from rlft.policy.networks import MLP
from rlft.seeding import Key
from rlft.types import PolicyOut, Strip, Term

LENGTHS = (5, 3, 7, 4)


class Learner:
    """The learner without DeepSpeed: gradients add up, and `step` notes them."""

    world, state_size, device = 1, 0, torch.device("cpu")

    def __init__(self):
        torch.manual_seed(3)
        self.policy = ActorCritic(
            spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4), width=8, normalise=True
        )
        with torch.no_grad():
            self.policy.policy_head.weight.normal_(0, 0.7)
        self.forwards, self.rates, self.took_in = 0, [], 0

    def begin(self, step): ...

    @contextmanager
    def running_numbers(self):
        def take_in(obs):
            self.took_in += 1

        yield SimpleNamespace(take_in=take_in, returns=self.policy.returns)

    def forward(
        self, obs, state, action, behaviour, teacher=None, *, real, critic_only, streams=()
    ):
        self.forwards += 1
        params, value = self.policy(obs, state, real=real, critic_only=critic_only)
        d = self.policy.distribution
        kl = d.kl(behaviour, params)
        return PolicyOut(d.logp(params, action), d.entropy(params), value, behaviour_kl=kl)

    def backward(self, loss):
        loss.backward()

    def step(self, lr, critic_lr, *, critic_only=False):
        self.rates.append((lr, critic_lr, critic_only))
        return True, 1.0

    def gradient(self):
        grads = [p.grad for p in self.policy.parameters() if p.grad is not None]
        return torch.cat([g.flatten() for g in grads])


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(objective.dist, "all_reduce", lambda *args, **keys: None)


def strips_of(learner, behind=0.0):
    """Strips that a policy collected whose logits differ from the learner's by `behind` times noise."""
    rng = np.random.default_rng(0)
    found = []
    for steps in LENGTHS:
        obs = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
        action = rng.integers(0, 4, (steps, 1)).astype(np.float32)
        with torch.no_grad():
            params, value, _ = learner.policy.act({"observation": torch.from_numpy(obs)}, None)
            params = params + behind * torch.from_numpy(rng.normal(size=params.shape)).float()
            logp = learner.policy.distribution.logp(params, torch.from_numpy(action))
        reward = rng.normal(size=steps).astype(np.float32)
        arrays = (action, params.numpy(), logp.numpy(), value.numpy(), reward)
        found.append(Strip({"observation": obs}, *arrays, 0.3, None, {}))
    return found


def job(algo, budget, **changes):
    settings = {
        **{"number": np.full(len(LENGTHS), np.nan, np.float32), "terms": algo.terms},
        **{"on_policy": np.ones(len(LENGTHS), bool), "credit": algo.credit(), "epochs": 1},
        **{"coef": tuple(t.coef for t in algo.terms), "minibatches": algo.minibatches},
        **{"key": Key(0), "lr": 0.1, "critic_lr": None, "normalise": algo.normalise},
    }
    return StripJob(**{**settings, **changes}, token_budget=budget)


@pytest.mark.parametrize("normalise", ["minibatch", "batch"])
def test_credit_of_now_does_not_depend_on_how_a_minibatch_is_cut(normalise):
    algo = ControlPPO(vtrace=True, minibatches=1, normalise=normalise)
    whole, cut = Learner(), Learner()
    for learner, budget in ((whole, 1000), (cut, 7)):
        fit_strips(learner, job(algo, budget), 0, strips_of(learner, behind=0.5))
    assert whole.forwards == 1 and cut.forwards > 4
    torch.testing.assert_close(cut.gradient(), whole.gradient(), rtol=1e-4, atol=1e-6)
    plain = Learner()
    fit_strips(plain, job(algo, 1000, normalise="none"), 0, strips_of(plain, behind=0.5))
    assert not torch.allclose(plain.gradient(), whole.gradient(), rtol=0.01)


def test_standard_credit_of_now_is_that_of_the_whole_minibatch_by_hand():
    """Mean 0 and deviation 1 over all steps of the minibatch, read off a term that keeps what it saw."""
    seen = []

    def keep(out, batch):
        seen.append(batch.adv[batch.mask])
        return out.logp * 0

    algo = ControlPPO(vtrace=True, minibatches=1)
    for budget in (1000, 7):
        seen.clear()
        learner = Learner()
        given = job(algo, budget, terms=(Term("keep", keep),), coef=(1.0,))
        fit_strips(learner, given, 0, strips_of(learner, behind=0.5))
        adv = torch.cat(seen)
        assert len(adv) == sum(LENGTHS)
        assert float(adv.mean()) == pytest.approx(0, abs=1e-5)
        assert float(adv.std()) == pytest.approx(1, rel=1e-4)


def test_a_bonus_reaches_credit_of_now():
    seen = []

    def keep(out, batch):
        seen.append(batch.adv[batch.mask])
        return out.logp * 0

    found = []
    for ucb in (0.0, 2.0):
        seen.clear()
        learner = Learner()
        given = job(
            ControlPPO(vtrace=True, minibatches=1, normalise="none"),
            1000,
            **{"terms": (Term("keep", keep),), "coef": (1.0,), "ucb": ucb},
        )
        fit_strips(learner, given, 0, strips_of(learner))
        found.append(torch.cat(seen))
    torch.testing.assert_close(found[1] - found[0], torch.full((sum(LENGTHS),), 2.0))


def test_a_batch_of_several_minibatches_has_no_credit_of_now():
    with pytest.raises(ConfigError, match=r"algo\.minibatches=4; set algo\.normalise"):
        ControlPPO(vtrace=True, normalise="batch")
    assert isinstance(ControlPPO(vtrace=True).credit(), VTrace)


def test_the_kl_to_the_behaviour_policy_is_0_at_first_and_of_the_behaviour_to_the_policy():
    algo = ControlPPO(kl_coef=1.0, minibatches=1)
    learner = Learner()
    report = fit_strips(learner, job(algo, 1000), 0, strips_of(learner))
    assert abs(report.metrics["loss/behaviour_kl"]) < 1e-6  # P10
    learner = Learner()
    strips = strips_of(learner, behind=1.0)
    report = fit_strips(learner, job(algo, 1000), 0, strips)
    want = 0.0
    for strip in strips:
        obs = {"observation": torch.from_numpy(strip.obs["observation"])}
        now = torch.distributions.Categorical(logits=learner.policy.act(obs, None)[0].detach())
        then = torch.distributions.Categorical(logits=torch.from_numpy(strip.params))
        want += float(torch.distributions.kl_divergence(then, now).sum())
    assert report.metrics["loss/behaviour_kl"] == pytest.approx(want / sum(LENGTHS), rel=1e-4)


class Buffers(Retained):
    """Retention whose buffer would move every weight."""

    asked = 0

    def add(self, learner, *rest):
        self.asked += 1


def test_while_the_critic_alone_is_trained_nothing_else_is_touched():
    algo = ControlPPO(minibatches=1)
    learner, kept = Learner(), Buffers()
    fit_strips(learner, job(algo, 1000, critic_only=True), 0, strips_of(learner), retained=kept)
    assert kept.asked == 0 and learner.took_in == 0
    assert learner.rates == [(0.1, None, True)]
    fit_strips(learner, job(algo, 1000), 0, strips_of(learner), retained=kept)
    assert kept.asked == 1 and learner.took_in == 1 and learner.rates[1] == (0.1, None, False)


# -- the details of PPO that matter (algos/control_ppo.py lists them) ------------------------------


@pytest.mark.parametrize("unit", ["step", "strip"])
def test_an_epoch_holds_everything_once_in_an_order_of_its_own(unit):
    lengths = np.array(LENGTHS)
    given = job(ControlPPO(minibatches=3), 1000, unit=unit)
    count = sum(LENGTHS) if unit == "step" else len(LENGTHS)
    orders = []
    for epoch in (0, 1):
        minibatches = list(_minibatches(given, epoch, lengths))
        sizes = [len(m) for m in minibatches]
        assert len(sizes) == 3 and max(sizes) - min(sizes) <= 1
        orders.append(np.concatenate(minibatches).tolist())
        assert sorted(orders[-1]) == list(range(count))
        again = np.concatenate(list(_minibatches(given, epoch, lengths)))
        assert again.tolist() == orders[-1], "the run's key alone decides"
    if unit == "step":
        assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("normalise", ["minibatch", "batch", "none"])
def test_advantages_are_made_standard_over_what_is_said(normalise):
    seen = []

    def keep(out, batch):
        seen.append(batch.adv[batch.mask])
        return out.logp * 0

    algo = ControlPPO(minibatches=3, normalise=normalise)
    learner = Learner()
    fit_strips(
        learner, job(algo, 1000, terms=(Term("keep", keep),), coef=(1.0,)), 0, strips_of(learner)
    )
    moments = [(float(a.mean()), float(a.std())) for a in seen]
    whole = torch.cat(seen)
    standard = pytest.approx((0, 1), abs=1e-4)
    assert all(m == standard for m in moments) == (normalise == "minibatch")
    assert ((float(whole.mean()), float(whole.std())) == standard) == (normalise == "batch")


@pytest.mark.parametrize("target_kl, epochs", [(None, 4), (1e9, 4), (1e-4, 1)])
def test_a_policy_that_has_moved_far_enough_is_left_alone(target_kl, epochs):
    class Moving(Learner):
        def step(self, *args, **keys):
            with torch.no_grad():
                self.policy.policy_head.weight.add_(0.5)
                self.policy.policy_head.weight[0].sub_(1.0)
            return super().step(*args, **keys)

    learner = Moving()
    given = job(ControlPPO(minibatches=2), 1000, epochs=4, target_kl=target_kl)
    fit_strips(learner, given, 0, strips_of(learner))
    assert len(learner.rates) == 2 * epochs


def test_the_bonus_for_entropy_raises_it():
    learner = Learner()
    strips = strips_of(learner)
    alone = job(ControlPPO(), 1000, terms=(Term("e", EntropyBonus()),), coef=(1.0,), minibatches=1)

    def entropy():
        obs = {
            "observation": torch.from_numpy(np.concatenate([s.obs["observation"] for s in strips]))
        }
        with torch.no_grad():
            params = learner.policy.act(obs, None)[0]
        return float(learner.policy.distribution.entropy(params).mean())

    before = entropy()
    fit_strips(learner, alone, 0, strips)
    with torch.no_grad():
        for p in learner.policy.parameters():
            if p.grad is not None:
                p -= 0.05 * p.grad
    assert entropy() > before


def test_new_layers_are_orthogonal_with_the_gains_of_ppo():
    policy = MLP((64, 32))(spaces.Box(-1, 1, (20,), np.float32), spaces.Discrete(5))
    gains = {"policy_head": 0.01, "value_head": 1.0}
    for name, layer in policy.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        assert not layer.bias.any()
        w = layer.weight.detach().double()
        small = w @ w.T if len(w) < len(w.T) else w.T @ w
        expected = gains.get(name, 2**0.5) ** 2 * torch.eye(len(small)).double()
        torch.testing.assert_close(small, expected, rtol=1e-4, atol=1e-5)


def test_what_is_normalised_is_cut_at_ten_deviations():
    normaliser = Normaliser(2)
    normaliser.take_in(torch.tensor([[0.0, 5.0], [2.0, 7.0]]))
    said = normaliser(torch.tensor([[1.0, 6.0], [1e9, -1e9], [3.0, 6.0]]))
    torch.testing.assert_close(said, torch.tensor([[0.0, 0.0], [10.0, -10.0], [2.0, 0.0]]))


def test_returns_are_learnt_by_their_running_mean_and_deviation():
    learner = Learner()
    torch.manual_seed(3)
    space = spaces.Box(-1, 1, (3,), np.float32)
    learner.policy = ActorCritic(space, spaces.Discrete(4), width=8, normalise_returns=True)
    learner.policy.returns.mean.fill_(5.0)
    learner.policy.returns.var.fill_(4.0)
    learner.policy.returns.count.fill_(1.0)
    seen = []

    def keep(out, batch):
        seen.append((out.value[batch.mask], batch.ret[batch.mask], batch.old_value[batch.mask]))
        return out.logp * 0

    strips = strips_of(learner)
    with torch.no_grad():
        obs = {"observation": torch.from_numpy(strips[0].obs["observation"])}
        head = learner.policy.value_head(learner.policy.value_encoder(obs)).squeeze(-1)
        torch.testing.assert_close(learner.policy.value(obs), 5 + 2 * head)
    given = job(ControlPPO(), 1000, terms=(Term("keep", keep),), coef=(1.0,), minibatches=1)
    report = fit_strips(learner, given, 0, strips)
    value, ret, old = (torch.cat(x) for x in zip(*seen, strict=True))
    torch.testing.assert_close(value, old, atol=1e-5, rtol=1e-5)  # in the head's own scale
    steps, target = sum(LENGTHS), report.metrics["value/target"]
    assert float(ret.mean()) == pytest.approx((target - 5) / 2, abs=1e-5)
    mean = (1 * 5 + steps * target) / (1 + steps)
    assert float(learner.policy.returns.mean) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 1500])
def test_the_first_step_after_a_time_of_the_critic_alone_is_as_long_as_any_first_step(steps):
    policy, critic = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    groups = [{"params": [policy], "whose": "policy"}, {"params": [critic], "whose": "critic"}]
    adam = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
    engine = SimpleNamespace(basic_optimizer=adam, optimizer=adam)
    for _ in range(steps):  # as a sharded optimizer does: a gradient of 0 is stepped
        policy.grad, critic.grad = torch.zeros(4), torch.ones(4)
        adam.step()
    begin_anew(engine, "policy")
    assert not policy.any()
    policy.grad = torch.tensor([1.0, -2.0, 3.0, 0.5])
    adam.step()
    torch.testing.assert_close(policy.detach().abs(), torch.full((4,), 0.1))
    moments = adam.state[policy]["exp_avg"].clone()
    begin_anew(engine, "policy")
    assert torch.equal(adam.state[policy]["exp_avg"], moments), "what has learnt goes on"
    assert adam.state[critic]["step"] == steps + 1


@pytest.mark.parametrize("held", [True, False])
def test_what_normalises_for_frozen_weights_is_frozen_with_them(held):
    class Holding(Learner):
        running_numbers = ControlLearner.running_numbers

    learner = Holding()
    rule = Frozen(Freeze(names=["policy_encoder.*"], until=5), 0)
    rule.holds, learner._frozen = held, [rule]
    before = {n: b.clone() for n, b in learner.policy.named_buffers()}
    strips = strips_of(learner)
    fit_strips(learner, job(ControlPPO(), 1000), 0, strips)
    for name, now in learner.policy.named_buffers():
        assert torch.equal(now, before[name]) == (held and name.startswith("policy_encoder.")), name
