"""Randomness by name: who asks first, or in which process, makes no difference."""

import random

import pytest

from rlft.seeding import Key

# Measured once and kept: a resumed run, on another machine, must draw what the first one drew.
GOLDEN = [
    (0, (), 3493790168860947455, 813461413),
    (0, ("tasks",), 5645081012409628504, 1314347845),
    (7, ("ticket", 3, "task"), 2392655684133475080, 557083562),
    (2**40, ("é", -1), 3600126569972102484, 838219786),
]


@pytest.mark.parametrize("root, path, seed, small", GOLDEN)
def test_numbers_are_those_of_every_other_process(root, path, seed, small):
    assert Key(root).child(*path).seed() == seed
    assert Key(root).child(*path).seed(31) == small


def test_a_key_does_not_depend_on_what_was_drawn_before():
    names = [("ticket", i, "member", j) for i in range(10) for j in range(10)]
    there = {n: Key(3).child(*n).seed() for n in names}
    random.Random(1).shuffle(names)
    root = Key(3)
    for name in names:
        root.rng().random()
        assert root.child(*name).seed() == there[name]


def test_a_path_may_be_walked_in_any_steps():
    assert Key(0).child("a", 1, "b") == Key(0).child("a").child(1).child("b")


def test_a_hundred_thousand_children_are_distinct():
    root = Key(0).child("ticket")
    seeds = {root.child(i, "member", j).seed() for i in range(400) for j in range(250)}
    assert len(seeds) == 100_000


def test_neighbours_share_no_randomness():
    for other in (
        Key(1),
        Key(0).child(0),
        Key(0).child("0"),
        Key(0).child("a", "b"),
        Key(0).child("ab"),
    ):
        assert other.seed() != Key(0).seed()
    pairs = [(Key(0).child(1), Key(0).child("1")), (Key(0).child("a", "b"), Key(0).child("ab"))]
    for one, two in pairs:
        assert one.seed() != two.seed()


@pytest.mark.parametrize("bits", [1, 8, 31, 63, 64])
def test_seeds_fill_their_range_and_no_more(bits):
    seeds = [Key(0).child(i).seed(bits) for i in range(2_000)]
    assert min(seeds) >= 0 and max(seeds) < 2**bits
    assert sum(seeds) / len(seeds) / (2**bits - 1) == pytest.approx(0.5, abs=0.03)
    assert max(seeds) >= 2**bits * 0.99 - 1


def test_generators_of_one_key_agree_and_of_two_do_not():
    one, same, other = (Key(0).child(n).rng() for n in ("a", "a", "b"))
    draws = [one.random() for _ in range(5)]
    assert draws == [same.random() for _ in range(5)] != [other.random() for _ in range(5)]
