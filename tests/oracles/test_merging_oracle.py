"""Merges against their formulas, written out in float64 numpy, and the properties the papers state."""

import numpy as np
import pytest
import torch

from rlft import registry
from rlft.merging.layers import places
from rlft.merging.method import Place, Versions


def versions(*arrays):
    return Versions([lambda a=a: torch.tensor(a, dtype=torch.float32) for a in arrays])


def mixed(name, *arrays, depth=1.0, **settings):
    method = registry.build("merge", {"name": name, **settings})
    return method.mixed(versions(*arrays), Place("w", depth)).numpy()


@pytest.fixture
def three():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(5, 7))
    return [base.astype(np.float32)] + [
        (base + 0.1 * rng.normal(size=(5, 7))).astype(np.float32) for _ in range(2)
    ]


def test_wise_ft_is_the_line_and_exact_at_its_ends(three):
    base, tuned, _ = three
    assert np.array_equal(mixed("wise_ft", base, tuned, alpha=0.0), base)
    assert np.array_equal(mixed("wise_ft", base, tuned, alpha=1.0), tuned)
    expected = base + 0.3 * (tuned.astype(np.float64) - base)
    assert np.allclose(mixed("wise_ft", base, tuned, alpha=0.3), expected, atol=1e-6)


def test_lines_scales_with_depth(three):
    base, tuned, _ = three
    for depth in (0.0, 0.25, 1.0):
        expected = base + (0.2 + 0.6 * depth) * (tuned.astype(np.float64) - base)
        found = mixed("lines", base, tuned, depth=depth, alpha=0.2, beta=0.6)
        assert np.allclose(found, expected, atol=1e-6)
        assert np.array_equal(mixed("lines", base, tuned, depth=depth, alpha=1.0, beta=0.0), tuned)


def test_layers_and_what_lies_around_them():
    names = [
        "model.embed_tokens.weight",
        *[f"model.layers.{i}.mlp.up_proj.weight" for i in range(5)],
        "model.norm.weight",
        "lm_head.weight",
        "transformer.wte.weight",
        "vision.blocks.0.experts.7.weight",
    ]
    depth = {n: p.depth for n, p in places(names).items()}
    # (l - 1) / (L - 1) for l = 1 ... 5
    assert [depth[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(5)] == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]
    assert depth["model.embed_tokens.weight"] == depth["transformer.wte.weight"] == 0
    assert depth["model.norm.weight"] == depth["lm_head.weight"] == 1
    assert depth["vision.blocks.0.experts.7.weight"] == 1  # the only layer of its stack


def stock(base, *tuned):
    """The paper's formula, one angle after the other."""
    tasks = [(t.astype(np.float64) - base).ravel() for t in tuned]
    n, cosines = len(tasks), []
    for i in range(n):
        for j in range(i):
            length = np.linalg.norm(tasks[i]) * np.linalg.norm(tasks[j])
            cosines.append(tasks[i] @ tasks[j] / length)
    c = min(max(np.mean(cosines), 0), 1)
    t = n * c / (1 + (n - 1) * c)
    return t * np.mean(tuned, axis=0) + (1 - t) * base


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_the_paper_s_formula(count):
    rng = np.random.default_rng(count)
    base, common = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    tuned = [base + common + rng.normal(size=(6, 4)) for _ in range(count)]
    base, *tuned = [x.astype(np.float32) for x in (base, *tuned)]
    assert np.allclose(mixed("model_stock", base, *tuned), stock(base, *tuned), atol=1e-6)


def test_model_stock_of_one_task_vector_is_it_and_of_orthogonal_or_opposed_ones_the_base(three):
    base, tuned, _ = three
    assert np.allclose(mixed("model_stock", base, tuned, tuned), tuned, atol=1e-6)
    tasks = np.zeros((2, 5, 7), dtype=np.float32)
    tasks[0, 0, 0], tasks[1, 1, 1] = 1, 1
    assert np.array_equal(mixed("model_stock", base, base + tasks[0], base + tasks[1]), base)
    opposed = mixed("model_stock", base, base + tasks[0], base - tasks[0])
    assert np.array_equal(opposed, base)
    assert np.array_equal(mixed("model_stock", base, base, base), base)  # no task vector at all


def test_lo_fi_is_the_mean_and_of_one_the_model(three):
    expected = np.mean([t.astype(np.float64) for t in three], axis=0)
    assert np.allclose(mixed("lo_fi", *three), expected, atol=1e-6)
    assert np.array_equal(mixed("lo_fi", three[0]), three[0])
    assert np.allclose(mixed("lo_fi", three[0], three[0]), three[0])


def test_ema_weighs_the_newest_most(three):
    a, b, c = (t.astype(np.float64) for t in three)
    expected = 0.25 * a + 0.25 * b + 0.5 * c
    assert np.allclose(mixed("ema", *three, decay=0.5), expected, atol=1e-6)
    assert np.array_equal(mixed("ema", *three, decay=0.0), three[2])
    assert np.array_equal(mixed("ema", *three, decay=1.0), three[0])


def test_slerp_keeps_lengths_and_is_exact_at_its_ends(three):
    _, a, b = three
    assert np.array_equal(mixed("slerp", a, b, t=0.0), a)
    assert np.array_equal(mixed("slerp", a, b, t=1.0), b)
    rng = np.random.default_rng(1)
    x, y = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 5, 7)))
    for t in (0.1, 0.5, 0.8):
        found = mixed("slerp", x, y, t=t)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
        whole = np.arccos((x * y).sum())
        assert np.arccos((found * x).sum()) == pytest.approx(t * whole, abs=1e-5)
    assert np.allclose(mixed("slerp", a, a, t=0.4), a)
    assert np.allclose(mixed("slerp", a, -a, t=0.5), 0)
    assert np.allclose(mixed("slerp", a, 0 * a, t=0.5), a / 2)


def test_transfer_carries_the_change_over(three):
    base, tuned, onto = three
    expected = onto + 0.5 * (tuned.astype(np.float64) - base)
    assert np.allclose(mixed("transfer", base, onto, tuned, scale=0.5), expected, atol=1e-6)
    assert np.array_equal(mixed("transfer", base, onto, tuned, scale=0.0), onto)
    assert np.allclose(mixed("transfer", base, base, tuned, scale=1.0), tuned, atol=1e-6)
