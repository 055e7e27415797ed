"""Stabilisers of TempSamp-R1 against worked examples, and a loop written from the paper's equations."""

import math
import statistics
from functools import partial

import pytest
import torch

from rlft import registry
from rlft.credit import group_relative
from rlft.credit.shaping import Scored, anchor, diagnostics, downscale, joint, shape
from rlft.errors import ConfigError, PluginError

CREDIT = partial(group_relative, eps=0.0)


def scored(*samples, reference=1.0, rest=None):
    """One group: the samples, then one reference."""
    task = torch.tensor([*samples, reference], dtype=torch.float64)
    rest_B = torch.zeros_like(task) if rest is None else torch.tensor(rest, dtype=torch.float64)
    sampled = torch.tensor([True] * len(samples) + [False])
    return Scored(task, rest_B, torch.zeros(len(task), dtype=torch.int64), sampled)


@pytest.mark.parametrize(
    "reward, expected",
    [
        (0.0, 0.086764),
        (0.1, 0.210020),
        (0.25, 0.373264),
        (0.5, 0.596390),
        (0.7, 0.738793),
        (0.8, 0.8),
        (0.9, 0.800953),
        (1.0, 0.801823),
    ],
)
def test_shaped_values(reward, expected):
    assert float(shape().shaped(torch.tensor(reward, dtype=torch.float64))) == pytest.approx(
        expected, abs=1e-6
    )


SAMPLES = [(0.6, 0.7, 0.5), (0.5, 0.55, 0.6), (0.85, 0.9, 0.95), (0.1, 0.1, 0.1)]
WORKED = {
    "joint": [
        (-0.463, 0, -0.926, 1.389),
        (-0.711, -0.492, -0.273, 1.476),
        (-1.162, -0.387, 0.387, 1.162),
        (-0.5, -0.5, -0.5, 1.5),
    ],
    "shape": [
        (-0.350, 0.416, -1.196, 1.129),
        (-0.892, -0.463, -0.055, 1.410),
        (-1.177, -0.369, 0.403, 1.143),
        (-0.5, -0.5, -0.5, 1.5),
    ],
    "anchor": [(0, 1, -1, 1.2), (-1, 0, 1, 1.2), (-1, 0, 1, 1.2), (0, 0, 0, 0)],
    "downscale": [
        (-0.387, 0.387, -1.162, 1.162),
        (-0.856, -0.475, -0.095, 1.426),
        (-0.387, 0.387, 1.162, -1.162),
        (-0.5, -0.5, -0.5, 1.5),
    ],
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_examples(name):
    stabilise = registry.build("stabiliser", name)
    for samples, expected in zip(SAMPLES, WORKED[name], strict=True):
        # Shaped rewards near the top differ by 0.0006, where even the usual eps of 1e-6 shows.
        adv = stabilise(scored(*samples), group_relative)
        assert adv.tolist() == pytest.approx(expected, abs=6e-4), samples


def paper(name, samples, reference):
    """Equations 2 to 4 for one group, one number at a time."""

    def z(values):
        mean, sd = statistics.fmean(values), statistics.stdev(values)
        return [(v - mean) / sd for v in values]

    def soft(r):
        if r >= 0.8:
            return 0.8 + 0.01 * math.log(r - 0.8 + 1)
        return 0.8 - (math.exp(0.8 - r) - 1) / (math.e - 1)

    if name == "anchor":
        own = z(samples)
        return [*own, 1.2 * max(own)]
    if name == "downscale":
        return z([*samples, min(reference, 0.8)])
    if name == "shape":
        return z([soft(r) for r in [*samples, reference]])
    return z([*samples, reference])


@pytest.mark.parametrize("name", WORKED)
@pytest.mark.parametrize("seed", range(10))
def test_several_groups_in_any_order_agree_with_the_paper(name, seed):
    gen = torch.Generator().manual_seed(seed)
    rows, expected = [], []
    for group in range(4):
        samples = torch.rand(3, generator=gen, dtype=torch.float64).tolist()
        reference = float(torch.rand((), generator=gen, dtype=torch.float64))
        rows += [(r, group, True) for r in samples] + [(reference, group, False)]
        expected += paper(name, samples, reference)
    order = torch.randperm(len(rows), generator=gen).tolist()
    task, group, own = zip(*(rows[i] for i in order), strict=True)
    got = registry.build("stabiliser", name)(
        Scored(
            torch.tensor(task, dtype=torch.float64),
            torch.zeros(len(rows), dtype=torch.float64),
            torch.tensor(group),
            torch.tensor(own),
        ),
        CREDIT,
    )
    assert got.tolist() == pytest.approx([expected[i] for i in order], abs=1e-5)


@pytest.mark.parametrize("name", ["joint", "anchor", "downscale"])
def test_without_a_reference_it_is_the_credit(name):
    rows = scored(0.1, 0.4, 0.9, 0.95)
    alone = Scored(rows.task[:4], rows.rest[:4], rows.group[:4], rows.sampled[:4])
    adv = registry.build("stabiliser", name)(alone, CREDIT)
    assert torch.equal(adv, CREDIT(alone.reward, alone.group))


def test_anchoring_leaves_samples_as_grpo_on_them_alone():
    rows = scored(0.2, 0.3, 0.9, reference=0.7)
    own = CREDIT(rows.reward[:3], rows.group[:3])
    assert torch.equal(anchor()(rows, CREDIT)[:3], own)


def test_anchoring_gives_a_floor_only_when_asked():
    assert anchor()(scored(0.1, 0.1, 0.1), CREDIT)[-1] == 0
    assert anchor(least=0.5)(scored(0.1, 0.1, 0.1), CREDIT).tolist() == [0, 0, 0, 0.5]


def test_shaping_leaves_other_terms_alone():
    rows = scored(0.2, 0.5, 0.9, rest=[0.1, 0.0, 0.1, 0.1])
    shaped = shape().shaped(rows.task) + rows.rest
    assert torch.equal(shape()(rows, CREDIT), CREDIT(shaped, rows.group))
    # Shaping the sum instead would squeeze the format bonus of a good answer to a hundredth.
    assert not torch.allclose(
        shape()(rows, CREDIT), CREDIT(shape().shaped(rows.reward), rows.group)
    )


def test_shaping_rises_and_has_no_jump():
    r = torch.linspace(0, 1.2, 2401, dtype=torch.float64)
    steps = shape().shaped(r).diff()
    assert bool((steps > 0).all())
    assert float(steps.max()) < 1.2952 * 0.0005 * 1.01, "steeper than the slope at 0"


def test_downscaling_does_not_raise_a_poor_reference():
    rows = scored(0.2, 0.5, 0.9, reference=0.3)
    assert torch.equal(downscale()(rows, CREDIT), joint(rows, CREDIT))


def test_equal_samples_are_beyond_help():
    for samples in ((0.1, 0.1, 0.1), (0.7, 0.7, 0.7)):
        for stabilise in (joint, shape(), downscale(share=0.9)):
            adv = stabilise(scored(*samples), CREDIT)
            assert adv.tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-6)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "downscale", "share": 0}, "0 < share"),
        ({"name": "anchor", "scale": -1}, "at least 0"),
        ({"name": "shape", "below": 0}, "below > 0"),
        ({"name": "shape", "tua": 0.8}, "Did you mean 'tau'"),
    ],
)
def test_wrong_values_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("stabiliser", spec)


def test_an_unknown_stabiliser_names_the_nearest():
    with pytest.raises(PluginError, match="Did you mean 'anchor'"):
        registry.build("stabiliser", "ancor")


def test_diagnostics_of_worked_groups():
    first, second = scored(0.5, 0.55, 0.6), scored(0.85, 0.9, 0.95)
    rows = Scored(
        torch.cat([first.task, second.task]),
        torch.cat([first.rest, second.rest]),
        torch.cat([first.group, second.group + 1]),
        torch.cat([first.sampled, second.sampled]),
    )
    found = diagnostics(rows, joint(rows, CREDIT), CREDIT)
    assert found["reference/rows"] == 2
    assert found["reference/dominates"] == 1.0
    assert found["reference/no_positive"] == 0.5, "the first group's samples are all negative"
    # Alone the signs are - 0 + in both groups; joined - - - and - - +.
    assert found["reference/sign_flips"] == pytest.approx((2 + 1) / 6)
    assert found["reference/shift"] == pytest.approx((0.1125 / 0.05 + 0.025 / 0.05) / 2)
    assert found["reference/abs_adv"] == pytest.approx((1.476 + 1.162) / 2, abs=1e-3)
    anchored = diagnostics(rows, anchor()(rows, CREDIT), CREDIT)
    assert anchored["reference/sign_flips"] == 0
    assert anchored["reference/no_positive"] == 0


def test_diagnostics_without_references_count_none():
    rows = scored(0.1, 0.2, 0.3)
    alone = Scored(rows.task[:3], rows.rest[:3], rows.group[:3], rows.sampled[:3])
    assert diagnostics(alone, CREDIT(alone.reward, alone.group), CREDIT) == {"reference/rows": 0.0}
