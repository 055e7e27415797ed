"""KL over a vocabulary and the metric of forgetting, against whole float64 tables from the formulas."""

import itertools

import pytest
import torch

from rlft.policy import distil
from rlft.policy.distil import Taught, teacher_kl
from rlft.probes import text
from rlft.probes.text import soft_cross_entropy

N, V, H = 13, 29, 8


@pytest.fixture
def case(monkeypatch):
    """(hidden, weight, their hidden, their weight), with tiles so small that there are several."""
    monkeypatch.setattr(distil, "_TILE_BYTES", 5 * 4 * V)
    monkeypatch.setattr(text, "_TILE_BYTES", 5 * 4 * V)
    torch.manual_seed(0)
    return torch.randn(N, H), torch.randn(V, H), torch.randn(N, H + 2), torch.randn(V, H + 2)


def slow(hidden, weight, their_hidden, their_weight, temperature, top_k):
    q = torch.softmax(hidden.double() @ weight.double().T / temperature, -1)
    p = torch.softmax(their_hidden.double() @ their_weight.double().T / temperature, -1)
    if top_k:
        top = p.topk(top_k).indices
        p, q = p.gather(1, top), q.gather(1, top)
        p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p, q))
    return (p * (p.log() - q.log())).sum(1)


@pytest.mark.parametrize("top_k", [0, 1, 5, V - 1, V + 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_are_those_of_the_whole_table(case, top_k, temperature):
    hidden, weight, theirs, their_weight = case
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    scale = torch.linspace(-1, 2, N)
    kl = teacher_kl(hidden, weight, Taught(theirs, their_weight, top_k), temperature)
    found = torch.autograd.grad((kl * scale).sum(), (hidden, weight))
    k = top_k if top_k < V else 0
    expected = slow(hidden, weight, theirs, their_weight, temperature, k)
    slopes = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-5)
    for ours, their in zip(found, slopes, strict=True):
        torch.testing.assert_close(ours, their.to(ours.dtype), rtol=1e-3, atol=1e-4)


def test_the_top_tokens_bound_the_whole_from_below_and_rise_to_it(case):
    hidden, weight, theirs, their_weight = case
    kls = [teacher_kl(hidden, weight, Taught(theirs, their_weight, k)) for k in (1, 3, 9, V - 1, 0)]
    for less, more in itertools.pairwise(kls):
        assert bool((more - less > -1e-5).all())
    assert float(torch.stack(kls).min()) > -1e-6


def test_a_policy_that_is_its_teacher_has_kl_0_and_no_gradient(case):
    hidden, weight = (x.clone().requires_grad_() for x in case[:2])
    for k in (0, 4):
        kl = teacher_kl(hidden, weight, Taught(hidden.detach(), weight.detach(), k))
        grads = torch.autograd.grad(kl.sum(), (hidden, weight))
        assert float(kl.detach().abs().max()) < 1e-5
        assert max(float(g.abs().max()) for g in grads) < 1e-4


def test_another_vocabulary_is_refused(case):
    hidden, weight, theirs, their_weight = case
    with pytest.raises(ValueError, match="the teacher has 28 tokens on 13 positions"):
        teacher_kl(hidden, weight, Taught(theirs, their_weight[1:]))


def test_the_metric_of_forgetting_is_the_entropy_at_the_base_and_above_it_elsewhere(case):
    hidden, weight, theirs, their_weight = case
    tokens = torch.arange(N)
    same, entropy, _ = soft_cross_entropy(theirs, their_weight, theirs, their_weight, tokens)
    torch.testing.assert_close(same, entropy)
    ce, again, nll = soft_cross_entropy(theirs, their_weight, hidden, weight, tokens)
    assert torch.equal(again, entropy)
    assert bool((ce >= entropy - 1e-5).all())
    p = torch.softmax(theirs.double() @ their_weight.double().T, -1)
    q = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    torch.testing.assert_close(ce.double(), -(p * q).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nll.double(), -q[torch.arange(N), tokens], rtol=1e-4, atol=1e-4)
    kl = slow(hidden, weight, theirs, their_weight, 1.0, 0)
    torch.testing.assert_close((ce - entropy).double(), kl, rtol=1e-3, atol=1e-4)


def test_bfloat16_hidden_states_are_compared_in_float32():
    torch.manual_seed(0)
    hidden = torch.randn(4, H).bfloat16()
    weight = torch.randn(V, H).bfloat16()
    found = soft_cross_entropy(hidden, weight, hidden, weight, torch.zeros(4, dtype=torch.int64))
    assert all(x.dtype == torch.float32 for x in found)
