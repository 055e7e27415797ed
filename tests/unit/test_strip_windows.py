"""A fit on windows of streams: which minibatch has which, who has a stream's state, what is clipped."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlft.cloning import EMPTY
from rlft.learning.strip_fit import _chunks, _clipped, _minibatches, _states
from rlft.learning.strip_job import StripJob
from rlft.policy.actor_critic import Normaliser
from rlft.seeding import Key

ROWS = 12  # 3 minibatches x 4 streams


def job(**changes):
    settings = {
        "number": np.full(ROWS, np.nan),
        "on_policy": np.zeros(ROWS, bool),
        **{"terms": (), "coef": (), "credit": None, "epochs": 1, "minibatches": 3, "key": Key(0)},
        **{"lr": 0.0, "critic_lr": None, "token_budget": 64, "unit": "strip"},
        "stream": np.arange(ROWS) % 4,
        "minibatch": np.arange(ROWS) // 4,
    }
    return StripJob(**{**settings, **changes})


def test_a_minibatch_is_the_next_window_of_every_stream_in_order():
    lengths = np.full(ROWS, 8)
    found = [chosen.tolist() for chosen in _minibatches(job(), 0, lengths)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_stream_stays_with_its_rank_and_every_rank_takes_as_many_forwards(world):
    one, lengths = job(token_budget=8), np.full(ROWS, 8)
    owner = {}
    for chosen in _minibatches(one, 0, lengths):
        shares = [_chunks(chosen, lengths, one, rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        rows = [int(i) for share in shares for chunk in share for i in chunk]
        assert sorted(rows) == chosen.tolist()
        for rank, share in enumerate(shares):
            for i in np.concatenate(share).astype(int):
                assert owner.setdefault(int(one.stream[i]), rank) == rank


def strip(state):
    return SimpleNamespace(state=state)


def test_a_row_begins_where_its_stream_arrived_where_it_says_or_empty():
    learner = SimpleNamespace(
        state_size=2, device=torch.device("cpu"), carried={1: torch.tensor([5.0, 6.0])}
    )
    given = np.array([1.0, 2.0], np.float32)
    strips = [strip(None), strip(None), strip(EMPTY), strip(given)]
    one = job(stream=np.array([0, 1, 1, 1]), minibatch=np.zeros(4, int))
    seen = _states(strips, np.arange(4), one, learner)
    assert seen.tolist() == [[0, 0], [5, 6], [0, 0], [1, 2]]
    plain = _states(strips, np.arange(4), job(stream=None, minibatch=None), learner)
    assert plain.tolist() == [[0, 0], [0, 0], [0, 0], [1, 2]], "no streams: whole episodes"
    assert _states(strips, np.zeros(0, int), one, learner).tolist() == [[0, 0]], (
        "a rank without rows"
    )


def test_rewards_are_clipped_on_both_sides_or_not_at_all():
    reward = torch.tensor([-50.0, -3.0, 0.0, 12.0])
    assert _clipped(reward, 10).tolist() == [-10, -3, 0, 10]
    assert _clipped(reward, None) is reward


def test_moments_are_merged_as_if_all_had_been_seen_at_once():
    seen = np.random.default_rng(0).normal(40, 9, 300)
    running = Normaliser(1)
    for part in np.array_split(seen, 4):
        mean, square = part.mean(), (part**2).mean()
        running.merge(len(part), torch.tensor([mean]), torch.tensor([square - mean**2]))
    assert running.mean.item() == pytest.approx(seen.mean(), rel=1e-5)
    assert running.var.item() == pytest.approx(seen.var(), rel=1e-4)
