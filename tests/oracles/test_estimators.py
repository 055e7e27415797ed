"""pass@k and maj@k against every subset, one by one."""

import itertools
import random
from collections import Counter
from statistics import fmean

import pytest

from rlft.record.estimators import distinct_at_k, maj_at_k, pass_at_k


@pytest.mark.parametrize("num", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(num):
    for correct in range(num + 1):
        samples = [True] * correct + [False] * (num - correct)
        for k in range(1, num + 1):
            subsets = list(itertools.combinations(samples, k))
            assert pass_at_k(num, correct, k) == pytest.approx(fmean(map(any, subsets)))


def vote(subset):
    """The chance that a uniformly chosen most frequent answer of `(answer, passed share)` is right."""
    votes = Counter(a for a, _ in subset if a is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    share = dict(subset)
    return fmean(share[a] for a, count in votes.items() if count == top)


def test_maj_at_k_is_the_mean_vote_over_all_subsets():
    rng = random.Random(0)
    for _ in range(60):
        num = rng.randrange(1, 8)
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(num)]
        correct = [a == "a" for a in answers]
        samples = [(a, float(a == "a")) for a in answers]
        for k in range(1, num + 1):
            expected = fmean(vote(s) for s in itertools.combinations(samples, k))
            assert maj_at_k(answers, correct, k) == pytest.approx(expected), (answers, k)


def test_an_answer_that_passed_in_one_of_two_forms_counts_half():
    assert maj_at_k(["7", "7"], [True, False], 2) == 0.5


def test_one_sample_is_the_mean():
    assert maj_at_k(["1", "2", "2", None], [True, False, False, False], 1) == 0.25
    assert pass_at_k(4, 1, 1) == 0.25


@pytest.mark.parametrize("num, correct, k", [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 2)])
def test_what_cannot_be_drawn_is_refused(num, correct, k):
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(num, correct, k)


def test_large_numbers_neither_overflow_nor_round():
    assert pass_at_k(10_000, 1, 5_000) == 0.5


def test_distinct_at_k_is_the_mean_count_over_all_subsets():
    rng = random.Random(0)
    for _ in range(60):
        num = rng.randrange(1, 8)
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(num)]
        for k in range(1, num + 1):
            subsets = itertools.combinations(answers, k)
            expected = fmean(len(set(s) - {None}) for s in subsets)
            assert distinct_at_k(answers, k) == pytest.approx(expected)
    assert distinct_at_k([None, None], 2) == 0
    with pytest.raises(ValueError, match="needs 1 <= k <= 2"):
        distinct_at_k(["a", "b"], 3)
