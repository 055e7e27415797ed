"""A fit on strips in this process: what minibatches, cuts and terms do to the gradient."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from algos.control_ppo import ControlPPO
from rlft.credit.vtrace import VTrace
from rlft.errors import ConfigError
from rlft.learning import objective
from rlft.learning.retained import Retained
from rlft.learning.strip_fit import fit_strips
from rlft.learning.strip_job import StripJob
from rlft.policy.actor_critic import ActorCritic
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

    def take_in(self, obs):
        self.took_in += 1

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
