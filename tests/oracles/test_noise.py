"""The noise kernel against a slow numpy version written from the papers, and the invariants of spec
1.9 (I) and 4.6 (M)."""

import hashlib

import numpy as np
import pytest
import torch

from rlft.learning.noise import (
    BLOCK,
    Drawing,
    Noise,
    NoiseStep,
    blend,
    distance,
    factors,
    noise,
    pack,
    take_step,
    unpack,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def masters(seed=0, spread=0.02):
    """Tensors of three shapes, one longer than a block and not a multiple of it."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (257, 300), "b": (257, 300), "norm": (5,)}
    return {n: torch.randn(s, generator=g) * spread for n, s in shapes.items()}


def slow_noise(seed, name, shape):
    """The definition of hashed noise, block by block, without the kernel's loops."""
    count, parts = int(np.prod(shape)), []
    for block in range(-(-count // BLOCK)):
        size = min(BLOCK, count - block * BLOCK)
        digest = hashlib.blake2b(
            f"cpu {block} {name}".encode(), digest_size=8, key=seed.to_bytes(8, "little")
        )
        number = int.from_bytes(digest.digest(), "little") // 2
        parts.append(torch.randn(size, generator=torch.Generator().manual_seed(number)).numpy())
    return np.concatenate(parts).reshape(shape)


def slow_update(master, terms, draw):
    """theta + sum_i c_i eps_i in float64, as the paper writes it."""
    total = master.astype(np.float64)
    for seed, coef in terms:
        total = total + coef * draw(seed).astype(np.float64)
    return total


def test_noise_is_its_definition_and_a_pure_function():  # I2
    for name, shape in (("a", (257, 300)), ("x.y", (3,)), ("z", (2, BLOCK))):
        first = noise(7, name, shape)
        assert np.array_equal(first.numpy(), slow_noise(7, name, shape))
        torch.randn(100)  # whatever the global generator does
        assert torch.equal(first, noise(7, name, shape))
    assert not torch.equal(noise(7, "a", (50,)), noise(7, "b", (50,)))
    assert not torch.equal(noise(7, "a", (50,)), noise(8, "a", (50,)))


def test_a_shard_draws_its_own_blocks():
    whole = noise(3, "w", (4 * BLOCK,))
    assert torch.equal(whole[2 * BLOCK :], noise(3, "w", (4 * BLOCK,))[2 * BLOCK :])
    assert torch.equal(whole[:BLOCK], noise(3, "w", (BLOCK,)))


def test_scoring_and_update_see_the_same_noise():  # I2, M2
    held = masters()
    perturbed = {n: torch.empty_like(m) for n, m in held.items()}
    blend(perturbed, held, [Noise(11, 1.0)], Drawing())
    moved = {n: m.clone() for n, m in held.items()}
    take_step(moved, NoiseStep(pack([Noise(11, 1.0)]), Drawing()), None)
    for name in held:
        assert torch.equal(perturbed[name], moved[name])
        assert torch.equal(perturbed[name], noise(11, name, held[name].shape) + held[name])


@pytest.mark.parametrize("mode", ["hashed", "shared", "iid"])
def test_the_update_is_the_papers_sum(mode):
    drawing, held = Drawing(mode), masters()
    terms = [(5, 0.25), (6, -1.5), (7, 1e-3)]
    moved = {n: m.clone() for n, m in held.items()}
    length = take_step(moved, NoiseStep(pack([Noise(*t) for t in terms]), drawing), None)
    square = 0.0
    for index, (name, master) in enumerate(held.items()):

        def draw(seed, name=name, shape=master.shape, index=index):
            return noise(seed, name, shape, drawing, index=index).numpy()

        expected = slow_update(master.numpy(), terms, draw)
        assert np.abs(moved[name].numpy() - expected).max() < 1e-6
        square += float(((expected - master.numpy()) ** 2).sum())
    assert length == pytest.approx(square**0.5, rel=1e-4)


def test_shared_noise_repeats_over_tensors_of_one_shape_and_iid_noise_does_not():  # I3
    shape = (100, 100)
    a, b = (noise(9, n, shape, Drawing("shared"), index=i) for i, n in enumerate("ab"))
    assert torch.equal(a, b)
    a, b = (noise(9, n, shape, Drawing("iid"), index=i) for i, n in enumerate("ab"))
    bound = 4 / a.numel() ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < bound
    a, b = (noise(9, n, shape) for n in "ab")
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < bound
    # The weakness of `iid`: neighbours in seed and tensor coincide. Hashed noise has none.
    neighbour = noise(10, "a", shape, Drawing("iid"))
    assert torch.equal(noise(9, "b", shape, Drawing("iid"), index=1), neighbour)


def test_noise_is_standard_normal():
    drawn = noise(1, "w", (1_000_000,))
    assert abs(float(drawn.mean())) < 4e-3
    assert abs(float(drawn.std()) - 1) < 3e-3
    assert abs(float((drawn**4).mean()) - 3) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_is_exact_after_thirty_members(dtype):  # I1
    held = {n: m.to(dtype).float() for n, m in masters().items()}
    weights = {n: m.to(dtype, copy=True) for n, m in held.items()}
    before = {n: w.clone() for n, w in weights.items()}
    for member in range(30):
        blend(weights, held, [Noise(member, 1e-3)], Drawing())
        assert not torch.equal(weights["a"], before["a"])
    blend(weights, held, [], Drawing())
    assert all(torch.equal(weights[n], before[n]) for n in weights)


def test_subtracting_instead_would_drift_in_bfloat16():
    """What the pristine copy is for: the published way changes about half of all weights."""
    start = (torch.randn(400_000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    weights = start.clone()
    for member in range(30):
        step = 1e-3 * noise(member, "w", weights.shape).bfloat16()
        weights += step
        weights -= step
    assert 0.3 < float((weights != start).float().mean()) < 0.7


def test_the_result_does_not_depend_on_threads():
    held, terms, found = masters(), [Noise(1, 0.5), Noise(2, -0.25)], []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = {n: torch.empty_like(m) for n, m in held.items()}
            found.append((blend(out, held, terms, Drawing()), out))
    finally:
        torch.set_num_threads(threads)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][n], found[1][1][n]) for n in held)


def test_an_update_of_nothing_changes_nothing():  # I4, M6, M7
    held = masters()
    before = {n: m.clone() for n, m in held.items()}
    assert take_step(held, NoiseStep(pack([]), Drawing()), None) == 0
    take_step(held, NoiseStep(pack([Noise(4, 0.0), Noise(5, 0.0)]), Drawing()), None)
    assert all(torch.equal(held[n], before[n]) for n in held)


def test_the_order_of_members_does_not_matter():  # I6
    terms = [Noise(seed, 0.1 * seed - 0.3) for seed in range(8)]
    moved = []
    for order in (terms, terms[::-1]):
        held = masters()
        take_step(held, NoiseStep(pack(order), Drawing()), None)
        moved.append(held)
    assert all(torch.allclose(moved[0][n], moved[1][n], atol=1e-6) for n in moved[0])


def test_the_length_of_a_step_under_random_rewards():  # I8
    d, population, alpha = 1_000_000, 30, 5e-4
    z = np.random.default_rng(0).normal(size=population)
    z = (z - z.mean()) / z.std()
    held = {"w": torch.zeros(d)}
    terms = [Noise(i, alpha / population * float(z[i])) for i in range(population)]
    length = take_step(held, NoiseStep(pack(terms), Drawing()), None)
    assert length == pytest.approx(alpha * (d / population) ** 0.5, rel=0.05)
    assert float(held["w"].norm()) == pytest.approx(length, rel=1e-4)


def test_a_step_travels_in_twelve_bytes_a_direction():
    terms = [Noise(2**64 - 1, 0.5), Noise(3, -1e-7), Noise(2**64 - 1, 0.25)]
    packed = pack(terms)
    assert len(packed) == 24, "an antithetic pair is one direction"
    assert unpack(packed) == [Noise(2**64 - 1, 0.75), Noise(3, float(np.float32(-1e-7)))]


# -- low rank (EGGROLL, equation 6) ----------------------------------------------------------------

LOW = Drawing(rank=3, matrices=frozenset({"a", "b"}))


def test_low_rank_noise_is_the_papers_product_and_leaves_the_rest_alone():
    held = masters()
    out = {n: torch.empty_like(m) for n, m in held.items()}
    terms = [Noise(5, 0.2), Noise(6, -0.1)]
    blend(out, held, terms, LOW)
    for name in ("a", "b"):
        expected = held[name].numpy().astype(np.float64)
        for term in terms:
            left, right = (f.numpy() for f in factors(term.seed, name, held[name].shape, 3))
            assert left.shape == (257, 3) and right.shape == (300, 3)
            expected = expected + term.scale * left @ right.T / np.sqrt(3)
        assert np.abs(out[name].numpy() - expected).max() < 1e-5
    assert torch.equal(out["norm"], held["norm"])
    assert np.linalg.matrix_rank((out["a"] - held["a"]).numpy(), tol=1e-3) == 6, "rank adds up"
    drawn = noise(5, "a", (257, 300), LOW)
    assert abs(float(drawn.std()) - 1) < 0.1, "entries have variance 1 whatever the rank"
    blend(out, held, [], LOW)
    assert all(torch.equal(out[n], held[n]) for n in held)


# -- decay to the anchor ---------------------------------------------------------------------------


def test_decay_pulls_towards_the_start_weights():
    start = masters()
    away = {
        n: m + torch.tensor([0.3, -0.001]).repeat(m.numel())[: m.numel()].view(m.shape)
        for n, m in start.items()
    }
    before = distance(away, start.__getitem__)
    l2 = {n: m.clone() for n, m in away.items()}
    take_step(l2, NoiseStep(b"", Drawing(), 0.25, "l2"), start.__getitem__)
    assert distance(l2, start.__getitem__) == pytest.approx(0.75 * before, rel=1e-4)
    l1 = {n: m.clone() for n, m in away.items()}
    take_step(l1, NoiseStep(b"", Drawing(), 0.01, "l1"), start.__getitem__)
    gap = (l1["a"] - start["a"]).flatten()
    assert torch.allclose(gap[::2], torch.tensor(0.29), atol=1e-6)
    assert torch.equal(l1["a"].flatten()[1::2], start["a"].flatten()[1::2]), "small ones are gone"


# -- MeZO -------------------------------------------------------------------------------------------


def test_float32_plus_minus_plus_restores_to_rounding():  # M1
    """The published way, with its middle step in one addition."""
    theta = noise(0, "start", (50_000,)) * 0.02
    z, eps, moved = noise(1, "w", (50_000,)), 1e-3, theta.clone()
    moved += eps * z
    moved -= 2 * eps * z
    moved += eps * z
    assert float((moved - theta).abs().max()) < 1e-7


@pytest.mark.parametrize("eps", [1e-3, 0.1, 10.0])
def test_on_a_quadratic_the_estimate_is_exact_for_any_eps(eps):  # M3
    d = 40
    g = np.random.default_rng(1)
    half = g.normal(size=(d, d))
    matrix, linear, theta = half @ half.T, g.normal(size=d), g.normal(size=d)

    def loss(x):
        return 0.5 * x @ matrix @ x + linear @ x

    z = noise(3, "w", (d,)).numpy().astype(np.float64)
    estimate = (loss(theta + eps * z) - loss(theta - eps * z)) / (2 * eps)
    assert estimate == pytest.approx(z @ (matrix @ theta + linear), rel=1e-6)


def test_the_mean_estimate_is_the_gradient():  # M4
    d, count = 6, 100_000
    gradient = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -0.1])
    # For a linear loss g = z . gradient, whatever eps; one long draw holds all the z.
    z = noise(17, "many", (count, d)).numpy().astype(np.float64)
    products = (z @ gradient)[:, None] * z
    error = products.std(axis=0) / np.sqrt(count)
    assert (np.abs(products.mean(axis=0) - gradient) < 3.5 * error).all()


def test_replaying_seeds_and_numbers_gives_the_same_weights_bit_for_bit():  # M5
    first, again = masters(), masters()
    log = [(Noise(s, w), 0.0) for s, w in ((1, 0.01), (2, -0.003), (3, 0.2))]
    for term, decay in log:
        take_step(first, NoiseStep(pack([term]), Drawing(), decay), None)
    for term, decay in log:  # perturbing in between leaves the master alone
        out = {n: torch.empty_like(m) for n, m in again.items()}
        blend(out, again, [Noise(term.seed, 1e-3)], Drawing())
        take_step(again, NoiseStep(pack([term]), Drawing(), decay), None)
    assert all(torch.equal(first[n], again[n]) for n in first)
