"""pass@k, maj@k and distinct@k from n samples, without bias. Pure.

All are expectations over a random subset of `k` of the `n` samples, computed exactly, not drawn: so
they have no noise of their own, and less variance than the score of `k` samples alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb


def pass_at_k(num: int, correct: int, k: int) -> float:
    """The chance that at least one of `k` samples, drawn from `num` without putting back, is correct:
    `1 - C(n - c, k) / C(n, k)` (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Raises ValueError unless `0 <= correct <= num` and `1 <= k <= num`.
    """
    if not (0 <= correct <= num and 1 <= k <= num):
        raise ValueError(f"needs 0 <= correct <= num and 1 <= k <= num, got {num=} {correct=} {k=}")
    return float(1 - Fraction(comb(num - correct, k), comb(num, k)))


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The chance that the most frequent answer among `k` samples, drawn without putting back, is
    correct; equally frequent answers win alike often.

    answers: what each sample answered, None if nothing (it does not vote; where nobody votes the
    result is wrong); correct: whether each sample passed. Samples of one answer that differ in that
    (by their form, say) count by the share that passed. Raises ValueError unless `1 <= k <= n`.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"needs 1 <= k <= {len(answers)} samples, got {k=}")
    votes = Counter(a for a in answers if a is not None)
    passed = Counter(a for a, ok in zip(answers, correct, strict=True) if ok and a is not None)
    silent = len(answers) - sum(votes.values())
    chance = Fraction(0)
    for answer in passed:
        others = [count for other, count in votes.items() if other != answer]
        wins = _ways_to_win(votes[answer], others, silent, k)
        chance += Fraction(passed[answer], votes[answer]) * wins
    return float(chance / comb(len(answers), k))


def distinct_at_k(answers: Sequence[Hashable | None], k: int) -> float:
    """How many different answers `k` samples hold on average, drawn without putting back; None is no
    answer. Raises ValueError unless `1 <= k <= n`."""
    if not 1 <= k <= len(answers):
        raise ValueError(f"needs 1 <= k <= {len(answers)} samples, got {k=}")
    counts = Counter(a for a in answers if a is not None).values()
    return sum(pass_at_k(len(answers), count, k) for count in counts)


def _ways_to_win(mine: int, others: Sequence[int], silent: int, k: int) -> Fraction:
    """Subsets of size `k` in which an answer given `mine` times wins, each tie counted by its share."""
    total = Fraction(0)
    for top in range(1, min(mine, k) + 1):
        # ways[size, ties]: choices among the other answers, none of them above `top`.
        ways: dict[tuple[int, int], int] = {(0, 0): 1}
        for count in others:
            ways = _with_answer(ways, count, top, k - top)
        for (size, ties), number in ways.items():
            rest = comb(silent, k - top - size)
            total += Fraction(comb(mine, top) * number * rest, 1 + ties)
    return total


def _with_answer(
    ways: dict[tuple[int, int], int], count: int, top: int, room: int
) -> dict[tuple[int, int], int]:
    out: dict[tuple[int, int], int] = Counter()
    for (size, ties), number in ways.items():
        for chosen in range(min(count, top, room - size) + 1):
            out[size + chosen, ties + (chosen == top)] += number * comb(count, chosen)
    return out
