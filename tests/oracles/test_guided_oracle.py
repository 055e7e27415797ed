"""Losses on given tokens against loops written from LUFFY, SRFT, UFT and Prefix-RFT, and golden values."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rlft.errors import ConfigError
from rlft.losses import ClippedSurrogate
from rlft.losses.corrected import Corrected
from rlft.losses.guided import (
    Guided,
    LikelihoodRatio,
    ReferenceLikelihood,
    SignedLikelihood,
    given_mask,
)
from rlft.types import Batch, PolicyOut

# Row 0: sampled; row 1: demonstration; row 2: prefix of three, then sampled; row 3: padding.
KIND = ["ssss.", "ddd..", "dddss", "....."]


def case(seed=0):
    gen = np.random.default_rng(seed)
    kind = np.array([list(row) for row in KIND])
    shape = kind.shape
    mask = torch.tensor(kind != ".")
    logp = torch.tensor(gen.normal(-1.5, 0.7, shape), dtype=torch.float32, requires_grad=True)
    old = logp.detach() + torch.tensor(gen.normal(0, 0.1, shape), dtype=torch.float32)
    sample = old + torch.tensor(gen.normal(0, 0.1, shape), dtype=torch.float32)
    sample = torch.where(torch.tensor(kind == "s"), sample, torch.nan)
    adv = torch.tensor(gen.normal(0, 1, (shape[0], 1)), dtype=torch.float32).expand(shape)
    entropy = torch.tensor(gen.uniform(0.1, 2, shape), dtype=torch.float32)
    on_policy = torch.tensor([True, False, False, False])
    batch = Batch(mask, mask.float(), adv, sample, old, on_policy)
    return kind, PolicyOut(logp, entropy), batch


def grad(loss, out):
    return torch.autograd.grad(loss.sum(), out.logp, retain_graph=True)[0]


def test_given_tokens_are_those_the_engine_said_nothing_of():
    kind, _, batch = case()
    assert torch.equal(given_mask(batch), torch.tensor(kind == "d"))


def test_a_missing_log_prob_of_the_policy_s_own_row_is_no_given_token():
    _, out, batch = case()
    broken = batch.sample_logp.clone()
    broken[0, 1] = torch.nan
    batch = dataclasses.replace(batch, sample_logp=broken)
    assert not given_mask(batch)[0].any()
    loss, _ = Guided()(out, batch)
    assert bool(loss[0, 1].isnan()), "the learner is to report it"


@pytest.mark.parametrize("gamma", [0.1, 0.5, None])
def test_luffy_on_given_tokens_and_ppo_on_the_others(gamma):
    kind, out, batch = case()
    loss, named = Guided(reference=LikelihoodRatio(gamma))(out, batch)
    expected = np.zeros(kind.shape)
    for b, t in np.ndindex(kind.shape):
        a = float(batch.adv[b, t])
        lp, old = float(out.logp.detach()[b, t]), float(batch.old_logp[b, t])
        if kind[b, t] == "d":
            p = math.exp(lp)
            expected[b, t] = -a * (p if gamma is None else p / (p + gamma))
        elif kind[b, t] == "s":
            w = math.exp(lp - old)
            weight = min(math.exp(old - float(batch.sample_logp[b, t])), 2.0)
            expected[b, t] = -min(w * a, min(max(w, 0.8), 1.2) * a) * weight
    assert torch.allclose(loss, torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert bool(grad(loss, out).isfinite().all())
    assert torch.equal(~named["ratio"].isnan(), torch.tensor(kind == "s"))
    assert torch.equal(~named["reference/probability"].isnan(), torch.tensor(kind == "d"))


@pytest.mark.parametrize(
    "p, weight", [(0.01, 0.0826), (0.05, 0.2222), (0.1, 0.25), (0.5, 0.1389), (0.9, 0.09)]
)
def test_luffy_s_gradient_weight(p, weight):
    logp = torch.tensor([[math.log(p)]], requires_grad=True)
    one = torch.ones(1, 1)
    batch = Batch(
        one.bool(), one, one, one * torch.nan, one * torch.nan, torch.tensor([False])
    )  # old_logp is never read
    loss, _ = LikelihoodRatio(0.1)(PolicyOut(logp, one), batch)
    assert float(-grad(loss, PolicyOut(logp, one))) == pytest.approx(weight, abs=5e-5)


def test_tempsamp_s_reference_has_ratio_one_at_first_and_no_correction():
    _, out, batch = case()
    batch = dataclasses.replace(batch, old_logp=out.logp.detach())
    loss, named = Guided()(out, batch)
    given = given_mask(batch)
    assert torch.equal(loss[given], -batch.adv[given])
    assert bool((named["reference/ratio"][given] == 1).all())
    assert "is_weight" in named and "reference/is_weight" not in named
    assert torch.allclose(grad(loss, out)[given], -batch.adv[given])


def test_without_given_tokens_it_is_the_policy_s_loss_bit_for_bit():
    _, out, batch = case()
    batch = dataclasses.replace(
        batch,
        sample_logp=batch.old_logp + 0.1,
        on_policy=torch.tensor([True, True, True, False]),
    )
    plain, named = Corrected(ClippedSurrogate())(out, batch)
    loss, found = Guided(reference=LikelihoodRatio())(out, batch)
    assert torch.equal(loss, plain)
    assert torch.equal(grad(loss, out), grad(plain, out))
    for name, value in named.items():
        assert torch.equal(found[name][batch.mask], value[batch.mask])


def test_a_prefix_shared_by_rows_counts_once():
    _, out, batch = case()
    whole, _ = Guided()(out, batch)
    half, _ = Guided(prefix_weight=0.5)(out, batch)
    given = given_mask(batch)
    assert torch.allclose(half[given], whole[given] / 2)
    assert torch.equal(half[~given], whole[~given])


@pytest.mark.parametrize("share, kept", [(0.0, 0), (0.2, 1), (0.5, 2), (1.0, 3)])
def test_only_the_most_uncertain_prefix_tokens_learn(share, kept):
    _, out, batch = case()
    batch = dataclasses.replace(batch, old_logp=out.logp.detach())
    loss, _ = Guided(top_entropy=share)(out, batch)
    for row in (1, 2):
        learning = (grad(loss, out)[row] != 0) & given_mask(batch)[row]
        best = out.entropy[row, :3].argsort(descending=True)[:kept].tolist()
        assert sorted(learning.nonzero().flatten().tolist()) == sorted(best)
    sampled = batch.mask & ~given_mask(batch)
    assert bool((grad(loss, out)[sampled] != 0).all())


def test_no_loss_on_given_tokens_when_there_is_none():
    _, out, batch = case()
    loss, _ = Guided(reference=None)(out, batch)
    assert not grad(loss, out)[given_mask(batch)].any()


@pytest.mark.parametrize(
    "entropy, imitate, explore", [(1.0, 0.1839, 0.2718), (0.2, 0.4094, 0.1221)]
)
def test_srft_s_weights(entropy, imitate, explore):
    """0.5 exp(-H) on the demonstration, 0.1 exp(H) on a good sample, 1 on a bad one."""
    kind, out, batch = case()
    out = PolicyOut(out.logp, torch.full_like(out.entropy, entropy))
    batch = dataclasses.replace(batch, adv=torch.ones_like(batch.adv))
    loss = 0.5 * ReferenceLikelihood(entropy_weight=True)(out, batch)
    given = torch.tensor(kind == "d")
    assert torch.allclose(-grad(loss, out)[given], torch.tensor(imitate), atol=5e-5)
    assert not grad(loss, out)[~given].any()
    good = SignedLikelihood()(out, batch)
    assert torch.allclose(-grad(good, out)[batch.mask], torch.tensor(explore), atol=5e-5)
    bad = SignedLikelihood()(out, dataclasses.replace(batch, adv=-batch.adv))
    assert torch.allclose(grad(bad, out)[batch.mask], torch.tensor(1.0))


def test_srft_stops_pushing_what_is_unlikely_already():
    _, out, batch = case()
    low = PolicyOut((out.logp.detach() - 20).requires_grad_(), out.entropy)
    bad = SignedLikelihood()(low, dataclasses.replace(batch, adv=-torch.ones_like(batch.adv)))
    assert not grad(bad, low).any()


def test_row_entropy_does_not_depend_on_how_rows_were_batched():
    _, out, batch = case()
    whole = ReferenceLikelihood(entropy_weight=True)(out, batch)

    def part(rows):
        some = {
            f.name: getattr(batch, f.name)[rows]
            for f in dataclasses.fields(batch)
            if getattr(batch, f.name) is not None
        }
        return ReferenceLikelihood(True)(
            PolicyOut(out.logp[rows], out.entropy[rows]), Batch(**some)
        )

    assert torch.equal(whole, torch.cat([part(slice(0, 1)), part(slice(1, 4))]))


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match="gamma must be positive"):
        LikelihoodRatio(0.0)
    with pytest.raises(ConfigError, match="top_entropy"):
        Guided(top_entropy=1.5)


@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(1, 2), slice(3, 4)], ids=["sampled", "given", "padding"]
)
def test_every_micro_batch_reports_the_same_names(rows):
    """Ranks add diagnostics up by position: one that left a name out would be added to another's."""
    _, out, batch = case()
    some = {
        f.name: getattr(batch, f.name)[rows]
        for f in dataclasses.fields(batch)
        if getattr(batch, f.name) is not None
    }
    loss = Guided(reference=LikelihoodRatio())
    _, named = loss(PolicyOut(out.logp[rows], out.entropy[rows]), Batch(**some))
    assert named.keys() == loss(out, batch)[1].keys()
