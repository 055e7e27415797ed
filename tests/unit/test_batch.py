"""From rows to batches: nobody is left out, ranks stay in step, and padding adds nothing."""

import itertools
import random

import numpy as np
import pytest
import torch

from rlft.batch import assemble, plan
from rlft.seeding import Key
from rlft.types import Row


def cases(count=60):
    """Random plans: lengths, and what `plan` is asked for."""
    rng = random.Random(0)
    for _ in range(count):
        rows = rng.randint(1, 40)
        longest = rng.choice([3, 30, 300])
        lengths = [rng.randint(2, longest) for _ in range(rows)]
        asked = {
            "world": rng.randint(1, 5),
            "budget": rng.choice([1, 16, 128, 1024]),
            "minibatches": rng.randint(1, min(rows, 4)),
            "epochs": rng.randint(1, 3),
        }
        yield lengths, asked


def planned(lengths, asked, seed=0):
    return plan(lengths, key=Key(seed), **asked)


def test_every_row_comes_once_an_epoch_in_minibatches_that_share_none():
    for lengths, asked in cases():
        updates = planned(lengths, asked)
        minibatches = asked["minibatches"]
        assert len(updates) == asked["epochs"] * minibatches
        for start in range(0, len(updates), minibatches):
            parts = [u.rows for u in updates[start : start + minibatches]]
            assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
            sizes = [len(p) for p in parts]
            assert max(sizes) - min(sizes) <= 1


def test_every_rank_has_the_same_number_of_micro_batches_in_each_update():
    for lengths, asked in cases():
        for update in planned(lengths, asked):
            assert len(update.ranks) == asked["world"]
            assert len({len(rank) for rank in update.ranks}) == 1
            assert len(update.ranks[0]) >= 1


def test_a_micro_batch_is_within_the_budget_or_a_single_row():
    for lengths, asked in cases():
        for update in planned(lengths, asked):
            for micro in itertools.chain(*update.ranks):
                padded = len(micro) * max((lengths[r] for r in micro), default=0)
                assert padded <= asked["budget"] or len(micro) == 1


def test_a_row_longer_than_the_budget_goes_alone_and_the_others_do_not():
    [update] = plan([5, 100, 6, 5], world=1, budget=20)
    assert {frozenset(m) for m in update.ranks[0]} == {frozenset({1}), frozenset({0, 2, 3})}


def test_similar_lengths_go_together_so_that_little_is_padded():
    rng = random.Random(1)
    lengths = [rng.randint(10, 200) for _ in range(300)]
    [update] = plan(lengths, world=2, budget=2_000)
    micros = list(itertools.chain(*update.ranks))
    padded = sum(len(m) * max(lengths[r] for r in m) for m in micros if m)
    assert padded < 1.1 * sum(lengths)


def test_ranks_get_about_equal_work():
    rng = random.Random(2)
    lengths = [rng.randint(10, 200) for _ in range(400)]
    [update] = plan(lengths, world=4, budget=1_000)
    work = [sum(lengths[r] for m in rank for r in m) for rank in update.ranks]
    assert max(work) < 1.1 * min(work)


@pytest.mark.parametrize("rows, world", [(1, 4), (2, 3), (3, 3), (8, 4)])
def test_few_rows_are_spread_before_they_are_packed(rows, world):
    [update] = plan([10] * rows, world=world, budget=10_000)
    assert sum(any(rank) for rank in update.ranks) == min(rows, world)


def test_the_plan_is_a_function_of_what_it_is_given():
    for lengths, asked in cases(10):
        assert planned(lengths, asked) == planned(list(lengths), dict(asked))


def test_epochs_and_keys_shuffle_anew():
    lengths = [10] * 24
    asked = {"world": 1, "budget": 64, "minibatches": 3, "epochs": 4}
    firsts = {tuple(u.rows) for u in planned(lengths, asked)[::3]}
    firsts |= {tuple(planned(lengths, asked, seed)[0].rows) for seed in range(1, 5)}
    assert len(firsts) == 8


def test_one_minibatch_needs_no_key():
    assert sorted(plan([3, 4], world=1, budget=9, epochs=2)[1].rows) == [0, 1]


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="3 minibatches of only 2 rows"):
        plan([1, 2], world=1, budget=9, minibatches=3, key=Key(0))
    with pytest.raises(ValueError, match="key"):
        plan([1, 2], world=1, budget=9, minibatches=2)


def rows(count=7):
    rng = np.random.default_rng(0)
    for _ in range(count):
        prompt, chosen = rng.integers(1, 9, size=2)
        ids = rng.integers(1, 50, size=prompt + chosen).astype(np.int32)
        yield Row(ids, int(prompt), rng.normal(size=chosen).astype(np.float32))


PAD = 99


def test_rows_can_be_read_back_from_the_padded_tensors():
    given = list(rows())
    inputs = assemble(given, PAD)
    for index, row in enumerate(given):
        mask = inputs.mask[index]
        chosen = inputs.ids[index][inputs.position[index][mask]]
        assert chosen.tolist() == row.ids[row.prompt_len :].tolist()
        assert inputs.sample_logp[index][mask].tolist() == row.sample_logp.tolist()
        # What is decided on is every token that is neither prompt nor padding, each once.
        decided = set(inputs.position[index][mask].tolist())
        tokens = inputs.ids[index]
        rest = [int(t) for place, t in enumerate(tokens) if place not in decided]
        padding = len(tokens) - len(row.ids)
        assert rest == [*row.ids[: row.prompt_len].tolist(), *[PAD] * padding]


def test_padding_is_marked_so_that_using_it_shows():
    inputs = assemble(list(rows()), PAD)
    assert torch.isnan(inputs.sample_logp[~inputs.mask]).all()
    assert not torch.isnan(inputs.sample_logp[inputs.mask]).any()
    assert inputs.mask.dtype == torch.bool and inputs.ids.dtype == torch.int64


def test_a_row_reads_the_same_in_any_company():
    given = list(rows())
    alone = assemble(given[:1], PAD)
    together = assemble(given, PAD)
    kept = together.mask[0]
    assert torch.equal(together.position[0][kept], alone.position[0][alone.mask[0]])
    assert together.ids[0][: alone.ids.shape[1]].tolist() == alone.ids[0].tolist()


def test_the_empty_micro_batch_can_be_fed_and_trains_on_nothing():
    inputs = assemble([], PAD)
    assert inputs.ids.shape[0] == 1 and not inputs.mask.any()
    assert inputs.position.max() < inputs.ids.shape[1]


def test_rows_of_a_unit_are_never_split():
    rng = random.Random(1)
    for lengths, asked in cases():
        unit = [rng.randrange(1 + len(lengths) // 2) for _ in lengths]
        asked["minibatches"] = min(asked["minibatches"], len(set(unit)))
        updates = plan(lengths, key=Key(0), unit=unit, **asked)
        for start in range(0, len(updates), asked["minibatches"]):
            epoch = updates[start : start + asked["minibatches"]]
            assert sorted(row for u in epoch for row in u.rows) == list(range(len(lengths)))
        for update in updates:
            micros = [m for m in itertools.chain(*update.ranks) if m]
            homes = [{unit[row] for row in micro} for micro in micros]
            assert sum(map(len, homes)) == len(set().union(*homes)), "a unit is in two places"
            for micro, home in zip(micros, homes, strict=True):
                runs = [key for key, _ in itertools.groupby(unit[row] for row in micro)]
                assert len(runs) == len(home), "a unit's rows lie next to each other"
                padded = len(micro) * max(lengths[row] for row in micro)
                assert padded <= asked["budget"] or len(home) == 1


def test_units_of_one_row_are_planned_as_no_units():
    for lengths, asked in cases():
        assert planned(lengths, asked) == plan(
            lengths, key=Key(0), unit=[7 * i for i in range(len(lengths))], **asked
        )


def test_a_unit_for_each_row_is_asked_for():
    with pytest.raises(ValueError, match="2 numbers for 3 rows"):
        plan([3, 4, 5], world=1, budget=8, unit=[0, 1])


def test_one_rank_takes_unequal_rows_in_one_micro_batch_if_they_fit():
    [update] = plan([3, 9, 5, 4], world=1, budget=36)
    assert update.ranks == (((1, 2, 3, 0),),)
