"""The critic's loss, GAE with a KL penalty, process supervision and their whitening, against loops."""

from __future__ import annotations

import math
import socket
import statistics

import numpy as np
import pytest
import torch
import torch.distributed as dist
from loss_cases import LENGTHS, ROWS, WIDTH, case, decisions, finite_differences

from rlft.batch import Inputs
from rlft.credit.decision import GAE, Returns, Seen
from rlft.credit.group import group_relative
from rlft.credit.steps import process
from rlft.credit.token import process_supervision
from rlft.errors import ConfigError
from rlft.learning.appraisal import Micro, appraise
from rlft.losses.critic import ValueLoss
from rlft.types import Batch, PolicyOut


@pytest.fixture(scope="module", autouse=True)
def process_group():
    if dist.is_initialized():  # by an engine or a replay, in an earlier test
        yield
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def drawn(seed: int) -> tuple[torch.Tensor, ...]:
    """Mask, and two numbers for each decision, NaN where masked: float64."""
    rng = np.random.default_rng(seed)
    mask = torch.tensor([[t < n for t in range(WIDTH)] for n in LENGTHS])
    pair = (torch.tensor(rng.normal(0, 1, (ROWS, WIDTH))) for _ in range(2))
    return mask, *(x.masked_fill(~mask, math.nan) for x in pair)


# -- the loss ------------------------------------------------------------------------------------


def slow_value_loss(value, old, ret, clip):
    """Sum over decisions, one at a time, from the formula."""
    total = 0.0
    for at in decisions():
        errors = [(value[at] - ret[at]) ** 2]
        if clip is not None:
            errors.append((min(max(value[at], old[at] - clip), old[at] + clip) - ret[at]) ** 2)
        total += max(errors) / 2
    return total


def value_batch(seed: int) -> tuple[PolicyOut, Batch]:
    _, batch = case(seed)
    mask, value, old = drawn(seed)
    ret = drawn(seed + 100)[1]
    batch = Batch(
        *(batch.mask, batch.weight, batch.adv, batch.sample_logp, batch.old_logp, batch.on_policy),
        ret=ret,
        old_value=old,
    )
    blank = torch.zeros(mask.shape)
    return PolicyOut(blank, blank, value.requires_grad_()), batch


@pytest.mark.parametrize("clip", [0.2, 1.0, None])
@pytest.mark.parametrize("seed", range(5))
def test_the_value_loss_and_its_gradient(seed, clip):
    out, batch = value_batch(seed)
    loss_BT, diagnostics = ValueLoss(clip)(out, batch)
    loss_BT.sum().backward()
    old, ret = batch.old_value.numpy(), batch.ret.numpy()
    value = out.value.detach().numpy()
    assert float(loss_BT.detach().sum()) == pytest.approx(slow_value_loss(value, old, ret, clip))
    slow = finite_differences(lambda v: slow_value_loss(v, old, ret, clip), value)
    np.testing.assert_allclose(out.value.grad.numpy(), slow, atol=1e-6)
    assert not loss_BT[~batch.mask].any()
    held = [at for at in decisions() if clip is not None and out.value.grad[at] == 0]
    assert float(diagnostics["value/clip_fraction"].sum()) == len(held)


def test_a_value_clip_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="value_clip"):
        ValueLoss(0.0)


# -- credit --------------------------------------------------------------------------------------


def slow_gae(reward, value, gamma, lam):
    """A_t = sum over l of (gamma lam)^l d_(t+l), for one row; equation 16."""
    n = len(reward)
    errors = [reward[t] + gamma * (value[t + 1] if t + 1 < n else 0.0) - value[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.99, 0.95)])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gae_with_a_penalty_in_the_reward(gamma, lam, kl_coef):
    mask, reward, value = drawn(1)
    _, old, ref = drawn(2)
    seen = Seen(mask, reward.masked_fill(~mask, 0), value, old, ref)
    adv_BT, ret_BT = GAE(gamma, lam, kl_coef)(seen)
    for b, n in enumerate(LENGTHS):
        lowered = [float(reward[b, t] - kl_coef * (old[b, t] - ref[b, t])) for t in range(n)]
        expected = slow_gae(lowered, value[b, :n].tolist(), gamma, lam)
        np.testing.assert_allclose(adv_BT[b, :n].numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(ret_BT[b, :n], adv_BT[b, :n] + value[b, :n])
        assert not adv_BT[b, n:].any()


def micro_of(rows, reward_at):
    mask = torch.tensor([[t < LENGTHS[r] for t in range(max(LENGTHS))] for r in rows])
    if not rows:
        mask = torch.zeros(1, 1, dtype=torch.bool)
    blank = torch.zeros(mask.shape)
    return Micro(tuple(rows), Inputs(blank.long(), blank.long(), mask, blank))


class TableCritic:
    """Says row r, decision t is worth (r + 1) / (t + 2): from a table in place of a model."""

    def __init__(self, micros):
        self.values = {
            id(m.inputs): torch.tensor(
                [[(r + 1) / (t + 2) for t in range(m.inputs.mask.shape[1])] for r in m.rows or [0]]
            )
            * m.inputs.mask
            for m in micros
        }

    def forward(self, inputs):
        return self.values[id(inputs)]


@pytest.mark.parametrize("split", [[[0, 1, 2, 3, 4]], [[0], [3, 1], [], [4, 2]]])
def test_advantages_are_whitened_over_all_decisions_however_rows_are_split(split):
    micros = [micro_of(rows, None) for rows in split]
    number = [1.0, 0.0, -1.0, 2.0, 0.5]
    steps = {0: ((1, 0.25),), 3: ((0, -1.0), (99, 3.0))}  # 99: beyond the end counts at the end
    found = appraise(GAE(0.9, 0.8), [micros], 1, number, steps, TableCritic(micros))
    adv, ret, val = {}, {}, {}
    for r, n in enumerate(LENGTHS):
        reward = [0.0] * n
        reward[-1] = number[r]
        for at, more in steps.get(r, ()):
            reward[min(at, n - 1)] += more
        val[r] = [(r + 1) / (t + 2) for t in range(n)]
        adv[r] = slow_gae(reward, val[r], 0.9, 0.8)
        ret[r] = [a + v for a, v in zip(adv[r], val[r], strict=True)]
    every = [a for row in adv.values() for a in row]
    mean, spread = statistics.fmean(every), statistics.stdev(every)
    for micro in micros:
        for place, r in enumerate(micro.rows):
            expected = [(a - mean) / (spread + 1e-6) for a in adv[r]]
            np.testing.assert_allclose(
                micro.adv[place, : LENGTHS[r]], expected, rtol=1e-5, atol=1e-6
            )
            assert not micro.adv[place, LENGTHS[r] :].any()
            np.testing.assert_allclose(micro.ret[place, : LENGTHS[r]], ret[r], rtol=1e-5)
    targets = [x for row in ret.values() for x in row]
    errors = [t - v for t, v in zip(targets, (x for row in val.values() for x in row), strict=True)]
    share = 1 - statistics.variance(errors) / statistics.variance(targets)
    assert found["value/explained_variance"] == pytest.approx(share, rel=1e-5)
    assert found["value/target"] == pytest.approx(statistics.fmean(targets), rel=1e-5)


def test_targets_that_do_not_vary_have_no_explained_variance():
    micros = [micro_of([0, 2], None)]
    found = appraise(GAE(), [micros], 1, [0.3, 0, 0.3], {}, TableCritic(micros))
    assert "value/explained_variance" not in found
    assert found["value/target"] == pytest.approx(0.3)


# -- process supervision -------------------------------------------------------------------------


def test_steps_of_answers_give_the_advantages_of_process_supervision():
    """`process` on the driver and `Returns` on the ranks together are the paper's formula."""
    steps = [((3, 1.0), (5, 0.0)), ((2, 0.5),), ((1, 0.0), (2, 1.0), (7, 1.0)), ((4, 0.0),)]
    ends = [[0, 2], [0], [1, 3, 5], [2]]  # the tokens at which these steps end
    group_B = torch.tensor([0, 0, 0, 1])
    given = process(steps, group_B)
    flat = [v for row in steps[:3] for _, v in row]
    mean, spread = statistics.fmean(flat), statistics.stdev(flat)
    reward_BS, end_BS = torch.zeros(4, 3), torch.full((4, 3), -1)
    for b, (row, at) in enumerate(zip(steps, ends, strict=True)):
        placed = torch.zeros(1, 6)
        for (_, z), t in zip(given.rows[b], at, strict=True):
            placed[0, t] += z
        adv_BT, _ = Returns()(Seen(torch.ones(1, 6, dtype=torch.bool), placed))
        for t in range(6):
            later = [v for (_, v), e in zip(row, at, strict=True) if e >= t]
            expected = sum((v - mean) / (spread + 1e-6) for v in later) if b < 3 else 0.0
            assert float(adv_BT[0, t]) == pytest.approx(expected, abs=1e-5)
        for s, ((_, v), t) in enumerate(zip(row, at, strict=True)):
            reward_BS[b, s], end_BS[b, s] = v, t
        whole = process_supervision(reward_BS, end_BS, group_B, 6)
        if b == 3:
            np.testing.assert_allclose(whole[3], adv_BT[0], atol=1e-5)


def test_one_step_an_answer_is_outcome_supervision():
    reward_B = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    group_B = torch.tensor([0, 0, 0, 1, 1])
    given = process([((9, float(r)),) for r in reward_B], group_B)
    np.testing.assert_allclose(
        [row[0][1] for row in given.rows], group_relative(reward_B, group_B), rtol=1e-6
    )
    kept = given[torch.tensor([True, False, True, False, False])]
    assert kept.rows == (given.rows[0], given.rows[2])
